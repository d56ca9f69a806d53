"""Mixed precision: computing in a narrow dtype with variables of full precision.

A call under mixed precision gets its floating arrays cast, sees the variables cast, and has its result cast back. The
variables themselves keep their dtype: what runs under `once` sees full precision, and so do optimizers, statistics and
assignments.
"""

import contextlib
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from modulekit.core import context
from modulekit.core.arithmetic import Arithmetic, value_of


class Policy(NamedTuple):
    """In which precision a module computes.

    Attributes:
      compute_dtype: of the inputs, the variables and the arithmetic of a call.
      output_dtype: of the result.
      variable_dtype: of the variables that the first call makes.

    Source: JMP, `jmp.Policy`.

    >>> import modulekit as mk
    >>> net = mk.Linear(2)
    >>> mk.mixed_precision.set_policy(net, Policy(jnp.bfloat16, output_dtype=jnp.bfloat16))
    >>> net(jnp.ones([1, 3])).dtype, net.w.dtype
    (dtype(bfloat16), dtype('float32'))
    """

    compute_dtype: Any
    output_dtype: Any = jnp.float32
    variable_dtype: Any = jnp.float32


def under(policy: Policy, function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function or method that runs under a policy."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        given, named = cast((args, kwargs), policy.compute_dtype)
        with context.changed(compute_dtype=jnp.dtype(policy.compute_dtype), variable_dtype=policy.variable_dtype):
            result = function(*given, **named)
        return cast(result, policy.output_dtype)

    return run


def at_full_precision(args: Any) -> tuple[Any, Any]:
    """Returns arguments as what runs under `once` is to see them, and the context in which it runs."""
    around = context.now()
    if around.compute_dtype is None:
        return args, contextlib.nullcontext()
    # A variable is handed on: read there, it shows itself in full precision.
    precise = jax.tree.map(
        lambda leaf: leaf if _is_variable(leaf) else _cast_leaf(leaf, around.variable_dtype), args, is_leaf=_is_variable
    )
    return precise, context.changed(compute_dtype=None)


def cast(tree: Any, dtype: Any) -> Any:
    """Returns a structure with its floating arrays and variables cast to `dtype`; the rest is handed on as it is."""
    return jax.tree.map(lambda leaf: _cast_leaf(leaf, dtype), tree, is_leaf=_is_variable)


def _cast_leaf(leaf: Any, dtype: Any) -> Any:
    if not isinstance(leaf, jax.Array | np.ndarray | Arithmetic):
        return leaf
    value = value_of(leaf)
    return jnp.asarray(value).astype(dtype) if jnp.issubdtype(value.dtype, jnp.floating) else leaf


def _is_variable(leaf: Any) -> bool:
    return isinstance(leaf, Arithmetic)
