"""Penalties on the slope of a discriminator, in its inputs: they keep it smooth between and around the examples."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

import modulekit as mk

Critic = Callable[[Any], Any]


def r1_penalty(critic: Critic, real: Float[Array, "batch *features"]) -> Float[Array, " batch"]:
    """Returns the squared slope at real examples: `penalty = |grad_x D(x)|^2`.

    An example's slope is that of the mean of its outputs. With batch normalization in the critic it is only nearly its own.

    Args:
      critic: `D`, from `[batch, ...]` to `[batch]` or `[batch, ...]`.
      real: `x`, `[batch, ...]`.

    Source: Mescheder et al., Which training methods for GANs do actually converge?, 2018, equation 9 without its factor.

    >>> r1_penalty(lambda x: 3 * x[:, 0] + 4 * x[:, 1], jnp.ones([1, 2])).tolist()
    [25.0]
    """
    return _squared_slopes(critic, real)


def gradient_penalty(
    critic: Critic, real: Float[Array, "batch *features"], fake: Float[Array, "batch *features"], key: jax.Array
) -> Float[Array, " batch"]:
    """Returns how far the slope between real and fake is from 1: `penalty = (|grad_x D(x)| - 1)^2`, `x = a r + (1 - a) f`.

    `a` is drawn evenly from [0, 1], one for each example.

    Args:
      critic: `D`, from `[batch, ...]` to `[batch]` or `[batch, ...]`.
      real: `r`, `[batch, ...]`.
      fake: `f`, the same shape.
      key: of the draws.

    Raises:
      ValueError: real and fake differ in shape.

    Source: Gulrajani et al., Improved training of Wasserstein GANs, 2017, equation 3 without its factor.

    >>> gradient_penalty(lambda x: 3 * x[:, 0], jnp.ones([1, 2]), jnp.zeros([1, 2]), jax.random.key(0)).tolist()
    [4.0]
    """
    if real.shape != fake.shape:
        raise ValueError(
            f"expected real and fake examples of one shape, got {list(real.shape)} and {list(fake.shape)}: the generator "
            "must return what the data holds"
        )
    share = jax.random.uniform(key, (len(real), *[1] * (real.ndim - 1)), real.dtype)
    squares = _squared_slopes(critic, share * real + (1 - share) * fake)
    flat = squares == 0  # where the root has no slope
    return jnp.square(jnp.where(flat, 0.0, jnp.sqrt(jnp.where(flat, 1.0, squares))) - 1)


def _squared_slopes(critic: Critic, inputs: Any) -> Any:
    def total(inputs: Any) -> Any:
        outputs = critic(inputs)
        return outputs.sum() * (len(inputs) / outputs.size)

    slopes = mk.grad(total)(inputs)
    return jnp.square(slopes).sum(axis=tuple(range(1, slopes.ndim)))
