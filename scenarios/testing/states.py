"""The values of all variables of a run at a moment, and what differs between two of them, bit by bit."""

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np

from scenarios.base.parts import variables_by_path
from scenarios.base.result import Result

State: TypeAlias = Mapping[str, np.ndarray[Any, Any]]


def state_of(parts: Mapping[str, Any]) -> State:
    """Returns copies of all variables that parts hold, by path."""
    return {path: np.array(variable.numpy()) for path, variable in variables_by_path(parts).items()}


def difference(expected: State, found: State) -> str | None:
    """Returns what differs first, None if each array of `expected` is in `found` with the same bits.

    >>> difference({"w": np.zeros([2])}, {"w": np.array([0.0, 0.5])})
    'w differs by up to 0.5'
    """
    for path, array in expected.items():
        other = found.get(path)
        if other is None:
            return f"{path} is missing"
        if array.shape != other.shape or array.dtype != other.dtype:
            return f"{path} is {other.dtype}{list(other.shape)}, not {array.dtype}{list(array.shape)}"
        if array.tobytes() != other.tobytes():
            distance = np.abs(np.asarray(array, np.float64) - np.asarray(other, np.float64)).max()
            return f"{path} differs by up to {distance:.3g}"
    return None


def result_difference(expected: Result, found: Result) -> str | None:
    """Returns what differs first between what two runs returned, None if nothing does."""
    for name in ("step", "reason", "metrics", "history", "alarms"):
        before, now = getattr(expected, name), getattr(found, name)
        if repr(before) == repr(now):
            continue
        if name != "history":
            return f"the result's {name} is {_shown(now)}, not {_shown(before)}"
        rows = [(a, b) for a, b in zip(before, now, strict=False) if repr(a) != repr(b)]
        if not rows:
            return f"the history has {len(now)} rows, not {len(before)}"
        return f"the history's row {_shown(rows[0][1])} was {_shown(rows[0][0])}"
    return None


def _shown(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 200 else f"{text[:200]}…"
