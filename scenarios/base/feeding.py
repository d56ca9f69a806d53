"""Where the examples of the next steps come from.

A feed hands out chunks: the examples of a few steps that one program runs. Step `i` of a chunk takes `source[rows[i]]`:
where all examples are on the device, `source` is all of them and a row lists those of a step; where batches come from the
host, `source` is a stack of batches and a row the number of one.
"""

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from modulekit.core.processes import put
from modulekit.data import Arrays, Group, Prefetch, Stream
from scenarios.base.batches import Choose, ChosenBatches, Indices

PlaceOf = Callable[[tuple[int, ...]], jax.sharding.Sharding | None]

_STACK = 2**24  # bytes of a stack of batches: many steps a call, and little memory
_MOST = 500  # batches of a stack
_SHARE = 0.5  # of the device's free memory that examples may take


@dataclass(frozen=True)
class Chunk:
    """The examples of a few steps.

    Attributes:
      count: how many steps they are for.
      source: arrays on the device, of any structure.
      rows: `[capacity, ...]`, integers: what each step takes of `source`; those after `count` mean nothing.
      indices: `[count, ..., batch]`: which examples of the data they are; None where that is not known.
      positions: `[count + 1]`, of the stream before the first step and after each; empty where the step alone says it.
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

    def prepare(self) -> None:
        """Gets ready for the next chunk, while the program with the last one runs."""

    def return_from(self, chunk: Chunk, index: int) -> None:
        """Takes back the examples of the steps of a chunk from `index` on, which did not run."""

    def close(self) -> None:
        """Ends what brings the examples."""


class Resident:
    """All examples are on the device; which of them a step takes is a function of the step."""

    def __init__(self, data: Arrays, choose: Choose, place: Any = None) -> None:
        self._choose = choose
        arrays = jax.tree.map(jnp.asarray, data.arrays) if place is None else put(data.arrays, place)
        self._source = arrays
        self.batch = specification(data, choose(0, 1).shape[1:])

    def take(self, step: int, count: int, capacity: int) -> Chunk:
        """Returns the examples of `count` steps."""
        indices = self._choose(step, count)
        rows = np.zeros((capacity, *indices.shape[1:]), np.int32)
        rows[:count] = indices
        return Chunk(count, self._source, rows, indices)

    def prepare(self) -> None:
        """Does nothing: all is there."""

    def return_from(self, chunk: Chunk, index: int) -> None:
        """Does nothing: the step says what comes next."""

    def close(self) -> None:
        """Does nothing."""


class Fed:
    """Batches come from the host, drawn ahead by a thread, and are put on the device in stacks.

    The next stack is put there while the program with the last batches of this one runs.

    Args:
      stream: the batches.
      indices: which examples the batches are of, where that is known. The stream's position is then a function of the
        step, and is not told.
      place: returns the sharding of a stack from its shape; None for JAX's own choice.

    Raises:
      ValueError: the stream has no batch.
    """

    def __init__(self, stream: Stream, indices: Choose | None = None, place: PlaceOf | None = None) -> None:
        self._indices, self._place = indices, place
        self._prefetch = Prefetch(stream, group=1)
        before = self._prefetch.state
        try:
            first = self._prefetch.take(1)
        except StopIteration:
            raise ValueError(f"the data has no batch: {stream.describe()}") from None
        self.batch = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), first.arrays)
        self._most = batches_in_stack(self.batch)
        self._stack: _Stack | None = self._stacked(first, before)
        self._next: _Stack | None = None

    def take(self, step: int, count: int, capacity: int) -> Chunk | None:
        """Returns the next batches: fewer than `count` where the stack ends, or the next batch has another shape."""
        if self._stack is not None and not self._stack.left:
            self._stack, self._next = self._next or self._load(), None
        if self._stack is None:
            return None
        capacity = 1 if self._stack.is_odd else capacity
        chunk = self._stack.take(min(count, capacity), capacity)
        if self._indices is None:
            return chunk
        return replace(chunk, indices=self._indices(step, chunk.count), positions=())

    def prepare(self) -> None:
        """Puts the next stack on the device, if this one is used up."""
        if self._stack is not None and not self._stack.left and self._next is None:
            with contextlib.suppress(Exception):  # the data's, raised again by `take`: the steps that ran still count
                self._next = self._load()

    def return_from(self, chunk: Chunk, index: int) -> None:
        """Keeps the batches that did not run for the next chunk."""
        if self._stack is not None:
            self._stack.taken -= chunk.count - index

    def close(self) -> None:
        """Ends the thread."""
        self._prefetch.close()

    def _load(self) -> "_Stack | None":
        """Returns the next stack: what has been drawn so far, so that slow data holds up no step that could run."""
        before = self._prefetch.state
        try:
            return self._stacked(self._prefetch.take(self._most, then=self._most, least=1), before)
        except StopIteration:
            return None

    def _stacked(self, group: Group, before: Any) -> "_Stack":
        specification = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), group.arrays)
        is_odd = bool(specification != self.batch)
        size = group.count if is_odd else self._most
        padded = jax.tree.map(lambda array: _padded(array, size), group.arrays)
        of = self._place
        places = None if of is None else jax.tree.map(lambda array: of(array.shape), padded)
        source = put(padded, places, may_alias=False)
        return _Stack(source, [before, *group.states], is_odd)


@dataclass
class _Stack:
    """Batches on the device, and how many of them have been taken."""

    source: Any
    positions: list[Any]
    is_odd: bool
    taken: int = 0

    @property
    def left(self) -> int:
        return len(self.positions) - 1 - self.taken

    def take(self, count: int, capacity: int) -> Chunk:
        count, first = min(count, self.left), self.taken
        self.taken += count
        rows = np.zeros(capacity, np.int32)
        rows[:count] = np.arange(first, first + count)
        return Chunk(count, self.source, rows, None, self.positions[first : first + count + 1])


def _padded(array: Any, size: int) -> Any:
    if len(array) == size:
        return array
    padded = np.zeros((size, *array.shape[1:]), array.dtype)
    padded[: len(array)] = array
    return padded


def arrays_feed(
    data: Arrays,
    choose: Choose,
    step: int,
    on_device: bool | None,
    everywhere: Any = None,
    place: PlaceOf | None = None,
) -> Feed:
    """Returns the feed of examples in memory, from a step on.

    Args:
      data: the examples.
      choose: which of them an update takes.
      step: the first step.
      on_device: whether all of them are put on the device; None: if they fit.
      everywhere: the sharding of all of them; None for JAX's own choice.
      place: as for `Fed`.
    """
    if fits_on_device(data) if on_device is None else on_device:
        return Resident(data, choose, everywhere)
    return Fed(ChosenBatches(data, choose, step), choose, place)


def specification(data: Arrays, shape: tuple[int, ...]) -> Any:
    """Returns the structure of a batch of the data, of the shape `[..., batch]` before that of an example."""
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct((*shape, *a.shape[1:]), a.dtype), data.arrays)


def batches_in_stack(batch: Any) -> int:
    """Returns how many batches are put on the device at once, from the structure of one."""
    size = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(batch))
    return min(_MOST, max(1, _STACK // max(size, 1)))


def stack_specification(batch: Any) -> Any:
    """Returns the structure of such a stack."""
    count = batches_in_stack(batch)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((count, *leaf.shape), leaf.dtype), batch)


def fits_on_device(data: Arrays) -> bool:
    """Returns whether the examples take no more than half of the device's free memory; true where that is the host's."""
    statistics = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" not in statistics:
        return True
    return fits_in(data, statistics["bytes_limit"] - statistics.get("bytes_in_use", 0))


def fits_in(data: Arrays, free: int) -> bool:
    """Returns whether the examples take no more than half of so many bytes."""
    return sum(array.nbytes for _, array in data.leaves) <= _SHARE * free
