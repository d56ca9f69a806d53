"""Convolution over any number of spatial axes: what the layers of `conv`, `conv_transpose` and `depthwise` share.

A kernel is `[*window, inputs, outputs]` whatever the data format, so that weights do not depend on it.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from modulekit import pad
from modulekit.core.explain import summarize
from modulekit.core.platforms import is_for_cpu
from modulekit.initializers import Initializer, TruncatedNormal, Zeros
from modulekit.layers import matrix_convolution
from modulekit.layers.data_format import channel_index, spatial_axes

Sizes = int | Sequence[int]
Pairs = list[tuple[int, int]]


def convolve(
    inputs: jax.Array,
    w: jax.Array,
    *,
    stride: Sizes = 1,
    rate: Sizes = 1,
    padding: str | pad.Paddings | None = "SAME",
    data_format: str,
    groups: int = 1,
) -> jax.Array:
    """Returns `y[n, p, o] = sum_{k, i} x[n, p stride + k rate - before, i] w[k, i, o]`, where `p` and `k` are positions.

    Args:
      inputs: `[batch, *spatial, input_channels]`, or with the channels where `data_format` says.
      w: `[*window, input_channels / groups, output_channels]`.
      stride: the step of the window.
      rate: the distance of the inputs that one window covers.
      padding: "SAME", "VALID" or None, which pad nothing, or paddings as in `mk.pad`.
      data_format: where the channels are.
      groups: into how many groups the channels are divided; each output belongs to one and sees its inputs only.

    Returns:
      `[batch, *positions, output_channels]`, in the same format.

    Raises:
      ValueError: a padding of another name, a wrong number of strides or rates, or a window wider than the inputs.
      TypeError: a wrong number of paddings, or one that is neither a function nor a sequence.
    """
    n = w.ndim - 2
    spatial = [inputs.shape[axis] for axis in spatial_axes(inputs.ndim, data_format)]
    strides, rates = sizes(stride, n, "stride"), sizes(rate, n, "rate")
    pairs = explicit_padding(padding, spatial, w.shape[:n], strides, rates)
    dtype = jnp.promote_types(inputs.dtype, w.dtype)
    inputs, w = inputs.astype(dtype), w.astype(dtype)

    channels = channel_index(data_format)
    if is_for_cpu(inputs) and matrix_convolution.pays(inputs, w):
        outputs = matrix_convolution.convolve(
            jnp.moveaxis(inputs, channels, -1), w, strides=strides, rates=rates, pairs=tuple(pairs), groups=groups
        )
        return jnp.moveaxis(outputs, -1, channels)
    images = (0, channels % (n + 2), *spatial_axes(n + 2, data_format))
    return lax.conv_general_dilated(
        inputs,
        w,
        window_strides=strides,
        padding=pairs,
        rhs_dilation=rates,
        dimension_numbers=lax.ConvDimensionNumbers(images, (n + 1, n, *range(n)), images),
        feature_group_count=groups,
    )


def explicit_padding(
    padding: str | pad.Paddings | None, inputs: Sequence[int], window: Sequence[int], stride: Sizes, rate: Sizes
) -> Pairs:
    """Returns how much each spatial axis is padded before and after.

    "SAME" gives one output for each step of the stride, `ceil(inputs / stride)`, and pads after rather than before where
    the total is odd.

    Args:
      padding: "SAME", "VALID" or None, which pad nothing, or paddings as in `mk.pad`.
      inputs: the sizes of the spatial axes.
      window: the sizes of the window.
      stride: one for all axes, or one for each.
      rate: one for all axes, or one for each.

    Raises:
      ValueError: another name, a wrong number of strides or rates, or a window wider than the padded inputs.
      TypeError: a wrong number of paddings, or one that is neither a function nor a sequence.
    """
    n = len(window)
    padding = "VALID" if padding is None else padding
    if isinstance(padding, str):
        check_padding_name(padding.upper())
        strides, rates = sizes(stride, n, "stride"), sizes(rate, n, "rate")
        spans = [(k - 1) * r + 1 for k, r in zip(window, rates, strict=True)]
        pairs = [(before, after) for before, after in lax.padtype_to_pads(inputs, spans, strides, padding.upper())]
    else:
        pairs = [(before, after) for before, after in pad.create(padding, window, rate, n, channel_index=-1)[1:-1]]
        spans = [(k - 1) * r + 1 for k, r in zip(window, sizes(rate, n, "rate"), strict=True)]
    padded = [size and size + sum(pair) for size, pair in zip(inputs, pairs, strict=True)]
    if any(size and size < span for size, span in zip(padded, spans, strict=True)):
        raise ValueError(
            f"a window that spans {spans} does not fit into inputs of {list(inputs)}, padded to {padded}: use a smaller "
            "kernel or rate, or more padding"
        )
    return pairs


def check_padding_name(padding: str) -> None:
    """Raises `ValueError` unless `padding` is "SAME" or "VALID"."""
    if padding not in ("SAME", "VALID"):
        raise ValueError(
            f"padding={padding!r} is unknown: use 'SAME', 'VALID', a function such as mk.pad.causal, or [before, after] "
            "for each axis"
        )


def sizes(value: Sizes, n: int, name: str) -> tuple[int, ...]:
    """Returns `n` numbers: one repeated, or a sequence of `n`; raises `ValueError` for another number of them."""
    try:
        return pad.per_axis(value, n, name)
    except TypeError as error:
        raise ValueError(str(error)) from None


def kernel_initializer(w_init: Initializer | None, inputs_per_output: Sequence[int]) -> Initializer:
    """Returns `w_init`; if None, a truncated normal one with standard deviation `1 / sqrt(prod(inputs_per_output))`."""
    return w_init or TruncatedNormal(stddev=1 / math.sqrt(math.prod(inputs_per_output)))


def bias_initializer(with_bias: bool, b_init: Initializer | None) -> Initializer | None:
    """Returns `b_init`, zeros if None, and None for no bias; raises `ValueError` for a `b_init` without a bias."""
    if not with_bias and b_init is not None:
        raise ValueError(f"When not using a bias the b_init must be None. Received: b_init={summarize(b_init)}")
    return b_init or Zeros() if with_bias else None


def check_positive(**values: Any) -> None:
    """Raises `ValueError` for a value below 1."""
    for name, value in values.items():
        if isinstance(value, int) and value < 1:
            raise ValueError(f"{name}={value} is below 1")
