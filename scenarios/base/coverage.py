"""What of the parts a run reaches: the variables that updates change, and the modules that run."""

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from operator import or_
from typing import Any

import jax
import numpy as np
from jax.extend.core import Literal

import modulekit as mk
from modulekit.core import collect
from modulekit.core.module import Module
from modulekit.core.overlay import active
from modulekit.core.pieces import apart
from modulekit.core.storage import stored_arrays
from modulekit.core.variable import Variable
from modulekit.transforms.settle import Footprint, plain
from scenarios.base.moment import at
from scenarios.base.parts import is_optimizer, rendered, variables_by_path

Function = Callable[..., Any]
NOT_READ = "no metric and no other variable depends on it"
NOT_WRITTEN = "it is read, and nothing changes it"
NOT_CHANGED = "it is read and written, and stays the same: its gradient or the learning rate is zero"

# What calls another program with its own arguments, one for one.
_CALLS = ("jit", "pjit", "closed_call", "core_call", "checkpoint", "remat2", "custom_jvp_call", "custom_vjp_call")


@dataclass(frozen=True)
class Coverage:
    """What no update changes, and what never runs.

    Attributes:
      unchanged: the trainable variables that get no gradient, by path, with the reason.
      never_ran: the paths of modules that neither the update nor the evaluation runs; what is inside of one is not listed.
      trainable: the number of trainable variables.
      updates: with how many updates this was tried.
    """

    unchanged: Mapping[str, str]
    never_ran: tuple[str, ...]
    trainable: int
    updates: int

    def __str__(self) -> str:
        variables = f"all {self.trainable} trainable variables changed in {self.updates} updates"
        if not self.trainable:
            variables = "there are no trainable variables"
        if self.unchanged:
            variables = f"trainable variables without a change in {self.updates} updates: {', '.join(self.unchanged)}"
        ran = f"modules that never run: {', '.join(self.never_ran)}" if self.never_ran else "all modules run"
        return f"{variables}\n{ran}"

    @property
    def warnings(self) -> list[str]:
        """What is wrong."""
        by_reason: dict[str, list[str]] = {}
        for path, reason in self.unchanged.items():
            by_reason.setdefault(reason, []).append(path)
        found = [f"trainable, and without a gradient: {', '.join(paths)} ({why})" for why, paths in by_reason.items()]
        return found + [f"{path} never runs, in the update or the evaluation" for path in self.never_ran]


class Use:
    """What an update and an evaluation use, seen in their traces.

    Args:
      parts: by name.
    """

    def __init__(self, parts: Mapping[str, Any]) -> None:
        self._parts = {name: part for name, part in parts.items() if not is_optimizer(part)}
        self._ran: set[int] = set()
        self._used: set[Variable] = set()
        self._written: set[Variable] = set()
        self._read: set[Variable] = set()

    @property
    def trainable(self) -> dict[str, Variable]:
        """The variables that are to be trained, by path."""
        return {path: v for path, v in variables_by_path(self._parts).items() if v.trainable}

    def see_evaluation(self, evaluate: Function, batch: Any) -> None:
        """Traces an evaluation of a batch of `jax.ShapeDtypeStruct`s."""
        with at(0):
            found = mk.footprint(self._watched(evaluate), batch)
        self._used.update(found.reads, found.writes)

    def see_update(self, update: Function, batch: Any) -> None:
        """Traces an update, and finds out on which variables its metrics and other variables depend."""
        found = mk.footprint(self._watched(update), batch)
        self._written.update(found.writes)
        variables = list(dict.fromkeys([*found.reads, *found.writes]))
        with apart():
            program = jax.make_jaxpr(functools.partial(_pure, update, found, variables))(
                stored_arrays(variables), batch
            )
        count = len(variables)
        outputs = _dependencies(program.jaxpr, [1 << index for index in range(len(program.jaxpr.invars))])
        metrics, results = outputs[:-count] if count else outputs, outputs[-count:] if count else []
        models = set(variables_by_path(self._parts).values())
        for index, variable in enumerate(variables):
            others = [bits for v, bits in zip(variables, results, strict=True) if v in models and v is not variable]
            if any(bits >> index & 1 for bits in (*metrics, *others)):
                self._read.add(variable)
        self._used.update(self._read, (v for v in variables if not v.trainable))  # optimizers use all others

    def _watched(self, function: Function) -> Function:
        def watched(batch: Any) -> Any:
            result = function(batch)
            running = active()
            if running is not None:
                self._ran.update(running.ran)
            return result

        return watched

    def coverage(self, changed: Iterable[Variable], updates: int) -> Coverage:
        """Returns what is not covered, given the variables that some updates have changed."""
        changed = set(changed)
        unchanged = {path: self._reason(v) for path, v in self.trainable.items() if v not in changed}
        unchanged.update({p: NOT_READ for p, v in self.trainable.items() if v in changed and v not in self._read})
        return Coverage(unchanged, tuple(self._never_ran()), len(self.trainable), updates)

    def _reason(self, variable: Variable) -> str:
        if variable not in self._read:
            return NOT_READ
        return NOT_CHANGED if variable in self._written else NOT_WRITTEN

    def _never_ran(self) -> list[str]:
        """Returns the outermost modules of which nothing ran, and no variable was used."""
        found: list[tuple[Any, str]] = []
        for path, module in collect.walk(self._parts, Module, Module):
            inside = any(path[: len(outer)] == outer for outer, _ in found)
            if not inside and not isinstance(module, mk.Optimizer) and not self._is_used(module):
                found.append((path, rendered(path)))
        return [text for _, text in found]

    def _is_used(self, module: Module) -> bool:
        inner = [module, *(submodule for _, submodule in collect.walk(module, Module, Module))]
        return any(id(m) in self._ran for m in inner) or not self._used.isdisjoint(module.paths().values())


def _pure(
    update: Function, found: Footprint, variables: list[Variable], values: list[Any], batch: Any
) -> tuple[Any, list[Any]]:
    """Returns the metrics and the new values; JAX keeps nothing of its trace where that would come back in another one."""
    with found.overlay(dict(zip(variables, values, strict=True)), collects_reads=True) as running:
        metrics = plain(update(batch))
    return metrics, [running.values[v] for v in variables]


def _dependencies(jaxpr: Any, inputs: list[int]) -> list[int]:
    """Returns, for each output of a program, the inputs on which it may depend, as bits."""
    known: dict[Any, int] = dict(zip(jaxpr.invars, inputs, strict=True))

    def of(atom: Any) -> int:
        return 0 if isinstance(atom, Literal) else known.get(atom, 0)

    for equation in jaxpr.eqns:
        given = [of(atom) for atom in equation.invars]
        inner = _called(equation)
        if inner is None:
            results = [functools.reduce(or_, given, 0)] * len(equation.outvars)
        else:
            results = _dependencies(inner, given)
        known.update(zip(equation.outvars, results, strict=True))
    return [of(atom) for atom in jaxpr.outvars]


def _called(equation: Any) -> Any:
    """Returns the program that an equation calls with its own arguments, None where it does something else."""
    if equation.primitive.name not in _CALLS:
        return None
    inner = next((equation.params[name] for name in ("jaxpr", "call_jaxpr") if name in equation.params), None)
    jaxpr = getattr(inner, "jaxpr", inner)
    return jaxpr if jaxpr is not None and len(jaxpr.invars) == len(equation.invars) else None


class Watch:
    """Variables, looked at again from time to time: one that came back to its first value has changed as well.

    Args:
      variables: whose arrays are copied now.

    Attributes:
      changed: those of which a bit was found to have changed.
    """

    def __init__(self, variables: Iterable[Variable]) -> None:
        self._same = dict(_bits(variables))
        self.changed: set[Variable] = set()

    def look(self) -> None:
        """Finds out which variables have changed."""
        self.changed.update(v for v, bits in _bits(self._same) if bits != self._same[v])
        self._same = {v: bits for v, bits in self._same.items() if v not in self.changed}


def _bits(variables: Iterable[Variable]) -> list[tuple[Variable, bytes]]:
    listed = list(variables)
    return [(v, np.asarray(array).tobytes()) for v, array in zip(listed, stored_arrays(listed), strict=True)]
