"""What is differentiated: a function made pure in the variables and arguments that a derivative is taken with respect to."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from modulekit.core.explain import summarize
from modulekit.core.module import Module
from modulekit.core.overlay import Overlay, bakes_reads
from modulekit.core.variable import Variable
from modulekit.transforms.settle import Footprint, Unsettled, plain, values_of

Targets = Module | Sequence[Variable | Module]
T = TypeVar("T")


class Purified:
    """A function of (values of variables, arguments) that returns its result and the new values of what it wrote.

    Args:
      fn: the user's function.
      args: its arguments.
      kwargs: its keyword arguments.
      places: which of `args` a derivative is taken with respect to.
      variables: the user's choice of variables.
      footprint: what is known of the function.

    Attributes:
      places: which arguments a derivative is taken with respect to.
      targets: the variables, likewise.
      point: where: their values, and the chosen arguments.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        places: Sequence[int],
        variables: Targets,
        footprint: Footprint,
    ) -> None:
        self._fn = fn
        self._args = args
        self._kwargs = kwargs
        self.places = places
        self._variables = variables
        self._footprint = footprint
        self._written: list[Variable] = []
        self._inner: set[Variable] = set()
        self._baked = bakes_reads()
        self.targets = targets_in(variables)
        for target in self.targets:
            if not jnp.issubdtype(target.dtype, jnp.inexact):
                raise TypeError(
                    f"{target.describe()} has dtype {target.dtype}, and has no gradient: make it trainable=False"
                )
        self.point = (values_of(self.targets), [plain(args[place]) for place in places])

    def __call__(self, values: list[Any], chosen: list[Any]) -> tuple[Any, list[Any]]:
        """Returns the function's result and the new values."""
        args = list(self._args)
        for place, value in zip(self.places, chosen, strict=True):
            args[place] = value
        with self._footprint.overlay(_bindings(self.targets, values), baked=self._baked) as running:
            result = plain(self._fn(*args, **self._kwargs))
            self._footprint.born.update(running.born)
            if targets_in(self._variables) != self.targets:
                raise Unsettled
        self._written = list(running.written)
        self._inner = set(running.inner)
        self._footprint.writers.update(running.written)
        return result, [running.values[v] for v in self._written]

    def backward(self, new: Sequence[Any], run: Callable[[], T]) -> tuple[T, list[Any]]:
        """Runs the backward pass after a call; returns its result and the new values.

        What `jax.custom_vjp` runs then comes after the function: it sees what the function wrote, and may write itself.
        """
        bindings = dict(zip(self._written, new, strict=True))
        with Overlay(bindings, baked=self._baked, past=self._inner) as after:
            result = run()
        self._written += [v for v in after.written if v not in self._written]
        self._footprint.writers.update(after.written)
        return result, [after.values[v] for v in self._written]

    def commit(self, new: Sequence[Any]) -> None:
        """Writes the new values that the call returned."""
        self._footprint.commit(self._written, new)


class Choice:
    """What a derivative is taken with respect to.

    Args:
      variables: variables and modules, or None.
      argnums: positions of arguments, or None; the first argument if both are None.

    Attributes:
      arguments: the positions; None for variables alone.
    """

    def __init__(self, variables: Targets | None, argnums: int | Sequence[int] | None) -> None:
        _check_targets(variables)
        self._variables = variables
        self.arguments = 0 if variables is None and argnums is None else argnums

    def settle(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        differentiate: Callable[[Purified], T],
        transform: str,
    ) -> T:
        """Returns what `differentiate` returns for the function made pure, once all its variables are known."""
        footprint, places = Footprint(), self._places(args, transform)

        def attempt() -> T:
            variables = () if self._variables is None else self._variables
            return differentiate(Purified(fn, args, kwargs, places, variables, footprint))

        return footprint.settle(attempt, transform)

    def _places(self, args: tuple[Any, ...], transform: str) -> list[int]:
        if self.arguments is None:
            return []
        listed = [self.arguments] if isinstance(self.arguments, int) else list(self.arguments)
        for place in listed:
            if not -len(args) <= place < len(args):
                raise TypeError(
                    f"mk.{transform} is to differentiate with respect to argument {place}, and the function got {len(args)} "
                    "positional arguments: give variables, as in mk.grad(loss, model), or other argnums"
                )
            if isinstance(args[place], Module | Variable):
                raise TypeError(
                    f"mk.{transform} is to differentiate with respect to argument {place}, which is {args[place]!r}: give "
                    "its variables instead, as in mk.grad(loss, model)"
                )
        return [place % len(args) for place in listed]

    def arranged(self, for_variables: Any, for_arguments: Any) -> Any:
        """Returns the derivatives as the user asked for them: for variables, for arguments, or a pair."""
        if self.arguments is None:
            return for_variables
        by_argument = for_arguments[0] if isinstance(self.arguments, int) else tuple(for_arguments)
        return by_argument if self._variables is None else (for_variables, by_argument)


def targets_in(variables: Targets) -> list[Variable]:
    """Returns the variables that gradients are taken with respect to, as of now.

    Args:
      variables: variables, which stand for themselves, and modules, which stand for their trainable variables. One that
        comes up again through a module is left out.
    """
    listed = [variables] if isinstance(variables, Module) else list(variables)
    found: dict[Variable, None] = {}
    repeated: list[Variable] = []
    for target in listed:
        if isinstance(target, Module):
            found.update((v, None) for v in target.paths().values() if v.trainable)
        elif target in found:
            repeated.append(target)
        else:
            found[target] = None
    if repeated:
        raise ValueError(f"{repeated[0].describe()} is listed twice among the variables of a gradient")
    return list(found)


def _check_targets(variables: Any) -> None:
    if variables is None or isinstance(variables, Module):
        return
    if isinstance(variables, Variable):
        raise TypeError(f"gradients are taken with respect to a sequence of variables: give [{variables!r}]")
    listed = variables if isinstance(variables, Iterable) else [variables]
    wrong = [v for v in listed if not isinstance(v, Variable | Module)]
    if wrong:
        raise TypeError(
            f"gradients are taken with respect to variables or a module, not {summarize(wrong[0])} "
            f"(a {type(wrong[0]).__name__}): pass model.trainable_variables, or the model itself"
        )


def _bindings(targets: list[Variable], values: list[Any]) -> dict[Variable, Any]:
    """Binds targets to traced values; nothing flows back into a frozen one."""
    pairs = zip(targets, values, strict=True)
    return {v: jax.lax.stop_gradient(value) if v.frozen else value for v, value in pairs}
