"""Where the examples of the next steps come from.

A feed hands out chunks: the examples of a few steps that one program runs. Step `i` of a chunk takes `source[rows[i]]`:
where all examples are on the device, `source` is all of them and a row lists those of a step; where batches come from the
host, `source` is a stack of batches and a row the number of one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from modulekit.data import Arrays, batch_indices

Indices = np.ndarray[Any, Any]

_SHARE = 0.5  # of the device's free memory that examples may take


@dataclass(frozen=True)
class Chunk:
    """The examples of a few steps.

    Attributes:
      count: how many steps they are for.
      source: arrays on the device, of any structure.
      rows: `[capacity, ...]`, integers: what each step takes of `source`; those after `count` mean nothing.
      indices: `[count, batch]`: which examples of the data they are; None where that is not known.
      positions: of the stream after each step, in its own words; empty where the step alone says it.
    """

    count: int
    source: Any
    rows: Indices
    indices: Indices | None = None
    positions: Sequence[Any] = field(default=())

    def batch(self, index: int) -> Any:
        """Returns the examples of a step."""
        return jax.tree.map(lambda array: array[self.rows[index]], self.source)

    def position_after(self, count: int) -> Any:
        """Returns the position of the stream after the first `count` steps; None where there is none to tell."""
        return self.positions[count] if self.positions else None


class Feed(Protocol):
    """Brings the examples of training."""

    batch: Any  # the structure of a batch, of `jax.ShapeDtypeStruct`s

    def take(self, step: int, count: int, capacity: int) -> Chunk | None:
        """Returns the examples of up to `count` steps from `step` on, with `capacity` rows; None where there are no more."""

    def return_from(self, chunk: Chunk, index: int) -> None:
        """Takes back the examples of the steps of a chunk from `index` on, which did not run."""

    def close(self) -> None:
        """Ends what brings the examples."""


class Resident:
    """All examples are on the device; which of them a step takes is a function of the seed and the step."""

    def __init__(self, data: Arrays, batch_size: int, seed: int) -> None:
        self._size, self._batch_size, self._seed = data.size, batch_size, seed
        self._source = jax.tree.map(jnp.asarray, data.arrays)
        self.batch = specification(data, batch_size)

    def take(self, step: int, count: int, capacity: int) -> Chunk:
        """Returns the examples of `count` steps."""
        indices = batch_indices(self._size, self._batch_size, self._seed, step, count)
        rows = np.zeros((capacity, self._batch_size), np.int32)
        rows[:count] = indices
        return Chunk(count, self._source, rows, indices)

    def return_from(self, chunk: Chunk, index: int) -> None:
        """Does nothing: the step says what comes next."""

    def close(self) -> None:
        """Does nothing."""


def specification(data: Arrays, batch_size: int) -> Any:
    """Returns the structure of a batch of the data."""
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct((batch_size, *a.shape[1:]), a.dtype), data.arrays)


def fits_on_device(data: Arrays) -> bool:
    """Returns whether the examples take no more than half of the device's free memory; true where that is the host's."""
    statistics = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" not in statistics:
        return True
    free = statistics["bytes_limit"] - statistics.get("bytes_in_use", 0)
    return sum(array.nbytes for _, array in data.leaves) <= _SHARE * free
