"""Gradients of each example's own loss."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from modulekit.core.variable import Variable
from modulekit.transforms.batching import Rule, vmap
from modulekit.transforms.gradients import grad
from modulekit.transforms.purified import Targets


def per_example_grad(
    fn: Callable[..., Any], variables: Targets, *, writes: Rule | Mapping[Variable, Rule] | None = None
) -> Callable[..., list[jax.Array]]:
    """Returns a function that computes, for each example of a batch, the gradient of its loss.

    Args:
      fn: the loss of a batch, a scalar or one value for each example, as it would be given to `grad`. It is called with
        batches of one example.
      variables: as for `grad`.
      writes: how the values that the examples write to a variable become one, as for `vmap`.

    Returns:
      A function of the same positional arguments, each a structure of arrays `[examples, ...]`, that returns an array
      `[examples, *shape]` for each variable. For a loss that is a mean over the batch, their mean is its gradient.

    Source: JAX, `jax.vmap` of `jax.grad`, over variables.

    >>> import modulekit as mk
    >>> w = mk.Variable(2.0, name="w")
    >>> mk.per_example_grad(lambda x, y: (w * x - y) ** 2, [w])(jnp.array([1.0, 2.0]), jnp.zeros([2]))[0].tolist()
    [4.0, 16.0]
    """

    @functools.wraps(fn)
    def wrapped(*args: Any) -> list[jax.Array]:
        def of_one(*example: Any) -> list[jax.Array]:
            batch = jax.tree.map(lambda x: jnp.asarray(x)[None], example)
            return grad(lambda: jnp.sum(fn(*batch)), variables)()

        return vmap(of_one, writes=writes)(*args)

    return wrapped
