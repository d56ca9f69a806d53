"""Tensors on disk as TensorFlow writes them: an index file, and shards that hold the bytes one after the other.

The index is a sorted table. Its first entry, under the empty key, is the header; each other one says of one tensor what
it is and where its bytes are. Reading is lazy: a tensor's bytes are read, and held against their checksum, when asked for.
"""

import itertools
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from modulekit.errors import CheckpointError
from modulekit.sonnet import slices
from modulekit.sonnet.crc32c import crc32c, masked
from modulekit.sonnet.sstable import read_table
from modulekit.sonnet.wire import content, fields, number, signed, varint

Array = np.ndarray[Any, np.dtype[Any]]

_STRING = 7
_BUNDLE_VERSION = 1  # the newest that this reader knows
_DTYPES = {
    1: np.float32, 2: np.float64, 3: np.int32, 4: np.uint8, 5: np.int16, 6: np.int8, _STRING: np.object_,
    8: np.complex64, 9: np.int64, 10: np.bool_, 14: ml_dtypes.bfloat16, 17: np.uint16, 18: np.complex128,
    19: np.float16, 22: np.uint32, 23: np.uint64, 24: ml_dtypes.float8_e5m2, 25: ml_dtypes.float8_e4m3fn,
}  # fmt: skip


class Entry(NamedTuple):
    """What the index says of one tensor."""

    type_number: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    checksum: int
    parts: tuple[tuple[slices.Extent, ...], ...]

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype; that of objects for strings, which are read as `bytes`, and for types that NumPy does not have."""
        return np.dtype(_DTYPES.get(self.type_number, np.object_))


class Bundle:
    """An index, and the files that it points into.

    Args:
      prefix: the path of the files up to `.index`.

    Attributes:
      entries: by key.

    Raises:
      FileNotFoundError: there is no such index; the message lists those beside it.
      CheckpointError: it is damaged, or a shard is missing.
    """

    def __init__(self, prefix: str | os.PathLike[str]) -> None:
        self.prefix = Path(prefix)
        self._index = self.prefix.with_name(f"{self.prefix.name}.index")
        if not self._index.exists():
            raise FileNotFoundError(_no_index(self._index))
        table = read_table(self._index)
        if b"" not in table:
            raise CheckpointError(f"{self._index} is no index of a TensorFlow checkpoint: it has no header")
        self._shards, self._is_big_endian = self._parsed("its header", _header, table.pop(b""))
        all_entries = {key: self._parsed(f"the entry of {key!r}", _entry, value) for key, value in table.items()}
        self._parts = {key: entry for key, entry in all_entries.items() if key.startswith(b"\0")}
        self.entries: dict[str, Entry] = {
            self._parsed(f"the key {key!r}", bytes.decode, key): entry
            for key, entry in all_entries.items()
            if key not in self._parts
        }
        for shard in sorted({entry.shard for entry in all_entries.values() if not entry.parts}):
            self._shard_path(shard)

    def read(self, key: str) -> Array:
        """Returns a tensor as an array of its own; an array of `bytes` for strings.

        Raises:
          CheckpointError: the bytes are missing or damaged, or of a type that arrays cannot have.
        """
        entry = self.entries[key]
        if not entry.parts:
            return self._read_one(key, entry)
        joined, is_there = np.empty(entry.shape, entry.dtype), np.zeros(entry.shape, np.bool_)
        for extents in entry.parts:
            part = self._parts.get(slices.key(key, extents))
            if part is None or part.parts or part.type_number != entry.type_number:
                raise CheckpointError(
                    f"{self._index} is damaged: the slice {_shown(extents)} of tensor {key!r} is missing"
                )
            try:
                region = slices.region(extents, entry.shape)
                if part.shape != joined[region].shape:
                    raise ValueError(f"a slice {_shown(extents)} of shape {list(part.shape)}")
                joined[region] = self._read_one(f"{key}{_shown(extents)}", part)
            except ValueError as error:
                raise CheckpointError(f"{self._index} is damaged: tensor {key!r} has {error}") from error
            is_there[region] = True
        if not is_there.all():
            raise CheckpointError(
                f"{self._index} is damaged: the slices of tensor {key!r} hold {is_there.sum()} of its {joined.size} values"
            )
        return joined

    def _read_one(self, key: str, entry: Entry) -> Array:
        self._check_readable(key, entry)
        path = self._shard_path(entry.shard)
        with path.open("rb") as file:
            length = file.seek(0, os.SEEK_END)
            if entry.offset + entry.size > length:
                raise CheckpointError(
                    f"{path} is cut off: tensor {key!r} has its {entry.size} bytes at byte {entry.offset}, and the file "
                    f"ends at {length}"
                )
            data = bytearray(entry.size)
            file.seek(entry.offset)
            file.readinto(data)
        strings: list[bytes] = []
        checked = memoryview(data)
        if entry.type_number == _STRING:
            split = self._parsed(f"tensor {key!r}", lambda raw: _strings(raw, math.prod(entry.shape)), bytes(data))
            checked, strings = memoryview(split[0]), split[1]
        if masked(crc32c(checked)) != entry.checksum:
            raise CheckpointError(
                f"{path} is damaged: the {entry.size} bytes of tensor {key!r} at byte {entry.offset} have another checksum "
                "than when they were written"
            )
        if entry.type_number != _STRING:
            return self._numbers(data, entry.dtype).reshape(entry.shape)
        array = np.empty([len(strings)], np.object_)
        array[:] = strings
        return array.reshape(entry.shape)

    def _numbers(self, data: bytearray, dtype: np.dtype[Any]) -> Array:
        if not self._is_big_endian:
            return np.frombuffer(data, dtype)
        unit = dtype.itemsize // 2 if dtype.kind == "c" else dtype.itemsize
        return np.frombuffer(data, f"<u{unit}").byteswap().view(dtype)

    def _check_readable(self, key: str, entry: Entry) -> None:
        if entry.type_number not in _DTYPES:
            raise CheckpointError(
                f"tensor {key!r} of {self.prefix} is of TensorFlow's type {entry.type_number}, for which there is no array"
            )
        if entry.type_number == _STRING and self._is_big_endian:
            raise CheckpointError(f"tensor {key!r} of {self.prefix} holds strings, written on a big-endian machine")
        size = math.prod(entry.shape) * entry.dtype.itemsize
        if entry.type_number != _STRING and entry.size != size:
            raise CheckpointError(
                f"{self._index} is damaged: tensor {key!r} of shape {list(entry.shape)} has {size} bytes, not {entry.size}"
            )

    def _shard_path(self, shard: int) -> Path:
        path = self.prefix.with_name(f"{self.prefix.name}.data-{shard:05d}-of-{self._shards:05d}")
        if not path.is_file():
            lost = [key for key, entry in self.entries.items() if entry.shard == shard and not entry.parts]
            raise CheckpointError(f"{path} is missing, and with it {', '.join(map(repr, lost)) or 'parts of tensors'}")
        return path

    def _parsed(self, what: str, parse: Callable[[bytes], Any], data: bytes) -> Any:
        try:
            return parse(data)
        except ValueError as error:
            raise CheckpointError(f"{self.prefix}: {what} cannot be read: {error}") from error


def _header(message: bytes) -> tuple[int, bool]:
    """Returns how many shards there are, and whether their numbers are big-endian."""
    shards, byte_order, needed = 0, 0, 0
    for field, value in fields(message):
        if field == 1:
            shards = number(value)
        elif field == 2:
            byte_order = number(value)
        elif field == 3:
            needed = sum(number(v) for f, v in fields(content(value)) if f == 2)
    if needed > _BUNDLE_VERSION:
        raise ValueError(
            f"a reader of version {needed} or newer is needed, and this one is of version {_BUNDLE_VERSION}"
        )
    if byte_order not in (0, 1):
        raise ValueError(f"{byte_order} is no order of bytes")
    return shards, byte_order == 1


def _entry(message: bytes) -> Entry:
    numbers = {1: 0, 3: 0, 4: 0, 5: 0, 6: 0}
    shape: tuple[int, ...] = ()
    parts: list[tuple[slices.Extent, ...]] = []
    for field, value in fields(message):
        if field in numbers:
            numbers[field] = number(value)
        elif field == 2:
            shape = _shape(content(value))
        elif field == 7:
            parts.append(slices.parse(content(value)))
    return Entry(numbers[1], shape, numbers[3], numbers[4], numbers[5], numbers[6], tuple(parts))


def _shape(message: bytes) -> tuple[int, ...]:
    sizes = []
    for field, value in fields(message):
        if field == 2:
            sizes.append(sum(signed(v) for f, v in fields(content(value)) if f == 1))
        if field == 3 and number(value):
            raise ValueError("its rank is unknown")
    if any(size < 0 for size in sizes):
        raise ValueError(f"its shape is {sizes}")
    return tuple(sizes)


def _strings(data: bytes, count: int) -> tuple[bytes, list[bytes]]:
    """Returns what the checksum of a tensor of strings is taken of, and the strings.

    On disk stand the lengths as varints, a checksum of them, and the strings. The checksum of the tensor is taken of lengths
    in four bytes each, eight where they do not suffice, so that it covers what the other one does.
    """
    lengths, position = [], 0
    for _ in range(count):
        length, position = varint(data, position)
        lengths.append(length)
    fixed = b"".join(length.to_bytes(4 if length < 1 << 32 else 8, "little") for length in lengths)
    start = position + 4
    if start + sum(lengths) != len(data):
        raise ValueError(f"its strings take {start + sum(lengths)} bytes, not {len(data)}")
    ends = np.cumsum([start, *lengths]).tolist()
    strings = [data[begin:end] for begin, end in itertools.pairwise(ends)]
    return fixed + data[position:], strings


def _shown(extents: tuple[slices.Extent, ...]) -> str:
    return f"[{', '.join(f'{e.start}:{e.start + e.length}' if e.length != slices.WHOLE else ':' for e in extents)}]"


def _no_index(index: Path) -> str:
    beside = sorted(path.with_suffix("").name for path in index.parent.glob("*.index"))
    inside = sorted(path.with_suffix("").name for path in index.with_suffix("").glob("*.index"))
    text = f"there is no {index}: give the path that TensorFlow's `save` or `write` returned, without `.index`"
    if inside:
        return f"{text}. {index.with_suffix('')} is a directory, with the checkpoints {', '.join(inside)}"
    return f"{text}. There are the checkpoints {', '.join(beside)} beside it" if beside else text
