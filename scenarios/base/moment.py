"""Which update runs, for those that depend on it: schedules, phases, what is done every few updates. And what an
evaluation has found so far, for what follows from it.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

_STEP: ContextVar[Any] = ContextVar("step")
_MEANS: ContextVar[Mapping[str, float]] = ContextVar("means")


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


@contextmanager
def found(means: Mapping[str, float]) -> Iterator[None]:
    """Context in which an evaluation has these means over all examples."""
    token = _MEANS.set(means)
    try:
        yield
    finally:
        _MEANS.reset(token)


def current_means() -> Mapping[str, float]:
    """Returns the means over all examples of the evaluation that runs.

    Raises:
      RuntimeError: there is no evaluation around the call.

    >>> with found({"loss": 0.5}):
    ...     current_means()
    {'loss': 0.5}
    """
    try:
        return _MEANS.get()
    except LookupError:
        raise RuntimeError(
            "the means of an evaluation are known in `measure` while a run calls it, and not outside of one"
        ) from None
