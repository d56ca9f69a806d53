"""Gradients with respect to variables."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec

import jax
import jax.numpy as jnp

from modulekit.core import finite
from modulekit.core.explain import summarize
from modulekit.core.module import Module
from modulekit.core.overlay import Overlay, bakes_reads
from modulekit.core.variable import Variable
from modulekit.transforms.settle import Footprint, Unsettled, plain, values_of

P = ParamSpec("P")
Targets = Module | Sequence[Variable | Module]


def value_and_grad(fn: Callable[P, Any], variables: Targets, has_aux: bool = False) -> Callable[P, tuple[Any, Any]]:
    """Returns a function that computes `fn` and its gradient with respect to variables.

    Args:
      fn: returns a scalar loss, or `(loss, aux)` with `has_aux`. What it writes to variables is kept.
      variables: a sequence of variables; or a module or several, whose trainable variables are collected after the first
        run, so that a model which has never been called trains from its first call. Each variable counts once.
      has_aux: whether `fn` returns something beside the loss.

    Returns:
      A function of `fn`'s arguments that returns `(value, gradients)`: the value of `fn`, and one array of the
      variable's shape and dtype for each variable, in their order; zeros where the loss does not depend on it.

    Raises:
      TypeError: on the call, if the loss is no floating-point scalar, or a variable is not floating-point.

    >>> import modulekit as mk
    >>> w = mk.Variable(3.0, name="w")
    >>> value, (gradient,) = mk.value_and_grad(lambda x: x * w**2, [w])(2.0)
    >>> float(value), float(gradient)
    (18.0, 12.0)
    """
    _check_targets(variables)

    @functools.wraps(fn)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> tuple[Any, Any]:
        run = functools.partial(fn, *args, **kwargs)
        targets = targets_in(variables)

        def check(_: Overlay) -> None:
            nonlocal targets
            found = targets_in(variables)
            if found != targets:
                targets = found
                raise Unsettled

        footprint = Footprint()
        return footprint.settle(lambda: _differentiate(run, targets, has_aux, check, footprint), "value_and_grad")

    return wrapped


def grad(fn: Callable[P, Any], variables: Targets, has_aux: bool = False) -> Callable[P, Any]:
    """Returns a function that computes the gradient of `fn` with respect to variables.

    Args:
      fn: as for `value_and_grad`.
      variables: as for `value_and_grad`.
      has_aux: whether `fn` returns `(loss, aux)`.

    Returns:
      A function that returns the list of gradients, or `(gradients, aux)`.

    >>> import modulekit as mk
    >>> w = mk.Variable(3.0, name="w")
    >>> float(mk.grad(lambda: w**2, [w])()[0])
    6.0
    """
    both = value_and_grad(fn, variables, has_aux)

    @functools.wraps(fn)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> Any:
        value, gradients = both(*args, **kwargs)
        return (gradients, value[1]) if has_aux else gradients

    return wrapped


def implicit_value_and_gradients(fn: Callable[P, Any]) -> Callable[P, tuple[Any, list[tuple[jax.Array, Variable]]]]:
    """Returns a function that computes `fn` and its gradient with respect to every trainable variable it reads.

    Args:
      fn: returns a scalar loss.

    Returns:
      A function that returns `(value, [(gradient, variable), ...])`, in the order of the first reads.

    Raises:
      TypeError: on the call, if the loss is no floating-point scalar.

    >>> import modulekit as mk
    >>> w = mk.Variable(3.0, name="w")
    >>> value, [(gradient, variable)] = mk.implicit_value_and_gradients(lambda: w**2)()
    >>> float(gradient), variable is w
    (6.0, True)
    """

    @functools.wraps(fn)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> tuple[Any, list[tuple[jax.Array, Variable]]]:
        run = functools.partial(fn, *args, **kwargs)
        targets: list[Variable] = []

        def check(seen: Overlay) -> None:
            new = [v for v in seen.touched if v.trainable and jnp.issubdtype(v.dtype, jnp.inexact)]
            targets.extend(new)
            if new:
                raise Unsettled

        footprint = Footprint()
        value, gradients = footprint.settle(
            lambda: _differentiate(run, list(targets), False, check, footprint), "implicit_value_and_gradients"
        )
        return value, list(zip(gradients, targets, strict=True))

    return wrapped


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


def _check_targets(variables: Targets) -> None:
    if isinstance(variables, Module):
        return
    wrong = [v for v in variables if not isinstance(v, Variable | Module)]
    if wrong:
        raise TypeError(
            f"gradients are taken with respect to variables or a module, not {summarize(wrong[0])} "
            f"(a {type(wrong[0]).__name__}): pass model.trainable_variables, or the model itself"
        )


def _differentiate(
    run: Callable[[], Any],
    targets: list[Variable],
    has_aux: bool,
    check: Callable[[Overlay], None],
    footprint: Footprint,
) -> tuple[Any, list[jax.Array]]:
    for target in targets:
        if not jnp.issubdtype(target.dtype, jnp.inexact):
            raise TypeError(
                f"{target.describe()} has dtype {target.dtype}, and has no gradient: make it trainable=False"
            )
    written: list[Variable] = []
    baked = bakes_reads()

    def pure(values: list[Any]) -> tuple[Any, Any]:
        with footprint.overlay(_bindings(targets, values), baked=baked) as running:
            result = plain(run())
            footprint.born.update(running.born)
            check(running)
        written[:] = running.written
        footprint.writers.update(running.written)
        loss = _scalar(result[0] if has_aux else result)
        if finite.is_on():
            loss = finite.look_at_loss(loss)
        return loss, (result, [running.values[v] for v in written])

    (_, (result, new)), gradients = jax.value_and_grad(pure, has_aux=True)(values_of(targets))
    if finite.is_on():
        gradients = finite.look_at_gradients(gradients, [target.describe() for target in targets])
        finite.finish(gradients)
    footprint.commit(written, new)
    return result, gradients


def _bindings(targets: list[Variable], values: list[Any]) -> dict[Variable, Any]:
    """Binds targets to traced values; nothing flows back into a frozen one."""
    pairs = zip(targets, values, strict=True)
    return {v: jax.lax.stop_gradient(value) if v.frozen else value for v, value in pairs}


def _scalar(loss: Any) -> Any:
    shape, dtype = jnp.shape(loss), jnp.result_type(loss)
    if shape != () or not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(
            f"a gradient needs a scalar floating-point loss, and the function returned {dtype}"
            f"[{','.join(map(str, shape))}]: reduce it, as in loss.mean()"
        )
    return loss
