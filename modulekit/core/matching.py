"""Arrays from elsewhere, matched by path with the variables that are to take them: all of them fit, or none is used."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from modulekit.core.variable import Variable

_SHOWN = 8


def matched(
    owner: str, paths: Mapping[Variable, Sequence[str]], arrays: Mapping[str, Any], noun: str
) -> dict[Variable, Any]:
    """Returns the array of each variable.

    Args:
      owner: whose variables they are, for the message.
      paths: the variables, each with all paths that lead to it.
      arrays: by path.
      noun: what the arrays are: `value` or `gradient`.

    Raises:
      ValueError: one is missing, or unexpected, or has another shape or dtype, or is not finite though a gradient; or
        the paths of a tied variable are given apart. The message lists them by path.
    """
    by_path = {path: variable for variable, places in paths.items() for path in places}
    used: dict[Variable, str] = {}
    problems: list[str] = []
    for path, array in arrays.items():
        variable = by_path.get(path)
        if variable is None:
            problems.append(f"unexpected {path}")
        elif variable not in used:
            used[variable] = path
            problems += [f"{path} {problem}" for problem in misfits(variable, array, must_be_finite=noun == "gradient")]
        elif noun == "gradient" or not np.array_equal(arrays[used[variable]], array):
            problems.append(f"{used[variable]} and {path} are tied, one variable, and take one {noun}")
    problems += [f"missing {places[0]}" for variable, places in paths.items() if variable not in used]
    if problems:
        more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise ValueError(f"these {noun}s do not fit {owner}: {'; '.join(problems[:_SHOWN])}{more}. Nothing has changed")
    return {variable: arrays[path] for variable, path in used.items()}


def misfits(variable: Variable, array: Any, *, must_be_finite: bool) -> Iterator[str]:
    """Yields what keeps an array from fitting a variable: its shape, its dtype, values that are not finite."""
    if tuple(np.shape(array)) != variable.shape:
        yield f"has shape {list(np.shape(array))}, the variable {list(variable.shape)}"
    dtype = getattr(array, "dtype", None)
    if dtype is not None and dtype != variable.dtype:
        yield f"has dtype {dtype}, the variable {variable.dtype}: convert it, as in array.astype('{variable.dtype}')"
    if must_be_finite and not isinstance(array, jax.core.Tracer):
        values = np.asarray(array)
        bad = values.size - int(np.isfinite(values).sum()) if values.dtype.kind not in "biu" else 0
        if bad:
            yield f"has {bad} values of {values.size} that are not finite"
