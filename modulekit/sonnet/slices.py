"""Slices: a large tensor may be saved in rectangular parts, each under a key that says which part it is.

The key begins with a zero and is written so that keys sort as what they say does: the name, the rank, and for each axis
where the part starts and how long it is, -1 for the whole axis.
"""

from typing import NamedTuple

from modulekit.sonnet.wire import content, fields, signed

WHOLE = -1


class Extent(NamedTuple):
    """Which part of one axis a slice covers."""

    start: int
    length: int


def parse(message: bytes) -> tuple[Extent, ...]:
    """Returns the extents of a slice, axis by axis, from the message that describes it."""
    return tuple(_extent(content(value)) for field, value in fields(message) if field == 1)


def _extent(message: bytes) -> Extent:
    numbers = {field: signed(value) for field, value in fields(message)}
    return Extent(numbers.get(1, 0), numbers.get(2, WHOLE))


def region(extents: tuple[Extent, ...], shape: tuple[int, ...]) -> tuple[slice, ...]:
    """Returns the part of an array of a shape that a slice covers.

    Raises:
      ValueError: the slice is of another rank, or goes beyond the array.
    """
    if len(extents) != len(shape):
        raise ValueError(f"a slice of rank {len(extents)} in a tensor of rank {len(shape)}")
    parts = []
    for (start, length), size in zip(extents, shape, strict=True):
        end = size if length == WHOLE else start + length
        if not 0 <= start <= end <= size:
            raise ValueError(f"a slice from {start} to {end} on an axis of {size}")
        parts.append(slice(start, end))
    return tuple(parts)


def key(name: str, extents: tuple[Extent, ...]) -> bytes:
    """Returns the key of a slice of a tensor.

    >>> key("w", (Extent(0, 2),))
    b'\\x00w\\x00\\x01\\x01\\x01\\x80\\x82'
    """
    escaped = name.encode().replace(b"\xff", b"\xff\x00").replace(b"\0", b"\0\xff")
    rank = len(extents).to_bytes((len(extents).bit_length() + 7) // 8, "big")
    parts = b"".join(_ordered(number) for extent in extents for number in extent)
    return b"\0" + escaped + b"\0\x01" + bytes([len(rank)]) + rank + parts


def _ordered(number: int) -> bytes:
    """Returns a signed number in as many bytes as it needs: as many ones in front, a zero, and the number."""
    size = (number if number >= 0 else ~number).bit_length() // 7 + 1
    ones = ((1 << size) - 1) << (8 * size - size)
    return ((number & ((1 << 8 * size) - 1)) ^ ones).to_bytes(size, "big")
