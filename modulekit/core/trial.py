"""`trial`: changes to variables that can be taken back.

While a trial is open, each variable's array is noted before it is written for the first time: by an assignment, by a
compiled step, or by its construction. Taking back assigns these arrays. So weights, optimizer slots, statistics and
random streams are as they were, and a model that was first called inside has its first weights.
"""

import threading
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Protocol, Self

import jax

from modulekit.core import overlay, provenance


class Box(Protocol):
    """What a trial needs of a variable."""

    def stored(self) -> jax.Array:
        """Returns the array that the variable itself holds."""
        ...

    def replace(self, array: jax.Array, writer: provenance.Origin) -> None:
        """Puts another array into the variable itself."""
        ...


class _Open(threading.local):
    def __init__(self) -> None:
        self.trials: list[Trial] = []


running = _Open()  # in this thread


class Trial:
    """Context that takes back what happened to variables, if it is left by an exception or on request.

    Variables, optimizer slots, statistics and random streams are then bitwise as they were at its beginning; those made
    inside have their first values. Attributes of modules are not taken back.

    Raises:
      RuntimeError: inside a transform, where nothing happens to variables yet.
    """

    def __init__(self) -> None:
        self._saved: dict[Any, jax.Array] = {}

    def __enter__(self) -> Self:
        _check_outside("opened", "open it")
        running.trials.append(self)
        return self

    def rollback(self) -> None:
        """Takes back all that has happened in the trial so far.

        Raises:
          RuntimeError: inside a transform, where it would happen once and not each time.
        """
        _check_outside("rolled back", "roll it back")
        writer = provenance.user_line()
        for box, array in self._saved.items():
            box.replace(array, writer)

    def note(self, boxes: Iterable[Box]) -> None:
        """Notes the arrays of variables that are about to be written."""
        for box in boxes:
            if box not in self._saved:
                self._saved[box] = box.stored()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        running.trials.remove(self)
        if error is not None:
            self.rollback()


def _check_outside(done: str, remedy: str) -> None:
    if overlay.active() is not None:
        raise RuntimeError(
            f"mk.trial was {done} inside a transform: {remedy} outside, around the calls of compiled steps"
        )


def note(boxes: Iterable[Box]) -> None:
    """Tells every open trial of this thread that variables are about to be written."""
    for opened in running.trials:
        opened.note(boxes)


def trial() -> Trial:
    """Returns a context that takes back what happened to variables, if it is left by an exception or on request.

    >>> import modulekit as mk
    >>> w = mk.Variable(1.0, name="w")
    >>> with mk.trial() as attempt:
    ...     w.assign(5.0)
    ...     attempt.rollback()
    >>> float(w)
    1.0
    """
    return Trial()
