"""The windows of a convolution or of a pooling as arrays: slices, one for each place in the window."""

import jax
import jax.numpy as jnp
from jax import lax


def along_axis(inputs: jax.Array, axis: int, size: int, stride: int = 1, rate: int = 1) -> list[jax.Array]:
    """Returns the elements at each of `size` places of the windows along one axis, `x[p stride + k rate]` for each `k`.

    Args:
      inputs: of any shape, padded.
      axis: along which the windows lie.
      size: how many elements one window has.
      stride: from one window to the next.
      rate: from one element of a window to the next.

    Returns:
      `size` arrays; each has the shape of `inputs`, with the number of windows in place of the axis.
    """
    last = (inputs.shape[axis] - (size - 1) * rate - 1) // stride * stride
    return [lax.slice_in_dim(inputs, k * rate, k * rate + last + 1, stride, axis) for k in range(size)]


def stacked(inputs: jax.Array, window: tuple[int, ...], strides: tuple[int, ...], rates: tuple[int, ...]) -> jax.Array:
    """Returns the windows over all spatial axes.

    Args:
      inputs: `[batch, *spatial, channels]`, padded.
      window: the size of a window along each spatial axis.
      strides: from one window to the next.
      rates: from one element of a window to the next.

    Returns:
      `[batch, *positions, *window, channels]`.
    """
    n = len(window)
    for axis in reversed(range(n)):
        places = along_axis(inputs, axis + 1, window[axis], strides[axis], rates[axis])
        inputs = jnp.stack(places, n + 1)
    return inputs
