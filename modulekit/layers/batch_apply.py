"""`BatchApply`: a module for `[batch, ...]` applied to `[time, batch, ...]`."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from modulekit.core.arithmetic import Arithmetic, value_of
from modulekit.core.explain import summarize
from modulekit.core.module import Module, allow_empty_variables


def merge_leading_dims(x: Any, num_dims: int) -> Any:
    """Returns an array with its first `num_dims` axes as one; an array of fewer axes, or no array, as it is.

    For two leading axes, `y[t * batch + n, ...] = x[t, n, ...]`.

    Args:
      x: `[*leading, *rest]`.
      num_dims: the number of leading axes.

    Returns:
      `[prod(leading), *rest]`.

    Source: Sonnet 2, `snt.merge_leading_dims`.

    >>> merge_leading_dims(jnp.ones([3, 2, 4]), 2).shape
    (6, 4)
    >>> merge_leading_dims(jnp.ones([3]), 2).shape, merge_leading_dims("text", 2)
    ((3,), 'text')
    """
    if not _is_array(x) or x.ndim < num_dims:
        return x
    x = jnp.asarray(value_of(x))
    return x.reshape(math.prod(x.shape[:num_dims]), *x.shape[num_dims:])


def split_leading_dim(x: Any, example: Any, num_dims: int) -> Any:
    """Returns an array with its first axis split into the first `num_dims` axes of an example; no array as it is.

    For two leading axes, `y[t, n, ...] = x[t * batch + n, ...]`.

    Args:
      x: `[prod(leading), *rest]`.
      example: `[*leading, ...]`.
      num_dims: the number of leading axes.

    Returns:
      `[*leading, *rest]`.

    Raises:
      ValueError: the first axis of `x` is not as long as `leading` together.

    Source: Sonnet 2, `snt.split_leading_dim`.

    >>> split_leading_dim(jnp.ones([6, 4]), jnp.ones([3, 2, 5]), 2).shape
    (3, 2, 4)
    """
    if not _is_array(x):
        return x
    x, leading = jnp.asarray(value_of(x)), tuple(example.shape[:num_dims])
    if math.prod(x.shape[:1]) != math.prod(leading):
        raise ValueError(
            f"the first axis of {summarize(x)} cannot be split into {list(leading)}, the first {num_dims} of "
            f"{summarize(example)}: expected {math.prod(leading)} elements on it"
        )
    return x.reshape(*leading, *x.shape[1:])


@allow_empty_variables
class BatchApply(Module):
    """Applies a module to inputs of several leading axes, which are merged into one for it, and split again.

    `y = split_leading_dim(module(merge_leading_dims(x, num_dims)), x, num_dims)`.

    Args:
      module: a module, or a function, that takes and returns arrays `[batch, ...]`, or structures of them.
      num_dims: the number of leading axes.
      name: the module's name.

    Source: Sonnet 2, `snt.BatchApply`.

    >>> import modulekit as mk
    >>> per_step = mk.BatchApply(mk.Linear(3))
    >>> per_step(jnp.ones([7, 2, 5])).shape
    (7, 2, 3)
    """

    def __init__(self, module: Callable[..., Any], num_dims: int = 2, name: str | None = None) -> None:
        super().__init__(name=name)
        self.module = module
        self.num_dims = num_dims

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Returns what the module returns, each array split as the first input.

        Args:
          args: arrays `[*leading, ...]`, or structures of them. Arrays of fewer axes, and what is no array, are handed on
            as they are.
          kwargs: the same.

        Raises:
          ValueError: no input, or an output whose first axis is not the merged one.
        """
        leaves = jax.tree.leaves((args, kwargs))
        if not leaves:
            raise ValueError("BatchApply requires at least one tensor input.")
        deep = [leaf for leaf in leaves if _is_array(leaf) and leaf.ndim >= self.num_dims]
        args, kwargs = jax.tree.map(lambda x: merge_leading_dims(x, self.num_dims), (args, kwargs))
        outputs = self.module(*args, **kwargs)
        if not deep:
            return outputs  # nothing was merged
        return jax.tree.map(lambda x: split_leading_dim(x, deep[0], self.num_dims), outputs)


def _is_array(x: Any) -> bool:
    return isinstance(x, jax.Array | np.ndarray | Arithmetic)
