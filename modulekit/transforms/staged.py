"""Looking into the program that JAX has traced."""

from collections.abc import Iterator
from typing import Any

import jax


def calls_python(closed: Any) -> bool:
    """Returns whether a traced program calls back into Python while it runs, so that it may fail halfway.

    Args:
      closed: a `jax.extend.core.ClosedJaxpr`, as `jax.jit(f).trace(...).jaxpr` gives it.

    >>> calls_python(jax.jit(lambda x: 2 * x).trace(1.0).jaxpr)
    False
    """
    return bool(closed.effects) or any("callback" in name for name in _primitives(closed.jaxpr))


def _primitives(jaxpr: Any) -> Iterator[str]:
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_program):
            if _is_program(value):
                yield from _primitives(getattr(value, "jaxpr", value))


def _is_program(value: Any) -> bool:
    return hasattr(value, "eqns") or hasattr(getattr(value, "jaxpr", None), "eqns")
