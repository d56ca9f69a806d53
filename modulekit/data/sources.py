"""The protocols by which a source of batches tells its position, each behind the same four verbs.

A source begins an epoch (`open`), tells where its iterator stands (`position`) and begins at such a position
(`reopen`). It keeps no count of its own: epochs and batches are counted by the stream that reads it.
"""

import abc
from collections.abc import Callable, Iterable, Iterator
from typing import Any, final

from modulekit.data.encoding import decode_state, encode_state


class Source(abc.ABC):
    """Where the batches of a stream come from.

    Attributes:
      kind: the protocol's name, which stands in a saved position.
      resumable: whether `reopen` goes on exactly where `position` was taken.
      repeats: whether another epoch can be opened.
    """

    kind: str
    resumable: bool
    repeats: bool

    @abc.abstractmethod
    def open(self, epoch: int) -> Iterator[Any]:
        """Begins an epoch."""

    @abc.abstractmethod
    def position(self, iterator: Iterator[Any], batch: int) -> Any:
        """Returns, for JSON, where an iterator stands that handed out `batch` batches of its epoch."""

    @abc.abstractmethod
    def reopen(self, epoch: int, position: Any) -> Iterator[Any]:
        """Begins an epoch at a position."""

    @abc.abstractmethod
    def describe(self) -> str:
        """Says what it is and whether it resumes."""


@final
class StatefulIterators(Source):
    """Iterators that have `get_state` and `set_state`, as Grain's."""

    kind, resumable = "get_state", True

    def __init__(self, begin: Callable[[], Iterator[Any]], repeats: bool, name: str) -> None:
        self._begin, self.repeats, self._name = begin, repeats, name

    def open(self, epoch: int) -> Iterator[Any]:
        """Begins an epoch."""
        return self._begin()

    def position(self, iterator: Any, batch: int) -> Any:
        """Asks the iterator."""
        return encode_state(iterator.get_state())

    def reopen(self, epoch: int, position: Any) -> Iterator[Any]:
        """Sets the state of a new iterator."""
        iterator: Any = self._begin()
        iterator.set_state(decode_state(position))
        return iterator

    def describe(self) -> str:
        """Says what it is."""
        return f"{self._name}, which resumes exactly (get_state and set_state)"


@final
class StatefulLoader(Source):
    """An object with `state_dict` and `load_state_dict`, as the `StatefulDataLoader` of torchdata.

    A loader that was restored may begin its next epoch differently from one that ran through: torchdata's draws another
    order, and the iterable data sets of Hugging Face begin where they were restored once more. So at the end of every
    epoch a loader is given its own state, and both go on from there alike.
    """

    kind, resumable = "state_dict", True

    def __init__(self, loader: Any, name: str) -> None:
        self._loader, self._name = loader, name
        self.repeats = not hasattr(loader, "__next__")
        self._start: Any = None

    def open(self, epoch: int) -> Iterator[Any]:
        """Begins an epoch, with the loader's own state if it went through one before."""
        if epoch:
            return self._next_epoch()
        if not self._note_start():
            self._load(self._start)
        return iter(self._loader)

    def position(self, iterator: Iterator[Any], batch: int) -> Any:
        """Asks the loader."""
        return encode_state(self._loader.state_dict())

    def reopen(self, epoch: int, position: Any) -> Iterator[Any]:
        """Loads the state, with which the next iterator begins."""
        self._note_start()
        self._load(position)
        return iter(self._loader)

    def describe(self) -> str:
        """Says what it is."""
        return f"{self._name}, which resumes exactly if its state_dict holds all that it draws"

    def _next_epoch(self) -> Iterator[Any]:
        self._load(encode_state(self._loader.state_dict()))
        nothing = True
        for batch in self._loader:
            nothing = False
            yield batch
        if nothing:  # its state at the end of an epoch is that there is nothing left
            self._load(self._start)
            yield from self._loader

    def _note_start(self) -> bool:
        """Keeps the state before the first batch; returns whether it was not known yet."""
        if self._start is not None:
            return False
        self._start = encode_state(self._loader.state_dict())
        return True

    def _load(self, state: Any) -> None:
        self._loader.load_state_dict(decode_state(state))


@final
class RandomAccess(Source):
    """Batches by their number: of a sequence, or of what begins at any (epoch, number)."""

    kind, resumable, repeats = "index", True, True

    def __init__(self, begin: Callable[[int, int], Iterator[Any]], name: str) -> None:
        self._begin, self._name = begin, name

    def open(self, epoch: int) -> Iterator[Any]:
        """Begins an epoch."""
        return self._begin(epoch, 0)

    def position(self, iterator: Iterator[Any], batch: int) -> Any:
        """The count of batches says it all."""
        return batch

    def reopen(self, epoch: int, position: Any) -> Iterator[Any]:
        """Begins at a batch, in a time that does not depend on it."""
        return self._begin(epoch, position)

    def describe(self) -> str:
        """Says what it is."""
        return f"{self._name}, which resumes exactly (by its index)"


@final
class Bare(Source):
    """An iterable or iterator that tells no position."""

    kind, resumable = "none", False

    def __init__(self, begin: Callable[[], Iterator[Any]], repeats: bool, name: str) -> None:
        self._begin, self.repeats, self._name = begin, repeats, name

    def open(self, epoch: int) -> Iterator[Any]:
        """Begins an epoch."""
        return self._begin()

    def position(self, iterator: Iterator[Any], batch: int) -> None:
        """Returns None."""

    def reopen(self, epoch: int, position: Any) -> Iterator[Any]:
        """Begins the epoch again, or goes on with an iterator that is what it is."""
        return self._begin()

    def describe(self) -> str:
        """Says what it is."""
        again = "begins its epoch again" if self.repeats else "goes on with whatever the iterator has left"
        return f"{self._name}, which cannot resume exactly: it tells no position, and {again}"


class Elements:
    """What begins at any element of a sequence."""

    def __init__(self, sequence: Any) -> None:
        self._sequence = sequence

    def __call__(self, epoch: int, start: int) -> Iterator[Any]:
        """Begins at an element."""
        return (self._sequence[index] for index in range(start, len(self._sequence)))


class Beginnings:
    """What begins an iterable, or what a function returns, anew for each epoch."""

    def __init__(self, source: Any, is_called: bool) -> None:
        self._source, self._is_called = source, is_called
        self._first = [self._begin()]  # tells the protocol, and serves the first epoch: beginning may start processes

    def __call__(self) -> Iterator[Any]:
        """Begins an epoch."""
        return self._first.pop() if self._first else self._begin()

    def has_state(self) -> bool:
        """Returns whether its iterators tell their positions; asked before the first epoch begins."""
        return _has_state(self._first[0])

    def _begin(self) -> Iterator[Any]:
        return iter(_called(self._source) if self._is_called else self._source)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_first": []}


class Itself:
    """What hands out an iterator, which cannot begin anew."""

    def __init__(self, iterator: Iterator[Any]) -> None:
        self._iterator = iterator

    def __call__(self) -> Iterator[Any]:
        """Returns it."""
        return self._iterator


def source_of(source: Any) -> Source:
    """Finds out which protocol a source of batches speaks."""
    name = type(source).__name__
    if hasattr(source, "state_dict") and hasattr(source, "load_state_dict"):
        return StatefulLoader(source, name)
    if hasattr(source, "__next__"):
        kind = StatefulIterators if _has_state(source) else Bare
        return kind(Itself(source), False, f"an iterator ({name})")
    if not hasattr(source, "__iter__") and not hasattr(source, "__getitem__") and callable(source):
        return _iterable(Beginnings(source, is_called=True), f"a function ({getattr(source, '__name__', name)})")
    has_index = hasattr(source, "__getitem__") and hasattr(source, "__len__")
    if isinstance(source, list) or (has_index and not hasattr(source, "__iter__")):
        return RandomAccess(Elements(source), f"a sequence ({name})")
    if not isinstance(source, Iterable):
        raise TypeError(
            f"expected a source of batches: an iterable, an iterator, or a function that returns one; got {name}: "
            f"{source!r:.200}; for arrays in memory, IndexedBatches(Arrays(data), batch_size, seed)"
        )
    found = _iterable(Beginnings(source, is_called=False), name)
    if not found.resumable and has_index:
        return RandomAccess(Elements(source), f"a sequence ({name})")
    return found


def _iterable(begin: Beginnings, name: str) -> Source:
    return (StatefulIterators if begin.has_state() else Bare)(begin, True, name)


def _called(source: Callable[[], Any]) -> Iterable[Any]:
    batches = source()
    if not isinstance(batches, Iterable):
        raise TypeError(
            f"a function given as a source must return an iterable of batches, got {type(batches).__name__} from "
            f"{source!r}; write `return` or `yield` of batches"
        )
    return batches


def _has_state(iterator: Any) -> bool:
    return hasattr(iterator, "get_state") and hasattr(iterator, "set_state")
