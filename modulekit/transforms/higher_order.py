"""Derivatives along a direction, and second derivatives."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec

import jax
import jax.numpy as jnp

from modulekit.core import finite
from modulekit.transforms.purified import Choice, Purified, Targets

P = ParamSpec("P")


def jvp(
    fn: Callable[..., Any],
    primals: Sequence[Any],
    tangents: Sequence[Any],
    variables: Targets = (),
    variable_tangents: Sequence[Any] = (),
) -> tuple[Any, Any]:
    """Returns `fn(*primals)`, and its derivative along a direction in the space of arguments and variables.

    Args:
      fn: any function of arrays; what it writes to variables is kept.
      primals: its arguments, floating-point arrays.
      tangents: the direction: an array of the argument's shape and dtype for each.
      variables: as for `grad`; empty if the direction has no part in them.
      variable_tangents: an array of the variable's shape and dtype for each variable, in their order.

    Returns:
      `(result, tangent)`, two of the same structure.

    Raises:
      ValueError: there are more or fewer tangents than arguments or variables.

    Source: JAX, `jax.jvp`, over variables.

    >>> import modulekit as mk
    >>> w = mk.Variable(3.0, name="w")
    >>> result, tangent = mk.jvp(lambda x: x * w**2, (2.0,), (0.0,), [w], [1.0])
    >>> float(result), float(tangent)
    (18.0, 12.0)
    """
    places = tuple(range(len(primals)))
    if len(tangents) != len(primals):
        raise ValueError(f"mk.jvp got {len(primals)} primals and {len(tangents)} tangents")

    def differentiate(pure: Purified) -> tuple[Any, Any]:
        values, chosen = pure.point
        if len(variable_tangents) != len(values):
            pure(values, chosen)  # a module may get its variables now
            raise ValueError(f"mk.jvp got {len(values)} variables and {len(variable_tangents)} variable_tangents")
        directions = [jnp.asarray(t, v.dtype) for t, v in zip(variable_tangents, values, strict=True)]
        along = jax.tree.map(lambda p, t: jnp.asarray(t, jnp.result_type(p)), chosen, list(tangents))
        with finite.forward_only():
            result, tangent, new = jax.jvp(
                pure, (values, jax.tree.map(jnp.asarray, chosen)), (directions, along), has_aux=True
            )
        pure.commit(new)
        return result, tangent

    return Choice(variables, places).settle(fn, tuple(primals), {}, differentiate, "jvp")


def hessian(
    fn: Callable[P, Any],
    variables: Targets | None = None,
    has_aux: bool = False,
    *,
    argnums: int | Sequence[int] | None = None,
) -> Callable[P, Any]:
    """Returns a function that computes the second derivatives of a scalar; for small modules, as they grow with the square.

    Args:
      fn: returns a scalar, or `(scalar, aux)` with `has_aux`. What it writes to variables is kept.
      variables: as for `grad`.
      has_aux: whether `fn` returns something beside the scalar.
      argnums: as for `grad`; not together with `variables`.

    Returns:
      A function that returns `H[i][j]` of shape `[*shape_i, *shape_j]`, for each pair of variables; with `argnums` for each
      pair of arguments, and for one argument just the array. With `has_aux`, `(H, aux)`.

    Raises:
      ValueError: both `variables` and `argnums` are given.

    Source: JAX, `jax.hessian`, over variables.

    >>> import modulekit as mk
    >>> w = mk.Variable(3.0, name="w")
    >>> float(mk.hessian(lambda: w**3, [w])()[0][0])
    18.0
    """
    if variables is not None and argnums is not None:
        raise ValueError("mk.hessian takes variables or argnums: for both, make the arguments variables")
    choice = Choice(variables, argnums)

    @functools.wraps(fn)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> Any:
        def differentiate(pure: Purified) -> Any:
            def scalar_of(values: list[Any], *chosen: Any) -> tuple[Any, Any]:
                result, new = pure(values, list(chosen))
                return (result[0] if has_aux else result), (result[1] if has_aux else None, new)

            values, chosen = pure.point
            if choice.arguments is None and not values:
                pure(values, chosen)  # a module may get its variables now
                raise ValueError("mk.hessian has no variables to differentiate with respect to")
            several = tuple(range(1, 1 + len(chosen)))
            places = 0 if choice.arguments is None else 1 if isinstance(choice.arguments, int) else several
            found, (aux, new) = jax.hessian(scalar_of, argnums=places, has_aux=True)(values, *chosen)
            pure.commit(new)
            return (found, aux) if has_aux else found

        return choice.settle(fn, args, kwargs, differentiate, "hessian")

    return wrapped
