"""Streams: batches one after the other, with a position that can be saved.

A training loop reads all data through this one interface. `stream` adapts what people have to it: Grain's iterators,
torch's stateful loaders, pipelines and sequences, tf.data, generators. A stream hands out batches, says at any time
where it stands, and is put there again by another process; one that cannot says so.
"""

import abc
from collections.abc import Iterator
from typing import Any, TypeAlias, final

import numpy as np

from modulekit.data.arrays import Arrays
from modulekit.data.conversion import converted_batch
from modulekit.data.pipeline import Pipeline
from modulekit.data.sources import RandomAccess, Source, source_of

State: TypeAlias = dict[str, Any]


class Stream(abc.ABC):
    """Batches one after the other: an iterator that knows where it stands.

    A batch is a NumPy array or a nested tuple, list or dict of them, which share their first axis: `[batch, ...]`.

    >>> import itertools
    >>> from modulekit.data import Stream
    >>> class Zeros(Stream):
    ...     resumable = True
    ...     def __next__(self): return np.zeros([2])
    ...     def state(self): return {}
    ...     def restore(self, state): pass
    ...     def describe(self): return "zeros for ever"
    >>> [batch.tolist() for batch in itertools.islice(Zeros(), 2)]
    [[0.0, 0.0], [0.0, 0.0]]
    """

    resumable: bool

    @abc.abstractmethod
    def __next__(self) -> Any:
        """Returns the next batch, or raises `StopIteration` if there is none."""

    @abc.abstractmethod
    def state(self) -> State:
        """Returns the position after the last batch handed out, as JSON can hold it."""

    @abc.abstractmethod
    def restore(self, state: State) -> None:
        """Goes to a position that `state` returned, perhaps in another process."""

    @abc.abstractmethod
    def describe(self) -> str:
        """Returns one line: what it is, and whether it resumes exactly."""

    def __iter__(self) -> Iterator[Any]:
        """Returns itself: what is left."""
        return self


def stream(source: Any) -> Stream:
    """Adapts a source of batches to a `Stream`.

    An epoch that ends is followed by another one; an iterator cannot begin again and ends. Batches are converted to
    NumPy arrays of at most 32 bits per real number, as `Arrays` does, from tensors of PyTorch and TensorFlow as well.

    Args:
      source: one of: a `Stream`; a `Pipeline`, a list or another sequence of batches, which resume by their index; what
        has `state_dict` and `load_state_dict`, as torchdata's `StatefulDataLoader`; an iterator with `get_state` and
        `set_state`, or an iterable of such, as Grain's; any other iterable or iterator, which cannot resume; or a
        function that returns one and is called at each epoch.

    Returns:
      The stream.

    Raises:
      TypeError: if the source is none of these; arrays in memory are read by `IndexedBatches`.

    >>> import itertools
    >>> import modulekit as mk
    >>> batches = mk.data.stream([np.zeros([2]), np.ones([3])])
    >>> [len(batch) for batch in itertools.islice(batches, 5)]
    [2, 3, 2, 3, 2]
    >>> batches.state()
    {'kind': 'index', 'epoch': 2, 'batch': 1, 'position': 1}
    >>> batches.describe()
    'a sequence (list), which resumes exactly (by its index)'
    """
    if isinstance(source, Stream):
        return source
    if isinstance(source, Pipeline):
        return EpochStream(RandomAccess(source.elements, repr(source)))
    if isinstance(source, np.ndarray | tuple | dict | Arrays | str | bytes):
        raise TypeError(
            f"expected a source of batches, got {type(source).__name__}: {source!r:.200}; for arrays in memory, "
            f"IndexedBatches(Arrays(data), batch_size, seed), or pipeline(data).batch(batch_size)"
        )
    return EpochStream(source_of(source))


@final
class EpochStream(Stream):
    """A stream over the epochs of a source; made by `stream`."""

    def __init__(self, source: Source) -> None:
        """Opens nothing yet."""
        self._source = source
        self._iterator: Iterator[Any] | None = None
        self._epoch, self._batch = 0, 0
        self._restored: State | None = None  # until the next batch; some sources do not know it yet
        self.resumable = source.resumable

    def __next__(self) -> Any:
        """Returns the next batch, of the next epoch if this one is over."""
        try:
            batch = next(self._opened())
        except StopIteration:
            if not self._source.repeats:
                raise
            batch = self._first_of_next_epoch()
        self._batch += 1
        self._restored = None
        try:
            return converted_batch(batch)
        except (TypeError, ValueError) as error:
            error.add_note(f"in batch {self._batch - 1} of epoch {self._epoch} of {self._source.describe()}")
            raise

    def state(self) -> State:
        """Returns the position after the last batch handed out."""
        if self._restored is not None:
            return self._restored
        begun = self._batch > 0 or not self._source.repeats
        position = self._source.position(self._opened(), self._batch) if begun else None
        return {"kind": self._source.kind, "epoch": self._epoch, "batch": self._batch, "position": position}

    def restore(self, state: State) -> None:
        """Goes to a position of a stream of the same kind."""
        kind = state.get("kind")
        if kind != self._source.kind:
            raise ValueError(
                f"the position was saved from a source of kind {kind!r}, and this one is of kind "
                f"{self._source.kind!r}: {self._source.describe()}; give the source with which the run began"
            )
        self._epoch, self._batch = state["epoch"], state["batch"]
        if state["position"] is None:
            self._iterator = None
            if not self._source.resumable and self._source.repeats:
                self._batch = 0
        else:
            self._iterator = self._source.reopen(self._epoch, state["position"])
            self._restored = dict(state)

    def describe(self) -> str:
        """Says what the source is."""
        return self._source.describe()

    def __getstate__(self) -> dict[str, Any]:
        begun = self._batch > 0 or self._epoch > 0
        if begun and not self.resumable:
            raise TypeError(f"a stream that has begun cannot be copied or pickled where it stands: {self.describe()}")
        return {"source": self._source, "state": self.state() if begun else None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["source"])
        if state["state"] is not None:
            self.restore(state["state"])

    def _opened(self) -> Iterator[Any]:
        if self._iterator is None:
            self._iterator = self._source.open(self._epoch)
        return self._iterator

    def _first_of_next_epoch(self) -> Any:
        """Begins the next epoch; one without a batch would be an endless loop of them."""
        if self._batch:
            self._epoch, self._batch = self._epoch + 1, 0
            self._iterator = self._source.open(self._epoch)
            for batch in self._iterator:
                return batch
        raise ValueError(
            f"epoch {self._epoch} has no batch, of {self._source.describe()}; give a source with at least one batch, "
            f"which begins again each time it is iterated over"
        )
