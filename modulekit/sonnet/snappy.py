"""Snappy's raw format, read: blocks of old index files may be packed in it.

The length of the result as a varint, then literals, and copies of what has come out already.
"""

from modulekit.sonnet.wire import varint


def unpacked(data: bytes) -> bytes:
    """Returns what was packed.

    Raises:
      ValueError: the data are damaged.

    >>> unpacked(bytes([6, 4, 97, 98, 1, 2]))  # "ab", then four bytes from two bytes back
    b'ababab'
    """
    length, position = varint(data, 0)
    result = bytearray()
    while position < len(data):
        tag = data[position]
        position += 1
        kind, size = tag & 3, (tag >> 2) + 1
        if kind == 0:
            extra = max(0, size - 60)  # a long literal has its length in one to four bytes of its own
            if extra:
                size = int.from_bytes(_taken(data, position, extra), "little") + 1
            result += _taken(data, position + extra, size)
            position += extra + size
            continue
        offset_bytes = {1: 1, 2: 2, 3: 4}[kind]
        offset = int.from_bytes(_taken(data, position, offset_bytes), "little")
        position += offset_bytes
        if kind == 1:
            size, offset = ((tag >> 2) & 7) + 4, ((tag >> 5) << 8) | offset
        if not 1 <= offset <= len(result):
            raise ValueError(f"a copy from {offset} bytes back, of {len(result)} that there are")
        for _ in range(size):  # the copy may overlap with what it makes
            result.append(result[-offset])
        if len(result) > length:
            break
    if len(result) != length:
        raise ValueError(f"unpacked to {len(result)} bytes and more, not to {length} as announced")
    return bytes(result)


def _taken(data: bytes, position: int, size: int) -> bytes:
    taken = data[position : position + size]
    if len(taken) < size:
        raise ValueError(f"the packed data end {size - len(taken)} bytes too early")
    return taken
