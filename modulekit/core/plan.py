"""Plans: which saved tensor goes into which variable, shown before anything changes, and then done as a whole.

Whoever reads a format finds out which tensor is meant for which variable, and makes a `Line` of the two with `line_of`.
What fits, what a plan looks like and how it is applied is the same for all formats, and stands here.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from modulekit.core import overlay, storage
from modulekit.core.describe import spec_of, table
from modulekit.core.variable import Variable
from modulekit.errors import CheckpointError

_HEADERS = ("Variable", "Checkpoint", "Spec", "Result")
_FAMILIES = (jnp.integer, jnp.floating, jnp.complexfloating)


class Saved(Protocol):
    """What a plan needs of a tensor in a checkpoint: its path, its shape and dtype, and `numpy()` for its values."""

    path: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def numpy(self) -> np.ndarray[Any, Any]:
        """Returns the values, as an array of its own."""
        ...


class Line(NamedTuple):
    """One line of a plan: a variable, a tensor, and whether the one takes the other.

    Attributes:
      path: of the variable in the module; empty for an unexpected tensor.
      variable: None for an unexpected tensor.
      tensor: None for a missing one.
      result: `matched`, `missing`, `unexpected`, or what is wrong.
      note: what else is to be known, such as values that are not finite; empty for nothing.
      converts: whether a wrong dtype is the only thing that is wrong, and may be converted.

    >>> import modulekit as mk
    >>> layer = mk.Linear(3)
    >>> _ = mk.build(layer, [2, 5])
    >>> mk.weights.plan({"w": np.ones([5, 3], np.float32)}, layer).matched[0].path
    'w'
    """

    path: str
    variable: Variable | None
    tensor: Saved | None
    result: str
    note: str = ""
    converts: bool = False

    def cells(self) -> tuple[str, str, str, str]:
        """Returns the texts of the line in the table."""
        source = self.tensor.path if self.tensor is not None else ""
        spec = spec_of(self.tensor if self.variable is None else self.variable)
        return self.path, source, spec, f"{self.result}, {self.note}" if self.note else self.result


class Plan:
    """Which tensor goes into which variable. `print` shows it, `apply` does it.

    Attributes:
      matched: the lines of the variables that take a tensor.
      wrong: of those that cannot take theirs, by shape, dtype, ties, or because it is not clear which one is meant.
      missing: of those for which the checkpoint has none.
      unexpected: of the tensors that no variable takes.

    Args:
      lines: in the order of the table.
      hint: a sentence that is shown below the table; empty for none.

    >>> Plan([Line("w", None, None, "missing")])
    Plan(0 matched, 0 wrong, 1 missing, 0 unexpected)
    """

    def __init__(self, lines: Iterable[Line], hint: str = "") -> None:
        sorted_out: dict[str, list[Line]] = {"matched": [], "wrong": [], "missing": [], "unexpected": []}
        for line in lines:
            sorted_out[line.result if line.result in sorted_out else "wrong"].append(line)
        self.matched = tuple(sorted_out["matched"])
        self.wrong = tuple(sorted_out["wrong"])
        self.missing = tuple(sorted_out["missing"])
        self.unexpected = tuple(sorted_out["unexpected"])
        self._hint = hint

    def __str__(self) -> str:
        lines = (*self.matched, *self.wrong, *self.missing, *self.unexpected)
        shown = table(_HEADERS, [line.cells() for line in lines])
        return f"{shown}\n{self._counts()}" + (f"\n{self._hint}" if self._hint else "")

    def __repr__(self) -> str:
        return f"Plan({self._counts()})"

    def apply(self, allow_missing: bool = False, convert: bool = False) -> None:
        """Gives every matched variable its value; either all of them or, where anything is in the way, none.

        Frozen variables take their values as well: loading is no training.

        Args:
          allow_missing: whether variables for which the checkpoint has nothing may keep their values. What is unexpected
            is always left aside; what is wrong never applies.
          convert: whether floating values of another width may be rounded to the variable's. Integers of another width
            need no leave: they fit exactly or are refused.

        Raises:
          CheckpointError: something is wrong, or missing and not allowed to be; a value does not fit in the variable's
            dtype; or a file is damaged. Nothing has changed.
        """
        wrong = tuple(line for line in self.wrong if not (convert and line.converts))
        self._refuse((*wrong, *(() if allow_missing else self.missing)), wrong)
        new: dict[Variable, jax.Array] = {}
        for line in (*self.matched, *(line for line in self.wrong if convert and line.converts)):
            if line.variable is not None and line.tensor is not None:
                array = _converted(line.path, line.tensor, line.variable)
                new[line.variable] = _placed_as(line.variable, line.variable.conforming(array))
        storage.commit(list(new), list(new.values()))

    def _refuse(self, refused: tuple[Line, ...], wrong: tuple[Line, ...]) -> None:
        if not refused:
            return
        shown = table(_HEADERS, [line.cells() for line in refused])
        remedies = [self._hint or "Build the module as the saved one was, or give `rename` where only names differ."]
        if not wrong:
            remedies.append("apply(allow_missing=True) lets what is missing keep its value.")
        if any(line.converts for line in wrong):
            remedies.append("apply(convert=True) rounds to the variable's dtype.")
        raise CheckpointError(
            f"the checkpoint does not fit: {self._counts()}. Nothing has changed.\n{shown}\n{' '.join(remedies)}"
        )

    def _counts(self) -> str:
        counted = [
            ("matched", self.matched),
            ("wrong", self.wrong),
            ("missing", self.missing),
            ("unexpected", self.unexpected),
        ]
        return ", ".join(f"{len(lines)} {word}" for word, lines in counted)


def line_of(path: str, variable: Variable, tensor: Saved | None, problem: str = "") -> Line:
    """Returns the line of a variable and the tensor that was found for it.

    Args:
      path: of the variable.
      variable: the variable.
      tensor: None where there is none.
      problem: why it is not clear that this tensor is meant; empty if it is.
    """
    if problem or tensor is None:
        return Line(path, variable, tensor, problem or "missing")
    if tensor.shape != variable.shape:
        return Line(path, variable, tensor, f"shape {list(tensor.shape)} in the checkpoint")
    family = _family(variable.dtype)
    if tensor.dtype == variable.dtype or _family(tensor.dtype) is family is jnp.integer:
        return Line(path, variable, tensor, "matched")
    converts = family is not None and _family(tensor.dtype) is family
    return Line(path, variable, tensor, f"dtype {tensor.dtype} in the checkpoint", converts=converts)


def unexpected(tensor: Saved) -> Line:
    """Returns the line of a tensor that no variable takes."""
    return Line("", None, tensor, "unexpected")


def _family(dtype: np.dtype[Any]) -> Any:
    """Returns which dtypes differ from this one in width only, None where no other does."""
    return next((family for family in _FAMILIES if jnp.issubdtype(dtype, family)), None)


def _converted(path: str, tensor: Saved, variable: Variable) -> np.ndarray[Any, Any]:
    """Returns the values in the variable's dtype, for one of the same family."""
    array = tensor.numpy()
    if array.dtype == variable.dtype:
        return array
    if _family(variable.dtype) is jnp.integer:
        _check_range(path, tensor, array, variable)
        return array.astype(variable.dtype)
    with np.errstate(over="ignore"):
        rounded = array.astype(variable.dtype)
    overflown = int((np.isfinite(array) & ~np.isfinite(rounded)).sum())
    if overflown:
        raise CheckpointError(
            f"{path} is {variable.dtype}, and {tensor!r} has {overflown} values of {array.size} that are too large for it: "
            "make the variable of a wider dtype. Nothing has changed"
        )
    return rounded


def _check_range(path: str, tensor: Saved, array: np.ndarray[Any, Any], variable: Variable) -> None:
    """Refuses integers that the variable cannot hold: TensorFlow counts in int64, JAX by default in int32."""
    limits = jnp.iinfo(variable.dtype)  # type: ignore[no-untyped-call] # of narrow dtypes, too
    if array.size and not limits.min <= int(array.min()) <= int(array.max()) <= limits.max:
        raise CheckpointError(
            f"{path} is {variable.dtype}, and {tensor!r} has values from {array.min()} to {array.max()}, which do not fit: "
            "enable 64 bits in JAX (jax_enable_x64) and make the variable int64. Nothing has changed"
        )


def count_of_nonfinite(array: np.ndarray[Any, Any]) -> int:
    """Returns how many values are nan or infinite; none in a dtype that has neither."""
    return array.size - int(np.isfinite(array).sum()) if jnp.issubdtype(array.dtype, jnp.inexact) else 0


def _placed_as(variable: Variable, array: jax.Array) -> jax.Array:
    """Returns an array on the devices on which the variable's own lies, if it was put there on purpose."""
    if overlay.active() is not None:
        return array
    current = variable.stored()
    return jax.device_put(array, current.sharding) if current.committed else array
