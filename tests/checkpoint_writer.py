"""A writer of TensorFlow's checkpoint files, as small and slow as can be, and independent of the reader.

Sorted tables with prefix-compressed keys, protocol buffers, and a checksum bit by bit.
"""

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

TYPES = {"float32": 1, "float64": 2, "int32": 3, "complex64": 8, "int64": 9, "bool": 10, "bfloat16": 14, "float16": 19}


def slow_checksum(data: bytes) -> int:
    """CRC-32C by its definition: division by the polynomial 0x1EDC6F41, lowest bit first."""
    remainder = 0xFFFFFFFF
    for byte in data:
        remainder ^= byte
        for _ in range(8):
            remainder = remainder >> 1 ^ 0x82F63B78 * (remainder & 1)
    return remainder ^ 0xFFFFFFFF


def stored(data: bytes) -> int:
    checksum = slow_checksum(data)
    rotated = int(f"{checksum:032b}"[-15:] + f"{checksum:032b}"[:-15], 2)
    return (rotated + 0xA282EAD8) % 2**32


def varint(number: int) -> bytes:
    number %= 2**64
    groups = [number >> shift & 127 for shift in range(0, max(number.bit_length(), 1), 7)]
    return bytes([group | 128 for group in groups[:-1]] + groups[-1:])


def message(*fields: tuple[int, Any]) -> bytes:
    """Numbers become varints, bytes and texts get their length; `("fixed", n)` becomes four bytes."""
    text = b""
    for number, value in fields:
        if isinstance(value, tuple):
            text += varint(number << 3 | 5) + struct.pack("<I", value[1])
        elif isinstance(value, int):
            text += varint(number << 3) + varint(value)
        else:
            content = value.encode() if isinstance(value, str) else value
            text += varint(number << 3 | 2) + varint(len(content)) + content
    return text


def block(entries: Sequence[tuple[bytes, bytes]], restart_every: int = 16) -> bytes:
    text, previous, restarts = b"", b"", []
    for index, (key, value) in enumerate(entries):
        shared = 0
        if index % restart_every == 0:
            restarts.append(len(text))
        else:
            while shared < min(len(key), len(previous)) and key[shared] == previous[shared]:
                shared += 1
        text += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        previous = key
    return text + struct.pack(f"<{len(restarts) + 1}I", *restarts, len(restarts))


def snappy_literals(data: bytes) -> bytes:
    """Snappy's format without a single copy."""
    pieces = [data[start : start + 60] for start in range(0, len(data), 60)]
    return varint(len(data)) + b"".join(bytes([len(piece) - 1 << 2]) + piece for piece in pieces)


def table(entries: Mapping[bytes, bytes], per_block: int = 3, packed: bool = False) -> bytes:
    ordered = sorted(entries.items())
    text, places = b"", []

    def put(content: bytes) -> bytes:
        nonlocal text
        content, kind = (snappy_literals(content), b"\1") if packed else (content, b"\0")
        place = varint(len(text)) + varint(len(content))
        text += content + kind + struct.pack("<I", stored(content + kind))
        return place

    for start in range(0, len(ordered), per_block):
        piece = ordered[start : start + per_block]
        places.append((piece[-1][0], put(block(piece))))
    notes = put(block([]))
    index = put(block(places, restart_every=1))
    return text + (notes + index).ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)


def entry(array: np.ndarray[Any, Any], offset: int, data: bytes, shard: int = 0, **changes: Any) -> bytes:
    sizes = message(*((2, message((1, size))) for size in array.shape))
    values = {"dtype": TYPES[array.dtype.name], "shape": sizes, "size": len(data), "checksum": stored(data)} | changes
    return message(
        (1, values["dtype"]), (2, values["shape"]), (3, shard), (4, offset), (5, values["size"]),
        (6, ("fixed", values["checksum"])),
    )  # fmt: skip


def write(
    prefix: Path,
    arrays: Mapping[str, np.ndarray[Any, Any]],
    shards: int = 1,
    big_endian: bool = False,
    header: bytes | None = None,
    **table_options: Any,
) -> None:
    """Writes a checkpoint of names, without objects: arrays go around the shards one by one."""
    files, entries = [b""] * shards, {b"": header or message((1, shards), (2, int(big_endian)), (3, message((1, 1))))}
    for index, (name, array) in enumerate(sorted(arrays.items())):
        data, shard = array.tobytes(), index % shards
        if big_endian:
            data = array.astype(array.dtype.newbyteorder(">")).tobytes()
        entries[name.encode()] = entry(array, len(files[shard]), data, shard)
        files[shard] += data
    prefix.with_name(f"{prefix.name}.index").write_bytes(table(entries, **table_options))
    for shard, content in enumerate(files):
        prefix.with_name(f"{prefix.name}.data-{shard:05d}-of-{shards:05d}").write_bytes(content)
