"""The stages of a pipeline: each computes any element of any epoch from the stage before it, and keeps nothing.

An element is a function of (epoch, index) alone. So a position is two integers, elements may be computed in any order
or at once, and a random change of an example is the same in every run that comes by it.
"""

import abc
from collections.abc import Callable, Sequence
from typing import Any, final

import numpy as np

from modulekit.data.arrays import Arrays
from modulekit.data.conversion import to_numpy
from modulekit.data.order import epoch_order
from modulekit.data.structure import map_leaves, stack

_EXAMPLE = "example"


class Stage(abc.ABC):
    """One step of a pipeline.

    Attributes:
      length: the number of elements of an epoch; None if there is no end.
      depth: the number of stages before it.
      workers: the number of threads that its function asks for.
    """

    length: int | None
    depth: int
    workers: int

    @abc.abstractmethod
    def element(self, epoch: int, index: int) -> Any:
        """Computes one element."""

    @abc.abstractmethod
    def gather(self, epoch: int, indices: Sequence[int]) -> Any:
        """Computes elements, stacked along a new first axis."""


@final
class ArraySource(Stage):
    """The examples of arrays."""

    depth, workers = 0, 0

    def __init__(self, arrays: Arrays) -> None:
        self._arrays, self.length = arrays, arrays.size

    def element(self, epoch: int, index: int) -> Any:
        """Takes a copy of one example."""
        return self._arrays.take(index)

    def gather(self, epoch: int, indices: Sequence[int]) -> Any:
        """Gathers all at once."""
        return self._arrays.take(np.asarray(indices))


@final
class SequenceSource(Stage):
    """The elements of a sequence."""

    depth, workers = 0, 0

    def __init__(self, examples: Sequence[Any]) -> None:
        self._examples, self.length = examples, len(examples)

    def element(self, epoch: int, index: int) -> Any:
        """Indexes the sequence."""
        return self._examples[index]

    def gather(self, epoch: int, indices: Sequence[int]) -> Any:
        """Stacks."""
        return _stacked(self, epoch, indices)


@final
class Map(Stage):
    """A function of each element; of (element, generator) if it is random."""

    def __init__(self, parent: Stage, function: Callable[..., Any], random: bool, seed: int, workers: int) -> None:
        self._parent, self._function, self._random, self._seed = parent, function, random, seed
        self.length, self.depth = parent.length, parent.depth + 1
        self.workers = max(workers, parent.workers)

    def element(self, epoch: int, index: int) -> Any:
        """Applies the function."""
        example = self._parent.element(epoch, index)
        return self._function(example, self._generator(epoch, index)) if self._random else self._function(example)

    def gather(self, epoch: int, indices: Sequence[int]) -> Any:
        """Stacks."""
        return _stacked(self, epoch, indices)

    def _generator(self, epoch: int, index: int) -> np.random.Generator:
        # The counter's upper words tell elements, and stages of one seed, apart; the lower ones count the draws. The
        # orders of epochs have the same key, and the upper words 0, which no stage has.
        key = np.array([self._seed, epoch], np.uint64)
        return np.random.Generator(np.random.Philox(key=key, counter=np.array([0, 0, index, self.depth], np.uint64)))


@final
class Shuffle(Stage):
    """Another order in each epoch."""

    def __init__(self, parent: Stage, size: int, seed: int) -> None:
        self._parent, self.length, self._seed = parent, size, seed
        self._size = size
        self.depth, self.workers = parent.depth + 1, parent.workers

    def element(self, epoch: int, index: int) -> Any:
        """Looks up the order."""
        return self._parent.element(epoch, int(epoch_order(self._size, self._seed, epoch)[index]))

    def gather(self, epoch: int, indices: Sequence[int]) -> Any:
        """Looks up all at once."""
        return self._parent.gather(epoch, epoch_order(self._size, self._seed, epoch)[np.asarray(indices)].tolist())


@final
class Batch(Stage):
    """Consecutive elements, stacked."""

    def __init__(self, parent: Stage, size: int, drop_remainder: bool) -> None:
        self._parent, self._size = parent, size
        self.length = None
        if parent.length is not None:
            self.length = parent.length // size if drop_remainder else -(-parent.length // size)
        self.depth, self.workers = parent.depth + 1, parent.workers

    def element(self, epoch: int, index: int) -> Any:
        """Gathers a batch; the last one may be smaller."""
        stop = (index + 1) * self._size
        stop = stop if self._parent.length is None else min(stop, self._parent.length)
        return self._parent.gather(epoch, range(index * self._size, stop))

    def gather(self, epoch: int, indices: Sequence[int]) -> Any:
        """Stacks batches of batches."""
        return _stacked(self, epoch, indices)


@final
class Repeat(Stage):
    """Several epochs, or all, as one."""

    def __init__(self, parent: Stage, size: int, epochs: int | None) -> None:
        self._parent, self._size, self._epochs = parent, size, epochs
        self.length = None if epochs is None else size * epochs
        self.depth, self.workers = parent.depth + 1, parent.workers

    def element(self, epoch: int, index: int) -> Any:
        """Finds the epoch of the stage before."""
        return self._parent.element(self._inner(epoch, index), index % self._size)

    def gather(self, epoch: int, indices: Sequence[int]) -> Any:
        """Gathers at once what lies in one epoch."""
        epochs = {self._inner(epoch, index) for index in indices}
        if len(epochs) > 1:
            return _stacked(self, epoch, indices)
        return self._parent.gather(epochs.pop(), [index % self._size for index in indices])

    def _inner(self, epoch: int, index: int) -> int:
        return epoch * (self._epochs or 0) + index // self._size


def _stacked(stage: Stage, epoch: int, indices: Sequence[int]) -> Any:
    elements = [map_leaves(to_numpy, stage.element(epoch, index), _EXAMPLE) for index in indices]
    return stack(elements, _EXAMPLE)
