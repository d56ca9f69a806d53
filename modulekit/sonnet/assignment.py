"""Plans: which tensor of a checkpoint goes into which variable of a module, shown before anything changes."""

from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from modulekit.core.describe import spec_of, table
from modulekit.core.module import Module
from modulekit.core.variable import Variable
from modulekit.errors import CheckpointError
from modulekit.sonnet.checkpoint import Checkpoint, SavedTensor
from modulekit.sonnet.routes import Place, Rename, Route, by_name, by_path, places

Parts = Module | Mapping[str, Module | Variable]


class Line(NamedTuple):
    """One line of a plan: a variable, a tensor, and whether the one takes the other.

    Attributes:
      path: of the variable in the module; empty for an unexpected tensor.
      variable: None for an unexpected tensor.
      tensor: None for a missing one.
      result: `matched`, `missing`, `unexpected`, or what is wrong.

    >>> import pathlib, modulekit as mk
    >>> recorded = pathlib.Path(mk.__file__).parents[1] / "tests" / "recorded" / "mlp_adam-1"
    >>> model = mk.nets.MLP([4, 3])
    >>> _ = mk.build(model, [2, 5])
    >>> mk.sonnet.plan(mk.sonnet.read_checkpoint(recorded), {"model": model}).matched[0].path
    'model.layers[0].b'
    """

    path: str
    variable: Variable | None
    tensor: SavedTensor | None
    result: str

    def cells(self) -> tuple[str, str, str, str]:
        """Returns the texts of the line in the table."""
        source = self.tensor.path if self.tensor is not None else ""
        return self.path, source, spec_of(self.tensor if self.variable is None else self.variable), self.result


class Plan:
    """Which tensor goes into which variable. `print` shows it, `apply` does it.

    Attributes:
      matched: the lines of the variables that take a tensor.
      wrong: of those that cannot take theirs, by shape, dtype, or because it is not clear which one is meant.
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
        shown = table(("Variable", "Checkpoint", "Spec", "Result"), [line.cells() for line in lines])
        return f"{shown}\n{self._counts()}" + (f"\n{self._hint}" if self._hint else "")

    def __repr__(self) -> str:
        return f"Plan({self._counts()})"

    def apply(self, allow_missing: bool = False) -> None:
        """Gives every matched variable its value; either all of them or, where anything is in the way, none.

        Args:
          allow_missing: whether variables for which the checkpoint has nothing may keep their values. What is unexpected
            is always left aside; what is wrong never applies.

        Raises:
          CheckpointError: something is wrong, or missing and not allowed to be; or a file is damaged. Nothing has changed.
        """
        refused = (*self.wrong, *(() if allow_missing else self.missing))
        if refused:
            shown = table(("Variable", "Checkpoint", "Spec", "Result"), [line.cells() for line in refused])
            remedies = [
                self._hint or "Build the module as the saved one was, or give `rename` where only names differ."
            ]
            if not self.wrong:
                remedies.append("apply(allow_missing=True) lets what is missing keep its value.")
            raise CheckpointError(
                f"the checkpoint does not fit: {self._counts()}. Nothing has changed.\n{shown}\n{' '.join(remedies)}"
            )
        new: list[tuple[Variable, jax.Array]] = []
        for line in self.matched:
            if line.variable is not None and line.tensor is not None:
                new.append((line.variable, line.variable.conforming(_converted(line.path, line.tensor, line.variable))))
        for variable, value in new:
            variable.assign(value)

    def _counts(self) -> str:
        counted = [
            ("matched", self.matched),
            ("wrong", self.wrong),
            ("missing", self.missing),
            ("unexpected", self.unexpected),
        ]
        return ", ".join(f"{len(lines)} {word}" for word, lines in counted)


def plan(
    checkpoint: Checkpoint,
    module: Parts,
    *,
    by: Literal["path", "name"] = "path",
    rename: Mapping[str, str] | None = None,
) -> Plan:
    """Returns which tensor of a Sonnet checkpoint goes into which variable of a module. Nothing changes.

    By path, the attributes that lead to a variable are followed through the objects of the checkpoint: `layers[0].w` is
    found at `_layers/0/w`, since leading underscores do not count where one name fits. In a list of variables, as
    optimizers keep their slots, the names must agree too, and decide where the order differs.

    By name, `mlp/linear_0/w` is looked up among the full names of the saved variables. Names may repeat, and a repeated
    one is refused.

    Args:
      checkpoint: from `read_checkpoint`.
      module: the module, built, where it was the checkpoint's root; or the parts as they were given to
        `tf.train.Checkpoint`: `{"model": model, "optimizer": optimizer}`.
      by: `path` or `name`.
      rename: what parts of the checkpoint are called in the module, from their beginning: `{"model/old": "model/new"}`.

    Returns:
      The plan, to be printed and applied.

    Raises:
      ValueError: the module has no variables yet, or `by` or `rename` cannot be followed.

    >>> import pathlib, modulekit as mk
    >>> recorded = pathlib.Path(mk.__file__).parents[1] / "tests" / "recorded" / "mlp_adam-1"
    >>> model = mk.nets.MLP([4, 3])
    >>> _ = mk.build(model, [2, 5])
    >>> plan = mk.sonnet.plan(mk.sonnet.read_checkpoint(recorded), {"model": model})
    >>> plan
    Plan(4 matched, 0 wrong, 0 missing, 9 unexpected)
    >>> plan.apply()
    """
    if by not in ("path", "name"):
        raise ValueError(f"by={by!r}: a plan goes by 'path' or by 'name'")
    if by == "path" and not checkpoint.nodes:
        raise ValueError(f"{checkpoint!r} holds names without objects, as TensorFlow 1 wrote them: give by='name'")
    wanted = places(module)
    routes = (by_path if by == "path" else by_name)(checkpoint, wanted, Rename(rename or {}))
    used = {route.tensor.path for route in routes if route.tensor is not None}
    lines = [_line(place, route) for place, route in zip(wanted, routes, strict=True)]
    unexpected = [t for t in checkpoint.values() if t.path not in used and not checkpoint.is_bookkeeping(t)]
    hint = "" if used or by == "name" else _hint(checkpoint, module)
    return Plan([*lines, *(Line("", None, tensor, "unexpected") for tensor in unexpected)], hint)


def _line(place: Place, route: Route) -> Line:
    problem = route.problem or ("missing" if route.tensor is None else _misfit(place.variable, route.tensor))
    return Line(place.path, place.variable, route.tensor, problem or "matched")


def _misfit(variable: Variable, tensor: SavedTensor) -> str:
    if tensor.shape != variable.shape:
        return f"shape {list(tensor.shape)} in the checkpoint"
    is_integer = tensor.dtype.kind in "iu" and variable.dtype.kind in "iu"
    if tensor.dtype != variable.dtype and not is_integer:
        return f"dtype {tensor.dtype} in the checkpoint"
    return ""


def _converted(path: str, tensor: SavedTensor, variable: Variable) -> np.ndarray[Any, Any]:
    """Returns the values in the variable's dtype: TensorFlow counts in int64, JAX by default in int32."""
    array = tensor.numpy()
    if array.dtype == variable.dtype:
        return array
    limits = np.iinfo(variable.dtype)
    if array.size and not limits.min <= int(array.min()) <= int(array.max()) <= limits.max:
        raise CheckpointError(
            f"{path} is {variable.dtype}, and {tensor!r} has values from {array.min()} to {array.max()}, which do not fit: "
            "enable 64 bits in JAX (jax_enable_x64) and make the variable int64. Nothing has changed"
        )
    return array.astype(variable.dtype)


def _hint(checkpoint: Checkpoint, module: Parts) -> str:
    tops = sorted({t.path.partition("/")[0] for t in checkpoint.values() if not checkpoint.is_bookkeeping(t)})
    if not isinstance(module, Module) or not tops:
        return ""
    return (
        f"Nothing fits: the variables of the checkpoint stand below {', '.join(map(repr, tops))}. Name the parts as they "
        f"were given to tf.train.Checkpoint, as in plan(checkpoint, {{{tops[0]!r}: module}})."
    )
