"""The arrays of a state in safetensors files: whole, or in blocks where several processes have a part of them each."""

import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from modulekit.core.processes import is_in_parts
from modulekit.core.safetensors_layout import DTYPES
from modulekit.core.safetensors_reading import Tensors
from modulekit.errors import CheckpointError

Values = np.ndarray[Any, Any]
Ranges = Sequence[tuple[int, int]]  # of the indices along each axis


class Block(NamedTuple):
    """A part of an array, or all of it, and where it is.

    Attributes:
      array: the name of the array.
      file: the name of the file.
      key: the name in the file.
      start: the index of its first element in the array.
      shape: of the block.
      checksum: CRC-32 of its bytes.
    """

    array: str
    file: str
    key: str
    start: Sequence[int]
    shape: Sequence[int]
    checksum: int


def blocks_of(arrays: Mapping[str, Any], file: str, with_whole: bool = True) -> tuple[dict[str, Values], list[Block]]:
    """Returns what a process has to write of some arrays: values by their key in a file, and what they are.

    Args:
      arrays: by name.
      file: the name of the file.
      with_whole: whether arrays that this process has as a whole are among them.
    """
    values: dict[str, Values] = {}
    blocks = []
    for name, array in arrays.items():
        for start, part in _parts(array, with_whole):
            key = f"{name}@{','.join(map(str, start))}" if is_in_parts(array) else name
            while key in values or (key != name and key in arrays):
                key += "@"
            checksum = zlib.crc32(part.reshape(-1).view(np.uint8).data)
            values[key] = part if part.dtype in DTYPES.values() else part.reshape(-1).view(np.uint8)
            blocks.append(Block(name, file, key, start, part.shape, checksum))
    return values, blocks


def _parts(array: Any, with_whole: bool) -> Iterator[tuple[list[int], Values]]:
    """Yields where a part of an array begins, and its values; of a part that several devices have, one does so."""
    if is_in_parts(array):
        for shard in array.addressable_shards:
            if shard.replica_id == 0:
                yield [along.start or 0 for along in shard.index], np.asarray(shard.data, order="C")
    elif with_whole:
        yield [0] * np.ndim(array), np.asarray(array, order="C")


class StoredArray:
    """An array of a saved state, whose values are read when asked for.

    Args:
      shape: its shape.
      dtype: the name of its dtype.
      blocks: where its parts are.
      files: those of the state, by name.
      damaged: returns the error for bytes that are not there, or not those that were written.
    """

    def __init__(
        self,
        shape: Sequence[int],
        dtype: str,
        blocks: Iterable[Block],
        files: Mapping[str, Tensors],
        damaged: Callable[[], CheckpointError],
    ) -> None:
        self._shape, self._dtype, self._blocks = tuple(shape), jnp.dtype(dtype), list(blocks)
        self._files, self._damaged = files, damaged
        self._read: dict[str, Values] = {}  # by key

    def whole(self) -> Values:
        """Returns all of it.

        Raises:
          CheckpointError: a part is missing, or is not what was written.
        """
        return self._within(tuple(slice(None) for _ in self._shape))

    def placed(self, place: jax.sharding.Sharding) -> jax.Array:
        """Returns it as it is to lie; only what the devices of this process take is read.

        Raises:
          CheckpointError: as `whole`.
        """
        return jax.make_array_from_callback(self._shape, place, self._within)

    def _within(self, index: tuple[slice, ...] | None) -> Values:
        """Returns a part of the array, put together from the blocks that have something of it."""
        wanted = [along.indices(size)[:2] for along, size in zip(index or (), self._shape, strict=True)]
        found = np.empty([end - begin for begin, end in wanted], self._dtype)
        missing = found.size
        for block in self._blocks:
            ranges = [(first, first + size) for first, size in zip(block.start, block.shape, strict=True)]
            common = [(max(a, c), min(b, d)) for (a, b), (c, d) in zip(wanted, ranges, strict=True)]
            if all(low < high for low, high in common):
                found[_relative(common, wanted)] = self._values(block)[_relative(common, ranges)]
                missing -= math.prod(high - low for low, high in common)
        if missing:
            raise self._damaged()
        return found

    def _values(self, block: Block) -> Values:
        if block.key not in self._read:
            file = self._files.get(block.file)
            data = None if file is None or block.key not in file.entries else file.read(block.key)
            if data is None or zlib.crc32(data) != block.checksum:
                raise self._damaged()
            self._read[block.key] = np.frombuffer(data, np.uint8).view(self._dtype).reshape(block.shape)
        return self._read[block.key]


def _relative(part: Ranges, whole: Ranges) -> tuple[slice, ...]:
    """Returns which indices of `whole` are those of a part of it."""
    return tuple(slice(low - begin, high - begin) for (low, high), (begin, _) in zip(part, whole, strict=True))
