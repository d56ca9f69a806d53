"""The checksum of TensorFlow's files: CRC-32C (Castagnoli), over NumPy.

A checksum with a start of zero is linear: that of `a + b` is that of `a`, moved on by the length of `b`, plus that of `b`,
where plus is exclusive or. So the bytes are read as rows of words, each column runs for itself, and in the end the
columns are folded in halves. Moving on by a fixed length is a linear map of 32 bits, looked up byte by byte.
"""

import functools
from typing import Any

import numpy as np

_POLYNOMIAL = 0x82F63B78  # bits reversed, as is the whole computation
_MASK_DELTA = 0xA282EAD8
_COLUMNS = 1 << 14  # words in a row: long enough that NumPy's cost per call is small, short enough for the cache
_SMALL = 1 << 10  # bytes below which a plain loop is quicker

Array = np.ndarray[Any, np.dtype[Any]]


def crc32c(data: bytes | memoryview) -> int:
    """Returns the CRC-32C of bytes.

    >>> hex(crc32c(b"123456789"))
    '0xe3069283'
    """
    if len(data) < _SMALL:
        return _plain(data)
    first, rows = _rows(data)
    words, advance = first.copy(), _move(4 * _COLUMNS)
    for row in rows:
        words = _moved(advance, words)
        words ^= row
    columns = _COLUMNS
    while columns > 1:
        columns //= 2
        words = _moved(_move(4 * columns), words[:columns]) ^ words[columns:]
    return int(_moved(_move(4), words)[0]) ^ 0xFFFFFFFF


def _plain(data: bytes | memoryview) -> int:
    table, state = _byte_table(), 0xFFFFFFFF
    for byte in bytes(data):
        state = table[(state ^ byte) & 0xFF] ^ (state >> 8)
    return state ^ 0xFFFFFFFF


def masked(checksum: int) -> int:
    """Returns a checksum in the form in which it is stored, so that checksums of bytes with checksums stay good ones."""
    return (((checksum >> 15) | (checksum << 17)) + _MASK_DELTA) & 0xFFFFFFFF


def _rows(data: bytes | memoryview) -> tuple[Array, Array]:
    """Returns the words of the bytes in rows: the first row, with zeros before it, and the others.

    Zeros in front do not change a checksum that starts at zero. The start of all ones is the same as the first four bytes
    inverted.
    """
    width = 4 * _COLUMNS
    first = len(data) % width or width
    start = np.zeros(2 * width, np.uint8)
    start[width - first : width] = np.frombuffer(data, np.uint8, first)
    rest = np.frombuffer(data, np.dtype("<u4"), (len(data) - first) // 4, first).reshape(-1, _COLUMNS)
    inverted = min(4, first)
    start[width - first : width - first + inverted] ^= 0xFF
    if inverted < 4:  # the first four bytes reach into the next row
        rest = rest.copy()
        rest.view(np.uint8)[0, : 4 - inverted] ^= 0xFF
    return start[:width].view(np.dtype("<u4")), rest


def _moved(tables: Array, words: Array) -> Array:
    parts = np.ascontiguousarray(words, np.dtype("<u4")).view(np.uint8).reshape(-1, 4)
    return tables[0][parts[:, 0]] ^ tables[1][parts[:, 1]] ^ tables[2][parts[:, 2]] ^ tables[3][parts[:, 3]]


@functools.cache
def _byte_table() -> list[int]:
    table = []
    for state in range(256):
        for _ in range(8):
            state = (state >> 1) ^ (_POLYNOMIAL if state & 1 else 0)
        table.append(state)
    return table


@functools.cache
def _move(length: int) -> Array:
    """Returns the tables, `[4, 256]`, that move a checksum on by a number of zero bytes, a power of two."""
    if length == 1:
        table = _byte_table()
        images = [table[(1 << bit) & 0xFF] ^ ((1 << bit) >> 8) for bit in range(32)]
    else:
        half = _move(length // 2)
        images = [int(word) for word in _moved(half, _moved(half, np.left_shift(1, np.arange(32)).astype(np.uint32)))]
    tables = np.zeros([4, 256], np.uint32)
    for part in range(4):
        for bit in range(8):
            tables[part, 1 << bit : 2 << bit] = tables[part, : 1 << bit] ^ images[8 * part + bit]
    return tables
