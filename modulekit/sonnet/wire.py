"""Protocol buffers on the wire: varints, and a message as its fields.

A message is a sequence of fields: a tag, which holds the field's number and its type, then a varint, eight bytes, a
length with so many bytes, or four bytes. What a number means stands in the reader of the message. Fields that a reader
does not know are skipped, as the format demands.
"""

from collections.abc import Iterator

_VARINT, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5

Field = int | bytes


def varint(data: bytes, position: int) -> tuple[int, int]:
    """Returns `(number, position behind it)` of a varint of up to 64 bits: seven in a byte, the lowest first.

    Raises:
      ValueError: the data end inside of it, or it is longer than ten bytes.

    >>> varint(bytes([0xAC, 0x02]), 0)
    (300, 2)
    """
    number = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            raise ValueError(f"a varint runs past the end of its {len(data)} bytes")
        byte = data[position]
        position += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number & 0xFFFFFFFFFFFFFFFF, position
    raise ValueError(f"a varint at byte {position - 10} is longer than ten bytes")


def fields(message: bytes) -> Iterator[tuple[int, Field]]:
    """Yields `(number, value)` for each field of a message: an int, or the bytes of a string or of an inner message.

    Raises:
      ValueError: these bytes are no message.

    >>> list(fields(bytes([0x08, 0x03, 0x12, 0x01, 0x61])))
    [(1, 3), (2, b'a')]
    """
    position = 0
    while position < len(message):
        tag, position = varint(message, position)
        kind = tag & 7
        if kind == _VARINT:
            value, position = varint(message, position)
            yield tag >> 3, value
            continue
        if kind == _BYTES:
            length, position = varint(message, position)
        elif kind in (_EIGHT_BYTES, _FOUR_BYTES):
            length = 8 if kind == _EIGHT_BYTES else 4
        else:
            raise ValueError(f"a field of type {kind}, which no message has")
        content = message[position : position + length]
        if len(content) < length:
            raise ValueError(f"a field of {length} bytes runs past the end of its message")
        position += length
        yield tag >> 3, content if kind == _BYTES else int.from_bytes(content, "little")


def number(value: Field) -> int:
    """Returns a field that must hold a number; raises `ValueError` if it holds bytes."""
    if isinstance(value, int):
        return value
    raise ValueError("a field holds bytes where a number belongs")


def signed(value: Field) -> int:
    """Returns a field that must hold a number with a sign."""
    unsigned = number(value)
    return unsigned - (1 << 64) if unsigned >> 63 else unsigned


def content(value: Field) -> bytes:
    """Returns a field that must hold bytes; raises `ValueError` if it holds a number."""
    if isinstance(value, bytes):
        return value
    raise ValueError("a field holds a number where bytes belong")


def text(value: Field) -> str:
    """Returns a field that must hold text."""
    return content(value).decode("utf-8")
