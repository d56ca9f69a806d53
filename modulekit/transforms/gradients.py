"""Gradients with respect to variables."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec

import jax
import jax.numpy as jnp

from modulekit.core import finite, overlay
from modulekit.core.variable import Variable
from modulekit.transforms.purified import Choice, Purified, Targets

P = ParamSpec("P")


def value_and_grad(
    fn: Callable[P, Any],
    variables: Targets | None = None,
    has_aux: bool = False,
    *,
    argnums: int | Sequence[int] | None = None,
) -> Callable[P, tuple[Any, Any]]:
    """Returns a function that computes `fn` and its gradient with respect to variables, arguments, or both.

    Args:
      fn: returns a scalar loss, or `(loss, aux)` with `has_aux`. What it writes to variables is kept.
      variables: a sequence of variables; or a module or several, whose trainable variables are collected after the first
        run, so that a model which has never been called trains from its first call. Each variable counts once.
      has_aux: whether `fn` returns something beside the loss.
      argnums: which positional arguments to differentiate with respect to, as for `jax.grad`; the first one if `variables`
        is None as well.

    Returns:
      A function of `fn`'s arguments that returns `(value, gradients)`: the value of `fn`, and one array of the variable's
      shape and dtype for each variable, in their order; zeros where the loss does not depend on it or it is frozen. With
      `argnums` alone, the gradient of that argument, a tuple for several. With both, `(for variables, for arguments)`.

    Raises:
      TypeError: on the call, if the loss is no floating-point scalar, or a variable is not floating-point.

    Source: JAX, `jax.value_and_grad`, over variables.

    >>> import modulekit as mk
    >>> w = mk.Variable(3.0, name="w")
    >>> value, (gradient,) = mk.value_and_grad(lambda x: x * w**2, [w])(2.0)
    >>> float(value), float(gradient)
    (18.0, 12.0)
    >>> value, ((for_w,), for_x) = mk.value_and_grad(lambda x: x * w**2, [w], argnums=0)(2.0)
    >>> float(for_w), float(for_x)
    (12.0, 9.0)
    """
    choice = Choice(variables, argnums)

    @functools.wraps(fn)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> tuple[Any, Any]:
        def differentiate(pure: Purified) -> tuple[Any, Any]:
            def loss_of(values: list[Any], chosen: list[Any]) -> tuple[Any, Any]:
                result, new = pure(values, chosen)
                loss = checked_loss(result[0] if has_aux else result)
                return finite.look_at_loss(loss) if finite.is_on() else loss, (result, new)

            loss, pull_back, (result, new) = jax.vjp(loss_of, *pure.point, has_aux=True)
            (gradients, for_arguments), new = pure.backward(new, lambda: pull_back(jnp.ones_like(loss)))
            if finite.is_on():
                described = [target.describe() for target in pure.targets]
                gradients = finite.look_at_gradients(gradients, described)
                for_arguments = finite.look_at_gradients(for_arguments, [f"argument {n}" for n in pure.places])
                finite.finish((gradients, for_arguments))
            pure.commit(new)
            return result, choice.arranged(gradients, for_arguments)

        return choice.settle(fn, args, kwargs, differentiate, "value_and_grad")

    return wrapped


def grad(
    fn: Callable[P, Any],
    variables: Targets | None = None,
    has_aux: bool = False,
    *,
    argnums: int | Sequence[int] | None = None,
) -> Callable[P, Any]:
    """Returns a function that computes the gradient of `fn` with respect to variables, arguments, or both.

    Args:
      fn: as for `value_and_grad`.
      variables: as for `value_and_grad`.
      has_aux: whether `fn` returns `(loss, aux)`.
      argnums: as for `value_and_grad`.

    Returns:
      A function that returns the gradients as `value_and_grad` does, or `(gradients, aux)`.

    Source: JAX, `jax.grad`, over variables.

    >>> import modulekit as mk
    >>> w = mk.Variable(3.0, name="w")
    >>> float(mk.grad(lambda: w**2, [w])()[0])
    6.0
    """
    both = value_and_grad(fn, variables, has_aux, argnums=argnums)

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

    Source: TensorFlow 1, `tf.contrib.eager.implicit_value_and_gradients`.

    >>> import modulekit as mk
    >>> w = mk.Variable(3.0, name="w")
    >>> value, [(gradient, variable)] = mk.implicit_value_and_gradients(lambda: w**2)()
    >>> float(gradient), variable is w
    (6.0, True)
    """

    @functools.wraps(fn)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> tuple[Any, list[tuple[jax.Array, Variable]]]:
        targets: list[Variable] = []

        def run() -> Any:
            result = fn(*args, **kwargs)
            running = overlay.active()
            read = [] if running is None else [v for v in running.touched if v.trainable]
            targets.extend(v for v in read if jnp.issubdtype(v.dtype, jnp.inexact))  # and the trace begins anew
            return result

        value, gradients = value_and_grad(run, targets)()
        return value, list(zip(gradients, targets, strict=True))

    return wrapped


def checked_loss(loss: Any) -> Any:
    """Returns a loss, or raises `TypeError` if it is no floating-point scalar."""
    shape, dtype = jnp.shape(loss), jnp.result_type(loss)
    if shape != () or not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(
            f"a gradient needs a scalar floating-point loss, and the function returned {dtype}"
            f"[{','.join(map(str, shape))}]: reduce it, as in loss.mean()"
        )
    return loss
