"""Pooling: the mean or the largest value of each window, as functions and as modules."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Num

from modulekit import pad
from modulekit.core.arithmetic import ArrayLike, value_of
from modulekit.core.explain import summarize
from modulekit.core.module import Module, allow_empty_variables
from modulekit.core.platforms import is_for_cpu
from modulekit.layers.convolution import Pairs, Sizes, explicit_padding, sizes
from modulekit.layers.data_format import channel_index, over_axes, spatial_axes
from modulekit.layers.windows import along_axis

_WIDEST_WINDOW = 4  # for slices; with more of them, the gradient takes long to compile
_LEAST_INPUTS = 2**13  # for slices; below, it is calls that cost


def avg_pool(
    inputs: ArrayLike,
    window_shape: Sizes,
    strides: Sizes = 1,
    padding: str | pad.Paddings = "VALID",
    data_format: str = "channels_last",
) -> Float[Array, "batch *axes"]:
    """Returns the mean of each window, `y[n, p, c] = mean_k x[n, p strides + k - before, c]`, of what is not padding.

    Args:
      inputs: `[batch, *spatial, channels]`, or with the channels where `data_format` says; floating-point.
      window_shape: the size of the window, one for all spatial axes or one for each.
      strides: the step of the window, one for all axes or one for each.
      padding: "SAME", "VALID" or paddings as in `mk.pad`. What is padded counts neither as a zero nor as an element.
      data_format: where the channels are, such as `channels_first` or `NCHW`.

    Returns:
      `[batch, *positions, channels]`, in the same format and dtype. Sums of half precision are taken in float32.

    Raises:
      ValueError: inputs of no spatial axis or of an integer dtype, a wrong number of window sizes or strides, or a window
        that is wider than the inputs or meets padding only.

    Sources: Haiku, `hk.avg_pool`; Flax, `nn.avg_pool` with `count_include_pad=False`.

    >>> avg_pool(jnp.arange(4.0).reshape(1, 4, 1), 2, strides=2).ravel().tolist()
    [0.5, 2.5]
    >>> avg_pool(jnp.ones([1, 4, 1]), 3, padding="SAME").ravel().tolist()
    [1.0, 1.0, 1.0, 1.0]
    """
    inputs = jnp.asarray(value_of(inputs))
    if not jnp.issubdtype(inputs.dtype, jnp.floating):
        raise ValueError(
            f"avg_pool expects floating-point inputs, got {summarize(inputs)}: convert them, as in x.astype('float32')"
        )
    window, steps, pairs = _windows(inputs, window_shape, strides, padding, data_format)
    working = inputs.astype(jnp.promote_types(inputs.dtype, jnp.float32))
    total = _reduce_windows(working, 0, lax.add, lax.add, window, steps, pairs, data_format)
    return (total / _counts(inputs, window, steps, pairs, data_format)).astype(inputs.dtype)


def max_pool(
    inputs: ArrayLike,
    window_shape: Sizes,
    strides: Sizes = 1,
    padding: str | pad.Paddings = "VALID",
    data_format: str = "channels_last",
) -> Num[Array, "batch *axes"]:
    """Returns the largest value of each window, `y[n, p, c] = max_k x[n, p strides + k - before, c]`, padding excluded.

    Args:
      inputs: `[batch, *spatial, channels]`, or with the channels where `data_format` says.
      window_shape: the size of the window, one for all spatial axes or one for each.
      strides: the step of the window, one for all axes or one for each.
      padding: "SAME", "VALID" or paddings as in `mk.pad`. What is padded is never the largest.
      data_format: where the channels are, such as `channels_first` or `NCHW`.

    Returns:
      `[batch, *positions, channels]`, in the same format and dtype.

    Raises:
      ValueError: inputs of no spatial axis, a wrong number of window sizes or strides, or a window that is wider than the
        inputs or meets padding only.

    Sources: Haiku, `hk.max_pool`; Flax, `nn.max_pool`.

    >>> max_pool(jnp.arange(4.0).reshape(1, 4, 1), 2, strides=2).ravel().tolist()
    [1.0, 3.0]
    """
    inputs = jnp.asarray(value_of(inputs))
    window, steps, pairs = _windows(inputs, window_shape, strides, padding, data_format)
    is_integer = jnp.issubdtype(inputs.dtype, jnp.integer)
    lowest = np.iinfo(inputs.dtype).min if is_integer else -jnp.inf
    return _reduce_windows(inputs, lowest, lax.max, _first_largest, window, steps, pairs, data_format)


def _reduce_windows(
    inputs: jax.Array,
    neutral: float,
    operation: Any,
    pairwise: Callable[[jax.Array, jax.Array], jax.Array],
    window: tuple[int, ...],
    steps: tuple[int, ...],
    pairs: Pairs,
    data_format: str,
) -> jax.Array:
    """Returns all elements of each window under `operation`, which `pairwise` is for two arrays; padding is `neutral`."""
    start = np.asarray(neutral, inputs.dtype)[()]
    padding = over_axes(pairs, data_format, other=(0, 0))
    if is_for_cpu(inputs) and inputs.size >= _LEAST_INPUTS and max(window) <= _WIDEST_WINDOW:
        padded = lax.pad(inputs, start, [(*pair, 0) for pair in padding])
        axes = spatial_axes(inputs.ndim, data_format)
        return _reduce_by_axis(padded, pairwise, tuple(axes), window, steps)
    return lax.reduce_window(
        inputs,
        start,
        operation,
        over_axes(window, data_format, other=1),
        over_axes(steps, data_format, other=1),
        padding,
    )


@functools.partial(jax.jit, static_argnames=("operation", "axes", "window", "steps"), inline=True)
def _reduce_by_axis(
    padded: jax.Array,
    operation: Callable[[jax.Array, jax.Array], jax.Array],
    axes: tuple[int, ...],
    window: tuple[int, ...],
    steps: tuple[int, ...],
) -> jax.Array:
    """Reduces the windows along one axis after the other: on CPUs, the fast form of the gradient, and in loops."""
    for axis, size, step in reversed(list(zip(axes, window, steps, strict=True))):
        padded = functools.reduce(operation, along_axis(padded, axis, size, step))
    return padded


def _first_largest(a: jax.Array, b: jax.Array) -> jax.Array:
    """Returns the larger of the two, NaN if there is one; `a`, and the whole gradient to it, where they are equal."""
    keeps = a >= b
    if jnp.issubdtype(a.dtype, jnp.inexact):
        keeps |= jnp.isnan(a)
    return jnp.where(keeps, a, b)


def _windows(
    inputs: jax.Array, window_shape: Sizes, strides: Sizes, padding: str | pad.Paddings, data_format: str
) -> tuple[tuple[int, ...], tuple[int, ...], Pairs]:
    """Returns the window, the strides and the padding of each spatial axis."""
    channel_index(data_format)
    if inputs.ndim < 3:
        raise ValueError(
            f"pooling expects inputs with batch, channels and at least one spatial axis, rank >= 3, got {summarize(inputs)}"
        )
    spatial = [inputs.shape[axis] for axis in spatial_axes(inputs.ndim, data_format)]
    window, steps = sizes(window_shape, len(spatial), "window_shape"), sizes(strides, len(spatial), "strides")
    pairs = explicit_padding(padding, spatial, window, steps, rate=1)
    counts = [_axis_counts(*axis) for axis in zip(spatial, window, steps, pairs, strict=True)]
    if any(size and (count < 1).any() for size, count in zip(spatial, counts, strict=True)):
        raise ValueError(
            f"padding {summarize(padding)} leaves windows of {list(window)} that meet nothing of the inputs of {spatial}: "
            "pad by less than the window"
        )
    return window, steps, pairs


def _axis_counts(size: int, window: int, step: int, pair: tuple[int, int]) -> np.ndarray:
    """Returns how many elements of one axis each window meets, padding excluded."""
    starts = np.arange(0, max(size + sum(pair) - window + 1, 0), step) - pair[0]
    return np.minimum(starts + window, size) - np.maximum(starts, 0)


def _counts(
    inputs: jax.Array, window: Sequence[int], steps: Sequence[int], pairs: Pairs, data_format: str
) -> float | np.ndarray:
    """Returns how many elements each window meets: one number if all meet as many, else one for each position."""
    axes = spatial_axes(inputs.ndim, data_format)
    counts = np.ones([1] * inputs.ndim, np.float32)
    for axis, size, step, pair in zip(axes, window, steps, pairs, strict=True):
        of_axis = _axis_counts(inputs.shape[axis], size, step, pair)
        counts = counts * of_axis.reshape([-1 if other == axis else 1 for other in range(inputs.ndim)])
    full = math.prod(window)
    return float(full) if (counts == full).all() else counts


@allow_empty_variables
class AvgPool(Module):
    """The mean of each window, `y[n, p, c] = mean_k x[n, p strides + k - before, c]`, of what is not padding.

    It calls `avg_pool`.

    Args:
      window_shape: the size of the window, one for all spatial axes or one for each.
      strides: the step of the window, one for all axes or one for each.
      padding: "SAME", "VALID" or paddings as in `mk.pad`; excluded from the mean.
      data_format: where the channels are, such as `channels_first` or `NCHW`.
      name: the module's name.

    Raises:
      ValueError: an unknown `data_format`.

    Source: Haiku, `hk.AvgPool`.

    >>> AvgPool(2, strides=2)(jnp.ones([8, 28, 28, 3])).shape
    (8, 14, 14, 3)
    """

    def __init__(
        self,
        window_shape: Sizes,
        strides: Sizes = 1,
        padding: str | pad.Paddings = "VALID",
        data_format: str = "channels_last",
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        channel_index(data_format)
        self.window_shape = window_shape
        self.strides = strides
        self.padding = padding
        self.data_format = data_format

    def __call__(self, inputs: Float[Array, "batch *axes"]) -> Float[Array, "batch *output_axes"]:
        """Returns the means, `[batch, *positions, channels]`, in the format and dtype of the inputs."""
        return avg_pool(inputs, self.window_shape, self.strides, self.padding, self.data_format)


@allow_empty_variables
class MaxPool(Module):
    """The largest value of each window, `y[n, p, c] = max_k x[n, p strides + k - before, c]`, padding excluded.

    It calls `max_pool`.

    Args:
      window_shape: the size of the window, one for all spatial axes or one for each.
      strides: the step of the window, one for all axes or one for each.
      padding: "SAME", "VALID" or paddings as in `mk.pad`; never the largest.
      data_format: where the channels are, such as `channels_first` or `NCHW`.
      name: the module's name.

    Raises:
      ValueError: an unknown `data_format`.

    Source: Haiku, `hk.MaxPool`.

    >>> MaxPool([2, 1], strides=[2, 1], data_format="NCHW")(jnp.ones([8, 3, 28, 28])).shape
    (8, 3, 14, 28)
    """

    def __init__(
        self,
        window_shape: Sizes,
        strides: Sizes = 1,
        padding: str | pad.Paddings = "VALID",
        data_format: str = "channels_last",
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        channel_index(data_format)
        self.window_shape = window_shape
        self.strides = strides
        self.padding = padding
        self.data_format = data_format

    def __call__(self, inputs: Num[Array, "batch *axes"]) -> Num[Array, "batch *output_axes"]:
        """Returns the largest values, `[batch, *positions, channels]`, in the format and dtype of the inputs."""
        return max_pool(inputs, self.window_shape, self.strides, self.padding, self.data_format)
