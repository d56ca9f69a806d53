"""Pipelines: examples mapped, shuffled, batched and repeated, in the order in which that is written.

A pipeline is a value: each operation returns another one, and none changes. Any of its elements can be computed at any
time without those before it, so that a run resumes in constant time, and threads may work ahead without changing a bit.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, final

import numpy as np

from modulekit.data.arrays import Arrays
from modulekit.data.order import MAX_KEY, checked_integer, epoch_order
from modulekit.data.stages import ArraySource, Batch, Map, Repeat, SequenceSource, Shuffle, Stage


@final
class Pipeline:
    """Examples and what is done to them; made by `pipeline`, and read by index, by iteration or by `stream`.

    Indices and iteration show the first epoch; `stream` shows one epoch after the other.

    Args:
      stage: the last operation.
      text: the pipeline as it was written.

    >>> import modulekit as mk
    >>> batches = mk.data.pipeline(np.arange(5)).map(lambda x: 10 * x).batch(2)
    >>> len(batches), batches[1], batches
    (3, array([20, 30], dtype=int32), pipeline(5 examples).map(<lambda>).batch(2))
    >>> [batch.tolist() for batch in batches]
    [[0, 10], [20, 30], [40]]
    """

    def __init__(self, stage: Stage, text: str) -> None:
        """Stores both."""
        self._stage, self._text = stage, text

    def map(self, function: Callable[..., Any], random: bool = False, seed: int = 0, workers: int = 0) -> "Pipeline":
        """Applies a function to each element.

        Args:
          function: of an element; or, if random, of an element and a `numpy.random.Generator`.
          random: whether the function draws random numbers. Its generator depends on the seed, the stage, the epoch and
            the element's index, and on nothing else.
          seed: of the random numbers.
          workers: how many threads compute elements of the whole pipeline ahead, in iteration and in `stream`; the most
            of all maps counts. The function must then be safe to call from several threads.

        Returns:
          The pipeline of the function's results, structures of arrays and numbers.
        """
        seed = checked_integer("seed", seed, 0, MAX_KEY)
        workers = checked_integer("workers", workers, 0)
        shown = ", random=True" if random else ""
        name = getattr(function, "__name__", type(function).__name__)
        return self._then(Map(self._stage, function, random, seed, workers), f"map({name}{shown})")

    def shuffle(self, seed: int) -> "Pipeline":
        """Puts the elements in the order of `epoch_order`: another one in each epoch.

        Args:
          seed: of the orders.

        Returns:
          The shuffled pipeline.
        """
        size = self._ending("shuffle")
        epoch_order(size, seed, 0)  # checks the seed
        return self._then(Shuffle(self._stage, size, seed), f"shuffle({seed})")

    def batch(self, size: int, drop_remainder: bool = False) -> "Pipeline":
        """Stacks consecutive elements.

        Args:
          size: the number of elements of a batch.
          drop_remainder: whether to leave out the last batch if it is smaller.

        Returns:
          The pipeline of batches, whose arrays have the shapes `[batch, ...]`.
        """
        size = checked_integer("size", size, 1)
        stage = Batch(self._stage, size, drop_remainder)
        if stage.length == 0:
            raise ValueError(
                f"{self!r} has {self._stage.length} elements, which is no whole batch of {size}; choose a smaller size, "
                f"or drop_remainder=False"
            )
        return self._then(stage, f"batch({size}{', drop_remainder=True' if drop_remainder else ''})")

    def repeat(self, epochs: int | None = None) -> "Pipeline":
        """Makes several epochs one, so that what follows, such as `batch`, does not stop at their ends.

        Args:
          epochs: how many; None for no end.

        Returns:
          The repeated pipeline.
        """
        epochs = None if epochs is None else checked_integer("epochs", epochs, 1)
        size = self._ending("repeat")
        return self._then(Repeat(self._stage, size, epochs), f"repeat({'' if epochs is None else epochs})")

    def elements(self, epoch: int = 0, start: int = 0) -> Iterator[Any]:
        """Iterates over an epoch from an element on; the time to begin does not depend on which.

        Args:
          epoch: the number of the epoch, from 0.
          start: the index of the first element.

        Returns:
          The elements, computed by as many threads as the maps ask for.
        """
        if self._stage.workers:
            return _computed_ahead(self._stage, epoch, start)
        return (self._stage.element(epoch, index) for index in _indices(start, self._stage.length))

    def __len__(self) -> int:
        """The number of elements of an epoch."""
        return self._ending("len")

    def __getitem__(self, index: int) -> Any:
        """Computes an element of the first epoch; negative indices count from the end."""
        length = self._stage.length
        position = index + length if index < 0 and length is not None else index
        if position < 0 or (length is not None and position >= length):
            found = "elements" if length is None else f"{length} elements"
            valid = "0 or more" if length is None else f"{-length} .. {length - 1}"
            raise IndexError(f"index {index} is outside the {found} of {self!r}; ask for {valid}")
        return self._stage.element(0, position)

    def __iter__(self) -> Iterator[Any]:
        """Iterates over the first epoch."""
        return self.elements()

    def __repr__(self) -> str:
        """Shows the operations as they were written."""
        return self._text

    def _then(self, stage: Stage, call: str) -> "Pipeline":
        return Pipeline(stage, f"{self._text}.{call}")

    def _ending(self, operation: str) -> int:
        if self._stage.length is None:
            raise TypeError(f"{self!r} has no end, and {operation} needs one; write repeat() after it, or leave it out")
        return self._stage.length


def pipeline(examples: Any) -> Pipeline:
    """Begins a pipeline.

    Args:
      examples: an `Arrays`, or an array, tuple or dict of arrays, of which each example is one row; or a list or another
        sequence (with `len` and indices), of which each example is one element.

    Returns:
      The pipeline of the examples.

    Raises:
      TypeError: if the examples have no length or no indices.
      ValueError: if there is no example.

    >>> import itertools
    >>> import modulekit as mk
    >>> images, labels = np.zeros([5, 8, 8]), np.arange(5)
    >>> augmented = lambda example, random: (example[0] + random.normal(size=[8, 8]), example[1])
    >>> batches = mk.data.pipeline((images, labels)).shuffle(seed=0).map(augmented, random=True).batch(2)
    >>> [labels.tolist() for _, labels in itertools.islice(mk.data.stream(batches), 6)]
    [[0, 2], [1, 4], [3], [3, 2], [4, 1], [0]]
    """
    if isinstance(examples, Arrays | np.ndarray | tuple | dict):
        arrays = Arrays(examples)
        return Pipeline(ArraySource(arrays), f"pipeline({arrays.size} examples)")
    if not (hasattr(examples, "__len__") and hasattr(examples, "__getitem__")) or isinstance(examples, str | bytes):
        raise TypeError(
            f"expected arrays or a sequence of examples (with len and indices), got {type(examples).__name__}: "
            f"{examples!r:.200}; for an iterable of batches, use stream"
        )
    if len(examples) == 0:
        raise ValueError(f"expected at least one example, got an empty {type(examples).__name__}; pass more data")
    return Pipeline(SequenceSource(examples), f"pipeline({len(examples)} examples)")


def _indices(start: int, length: int | None) -> Iterator[int]:
    index = start
    while length is None or index < length:
        yield index
        index += 1


def _computed_ahead(stage: Stage, epoch: int, start: int) -> Iterator[Any]:
    """Yields elements in order while threads compute those that follow."""
    pool = ThreadPoolExecutor(stage.workers, thread_name_prefix="pipeline")
    pending: deque[Future[Any]] = deque()
    try:
        for index in _indices(start, stage.length):
            pending.append(pool.submit(stage.element, epoch, index))
            if len(pending) > 2 * stage.workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
