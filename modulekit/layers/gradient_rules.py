"""Functions whose gradient is a rule of its own, and not the derivative of what they compute."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Num

from modulekit.core.arithmetic import ArrayLike, value_of
from modulekit.core.explain import summarize


def scale_gradient(t: ArrayLike, scale: ArrayLike) -> Num[Array, "*shape"]:
    """Returns `t`, and multiplies the gradient that passes through it by `scale`: `y = t`, `dL/dt = scale dL/dy`.

    Args:
      t: `[...]`, of any shape. What is neither floating nor complex passes as it is.
      scale: the factor, a number or an array that can be broadcast to the shape of `t`. It gets no gradient itself.

    Returns:
      `[...]`, of the shape and dtype of `t`.

    Source: Sonnet 2, `snt.scale_gradient`.

    >>> jax.grad(lambda x: scale_gradient(x, 0.5) ** 2)(3.0).item()
    3.0
    """
    t, scale = jnp.asarray(value_of(t)), jnp.asarray(value_of(scale))
    return _scaled(t, scale) if jnp.issubdtype(t.dtype, jnp.inexact) else t


@jax.custom_jvp
def _scaled(t: jax.Array, scale: jax.Array) -> jax.Array:
    return t


@_scaled.defjvp
def _scaled_tangent(primals: tuple[Any, Any], tangents: tuple[Any, Any]) -> tuple[Any, Any]:
    t, scale = primals
    return _scaled(t, scale), tangents[0] * jnp.broadcast_to(scale.astype(t.dtype), t.shape)


def leaky_clip_by_value(
    t: ArrayLike, clip_value_min: ArrayLike, clip_value_max: ArrayLike, name: str | None = None
) -> Num[Array, "*shape"]:
    """Returns `y = max(min(t, clip_value_max), clip_value_min)`, with a gradient that leads back into the interval.

    Gradient descent may move a clipped element towards the interval and not away from it: the gradient passes as it is,
    but for elements below the interval where it is positive, and above it where it is negative, it is 0. To maximize,
    turn the gradient's sign before it gets here.

    Args:
      t: `[...]`, of any shape.
      clip_value_min: the lower bound, a number or an array that can be broadcast to the shape of `t`. It gets no gradient.
      clip_value_max: the upper bound, likewise.
      name: without effect.

    Returns:
      `[...]`, of the shape and dtype of `t`.

    Raises:
      ValueError: a bound of a shape that cannot be broadcast to that of `t`.

    Source: Sonnet 2, `snt.leaky_clip_by_value`. The rule depends on the gradient's sign: it has no forward mode.

    >>> gradient = lambda sign: jax.grad(lambda x: sign * leaky_clip_by_value(x, -1.0, 1.0))(3.0).item()
    >>> gradient(1), gradient(-1)
    (1.0, 0.0)
    """
    t = jnp.asarray(value_of(t))
    bounds = [jnp.asarray(value_of(bound)).astype(t.dtype) for bound in (clip_value_min, clip_value_max)]
    for bound, which in zip(bounds, ("clip_value_min", "clip_value_max"), strict=True):
        if bound.ndim > t.ndim or any(a not in (1, b) for a, b in zip(bound.shape[::-1], t.shape[::-1], strict=False)):
            raise ValueError(
                f"{which} of shape {list(bound.shape)} cannot be broadcast to {summarize(t)}: give a number, or an array of "
                "its shape"
            )
    return _leaky_clip(t, *bounds)


@jax.custom_vjp
def _leaky_clip(t: jax.Array, low: jax.Array, high: jax.Array) -> jax.Array:
    return jnp.maximum(jnp.minimum(t, high), low)


def _leaky_clip_forward(t: jax.Array, low: jax.Array, high: jax.Array) -> tuple[jax.Array, Any]:
    return _leaky_clip(t, low, high), (t < low, t > high, low, high)


def _leaky_clip_backward(residuals: Any, gradient: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    is_below, is_above, low, high = residuals
    leads_away = (is_below & (gradient > 0)) | (is_above & (gradient < 0))
    return jnp.where(leads_away, 0, gradient), jnp.zeros_like(low), jnp.zeros_like(high)


_leaky_clip.defvjp(_leaky_clip_forward, _leaky_clip_backward)
