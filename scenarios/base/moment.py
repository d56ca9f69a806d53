"""Which update runs, for those that depend on it: schedules, phases, what is done every few updates."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

_STEP: ContextVar[Any] = ContextVar("step")


@contextmanager
def at(step: Any) -> Iterator[None]:
    """Context in which an update, or an evaluation, is that after `step` updates, a number or a scalar array."""
    token = _STEP.set(step)
    try:
        yield
    finally:
        _STEP.reset(token)


def current_step() -> Any:
    """Returns the number of updates before the one that runs, or before the evaluation.

    Raises:
      RuntimeError: there is no run around the call.

    >>> with at(7):
    ...     current_step()
    7
    """
    try:
        return _STEP.get()
    except LookupError:
        raise RuntimeError(
            "the step of a run is known in `update`, `evaluate`, `measure` and `pictures` while a run calls them, and not "
            "outside of one"
        ) from None
