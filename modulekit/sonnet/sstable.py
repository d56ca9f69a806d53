"""Sorted tables of bytes on disk, in the format of LevelDB: the index of a checkpoint is one.

A table is a file of blocks. A block holds entries in the order of their keys, each with only that end of its key in which
it differs from the one before, and is followed by a byte for its packing and a checksum. The last block but one, the
index, says where the blocks are; the footer says where the index is.
"""

from collections.abc import Iterator
from pathlib import Path

from modulekit.errors import CheckpointError
from modulekit.sonnet import snappy
from modulekit.sonnet.crc32c import crc32c, masked
from modulekit.sonnet.wire import varint

_FOOTER, _TRAILER = 48, 5
_MAGIC = 0xDB4775248B80FB57
_UNPACKED, _SNAPPY = 0, 1


def read_table(path: Path) -> dict[bytes, bytes]:
    """Returns the entries of a table, in the order of their keys.

    Args:
      path: of the file.

    Raises:
      CheckpointError: the file is no table, or is damaged; the message says where.
      FileNotFoundError: there is none.
    """
    data = path.read_bytes()
    if len(data) < _FOOTER or int.from_bytes(data[-8:], "little") != _MAGIC:
        raise CheckpointError(
            f"{path} is no index of a TensorFlow checkpoint, or is cut off: its {len(data)} bytes do not end with the mark "
            f"of one, {_MAGIC:#x}"
        )
    try:
        _, position = _handle(data[-_FOOTER:-8], 0)  # of a block of notes that checkpoints leave empty
        index, _ = _handle(data[-_FOOTER:-8], position)
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged in its last {_FOOTER} bytes: {error}") from error
    table: dict[bytes, bytes] = {}
    previous: bytes | None = None
    for handle in _block(path, data, *index).values():
        where, end = _handle(handle, 0)
        if end != len(handle):
            raise CheckpointError(f"{path} is damaged: its index of blocks does not consist of places")
        for key, value in _block(path, data, *where).items():
            if previous is not None and key <= previous:
                raise CheckpointError(f"{path} is damaged: the key {key!r} stands behind {previous!r}")
            table[key] = value
            previous = key
    return table


def _handle(data: bytes, position: int) -> tuple[tuple[int, int], int]:
    """Returns `((offset, size), position behind it)` of the place of a block."""
    offset, position = varint(data, position)
    size, position = varint(data, position)
    return (offset, size), position


def _block(path: Path, data: bytes, offset: int, size: int) -> dict[bytes, bytes]:
    end = offset + size
    if end + _TRAILER > len(data) - _FOOTER:
        raise CheckpointError(
            f"{path} is cut off or damaged: a block of {size} bytes at byte {offset} does not fit into its {len(data)} bytes"
        )
    stored = int.from_bytes(data[end + 1 : end + _TRAILER], "little")
    if masked(crc32c(data[offset : end + 1])) != stored:
        raise CheckpointError(f"{path} is damaged: the block at byte {offset}, {size} bytes long, has another checksum")
    packing, content = data[end], data[offset:end]
    try:
        if packing == _SNAPPY:
            content = snappy.unpacked(content)
        elif packing != _UNPACKED:
            raise ValueError(f"it is packed in a way, {packing}, that this reader does not know")
        return dict(_entries(content))
    except ValueError as error:
        raise CheckpointError(f"{path}: the block at byte {offset} cannot be read: {error}") from error


def _entries(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    if len(block) < 4:
        raise ValueError("it is shorter than the count at its end")
    restarts = int.from_bytes(block[-4:], "little")  # places for a search, which a reader of all entries passes over
    end = len(block) - 4 - 4 * restarts
    if end < 0:
        raise ValueError(f"it has {restarts} places to start at, more than fit into it")
    position, key = 0, b""
    while position < end:
        shared, position = varint(block, position)
        unshared, position = varint(block, position)
        length, position = varint(block, position)
        if shared > len(key) or position + unshared + length > end:
            raise ValueError(f"the entry behind {key!r} runs past its end")
        key = key[:shared] + block[position : position + unshared]
        position += unshared
        yield key, block[position : position + length]
        position += length
