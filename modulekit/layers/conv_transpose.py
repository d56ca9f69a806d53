"""`Conv1DTranspose`, `Conv2DTranspose`, `Conv3DTranspose`: what a convolution does to gradients, as a layer of its own."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from modulekit import pad
from modulekit.core.arithmetic import value_of
from modulekit.core.explain import summarize
from modulekit.core.module import Module
from modulekit.core.once import once
from modulekit.core.variable import Variable
from modulekit.initializers import Initializer
from modulekit.layers.convolution import (
    Sizes,
    bias_initializer,
    check_positive,
    convolve,
    kernel_initializer,
)
from modulekit.layers.data_format import add_per_channel, channel_index, check_images, spatial_axes
from modulekit.layers.inputs import location


class ConvNDTranspose(Module):
    """Abstract: `y[n, q, o] = sum_{p, k, i} x[n, p, i] w[k, o, i] + b[o]`, over all `p stride + k rate - before = q`.

    It is the transpose of the convolution with stride, rate, padding and kernel `w` that takes `y` to `x`, and so it goes
    from fewer positions to more; `before` is the padding of that convolution.

    Args:
      num_spatial_dims: the number of spatial axes.
      output_channels: the number of outputs at each position.
      kernel_shape: the size of the window, one for all spatial axes or one for each.
      output_shape: the sizes of the spatial axes of the outputs. If None, `inputs * stride` for "SAME", and
        `inputs * stride + (window - 1) * rate` for "VALID". With a stride, several sizes are possible.
      stride: the distance that one step in the inputs makes in the outputs, one for all axes or one for each.
      rate: the distance of the outputs that a window covers, one for all axes or one for each.
      padding: "SAME" or "VALID", that of the convolution from outputs to inputs.
      with_bias: whether there is a `b`.
      w_init: initializer of `w`; truncated normal with standard deviation `1 / sqrt(window * input_channels)` if None.
      b_init: initializer of `b`; zeros if None.
      data_format: where the channels are: last, as in `NHWC` or `channels_last`, or first, as in `NCHW` or
        `channels_first`.
      name: the module's name.

    Attributes:
      w: `[*window, output_channels, input_channels]` in any data format, made on the first call.
      b: `[output_channels]`.
      input_channels: their number, known after the first call.

    Raises:
      ValueError: an unknown `data_format`, or `b_init` without a bias.
      TypeError: another `padding`.
    """

    def __init__(
        self,
        num_spatial_dims: int,
        output_channels: int,
        kernel_shape: Sizes,
        output_shape: Sizes | None,
        stride: Sizes,
        rate: Sizes,
        padding: str,
        with_bias: bool,
        w_init: Initializer | None,
        b_init: Initializer | None,
        data_format: str,
        name: str | None,
    ) -> None:
        super().__init__(name=name)
        if padding not in ("SAME", "VALID"):
            raise TypeError(
                "ConvNDTranspose only takes string padding, please provide either `SAME` or `VALID`. "
                f"Received: padding={summarize(padding)}"
            )
        channel_index(data_format)
        check_positive(output_channels=output_channels)
        self.num_spatial_dims = num_spatial_dims
        self.output_channels = output_channels
        self.kernel_shape = kernel_shape
        self.output_shape = output_shape
        self.stride = stride
        self.rate = rate
        self.padding = padding
        self.with_bias = with_bias
        self.w_init = w_init
        self.b_init = bias_initializer(with_bias, b_init)
        self.data_format = data_format

    @once
    def _initialize(self, inputs: Any) -> None:
        input_channels = inputs.shape[channel_index(self.data_format)]
        window = pad.per_axis(self.kernel_shape, self.num_spatial_dims, "kernel_shape")
        w_init = kernel_initializer(self.w_init, (*window, input_channels))
        self.w = Variable(w_init([*window, self.output_channels, input_channels], inputs.dtype), name="w")
        if self.b_init is not None:
            self.b = Variable(self.b_init([self.output_channels], inputs.dtype), name="b")
        self.input_channels = input_channels

    def __call__(self, inputs: Float[Array, "batch *axes"]) -> Float[Array, "batch *output_axes"]:
        """Returns the transposed convolution of `inputs` with `w`, plus `b`.

        Args:
          inputs: `[batch, *spatial, input_channels]`, or with the channels where `data_format` says.

        Returns:
          `[batch, *output_shape, output_channels]`, in the same format.

        Raises:
          ValueError: another rank, another number of channels than on the first call, or an integer dtype; an
            `output_shape` of another length, or one that cannot come from these inputs.
          TypeError: a wrong number of kernel sizes, strides or rates.
        """
        inputs = jnp.asarray(value_of(inputs))
        n = self.num_spatial_dims
        check_images(self, inputs, n, self.data_format, getattr(self, "input_channels", None))
        if isinstance(self.output_shape, Sequence) and len(self.output_shape) != n:
            raise ValueError(
                f"{location(self)}: The output_shape must be of length {n} but instead was {len(self.output_shape)}."
            )
        self._initialize(inputs)
        outputs = convolve_transposed(
            inputs,
            self.w.value,
            output_shape=self.output_shape,
            stride=self.stride,
            rate=self.rate,
            padding=self.padding,
            data_format=self.data_format,
        )
        return add_per_channel(outputs, self.b.value, self.data_format) if self.with_bias else outputs


def convolve_transposed(
    inputs: jax.Array,
    w: jax.Array,
    *,
    output_shape: Sizes | None = None,
    stride: Sizes = 1,
    rate: Sizes = 1,
    padding: str = "SAME",
    data_format: str,
) -> jax.Array:
    """Returns `y[n, q, o] = sum_{p, k, i} x[n, p, i] w[k, o, i]`, over all `p stride + k rate - before = q`.

    Args:
      inputs: `[batch, *spatial, input_channels]`, or with the channels where `data_format` says.
      w: `[*window, output_channels, input_channels]`.
      output_shape: the sizes of the spatial axes of `y`; see `ConvNDTranspose`.
      stride: the distance that one step in the inputs makes in the outputs.
      rate: the distance of the outputs that a window covers.
      padding: "SAME" or "VALID", that of the convolution from outputs to inputs.
      data_format: where the channels are.

    Returns:
      `[batch, *output_shape, output_channels]`, in the same format.

    Raises:
      ValueError: an `output_shape` that cannot come from these inputs.
      TypeError: a wrong number of strides, rates or output sizes.
    """
    n = w.ndim - 2
    positions = [inputs.shape[axis] for axis in spatial_axes(inputs.ndim, data_format)]
    strides, rates = pad.per_axis(stride, n, "stride"), pad.per_axis(rate, n, "rate")
    spans = [(k - 1) * r + 1 for k, r in zip(w.shape, rates, strict=False)]
    extra = [span - 1 if padding == "VALID" else 0 for span in spans]
    if output_shape is None:
        output_shape = [size * s + more for size, s, more in zip(positions, strides, extra, strict=True)]
    outputs = pad.per_axis(output_shape, n, "output_shape")
    _check_output_shape(outputs, positions, strides, extra, padding)

    def forward(outputs: jax.Array) -> jax.Array:
        return convolve(outputs, kernel, stride=strides, rate=rates, padding=padding, data_format=data_format)

    dtype = jnp.promote_types(inputs.dtype, w.dtype)
    kernel = w.astype(dtype)
    shape = list(inputs.shape)
    shape[channel_index(data_format)] = w.shape[-2]
    for axis, size in zip(spatial_axes(inputs.ndim, data_format), outputs, strict=True):
        shape[axis] = size
    (transposed,) = jax.linear_transpose(forward, jax.ShapeDtypeStruct(shape, dtype))(inputs.astype(dtype))
    return transposed


def _check_output_shape(
    outputs: Sequence[int], inputs: Sequence[int], strides: Sequence[int], extra: Sequence[int], padding: str
) -> None:
    """Raises `ValueError` unless a convolution with these strides takes `outputs` to `inputs`."""
    highest = [size * s + more for size, s, more in zip(inputs, strides, extra, strict=True)]
    lowest = [max(high - s + 1, 0) for high, s in zip(highest, strides, strict=True)]
    if not all(low <= size <= high for low, size, high in zip(lowest, outputs, highest, strict=True)):
        raise ValueError(
            f"output_shape={list(outputs)} cannot come from inputs of {list(inputs)} with stride {list(strides)} and "
            f"padding {padding!r}: give sizes from {lowest} to {highest}, or leave it out for {highest}"
        )


class Conv1DTranspose(ConvNDTranspose):
    """Transposes a convolution of `[batch, width, channels]`: `y[n, q, o] = sum_{p, k, i} x[n, p, i] w[k, o, i] + b[o]`.

    The sum is over all `p stride + k rate - before = q`. Arguments, attributes and errors are those of `ConvNDTranspose`.

    Source: Sonnet 2, `snt.Conv1DTranspose`.

    >>> import modulekit as mk
    >>> layer = mk.Conv1DTranspose(16, kernel_shape=3, stride=2)
    >>> layer(jnp.ones([8, 50, 4])).shape, layer.w.shape
    ((8, 100, 16), (3, 16, 4))
    """

    def __init__(
        self,
        output_channels: int,
        kernel_shape: Sizes,
        output_shape: Sizes | None = None,
        stride: Sizes = 1,
        rate: Sizes = 1,
        padding: str = "SAME",
        with_bias: bool = True,
        w_init: Initializer | None = None,
        b_init: Initializer | None = None,
        data_format: str = "NWC",
        name: str | None = None,
    ) -> None:
        super().__init__(
            1, output_channels, kernel_shape, output_shape, stride, rate, padding, with_bias, w_init, b_init, data_format,
            name,
        )  # fmt: skip


class Conv2DTranspose(ConvNDTranspose):
    """Transposes a convolution of `[batch, height, width, channels]`; positions are pairs, a row and a column.

    `y[n, q, o] = sum_{p, k, i} x[n, p, i] w[k, o, i] + b[o]`, over all `p stride + k rate - before = q`.

    Arguments, attributes and errors are those of `ConvNDTranspose`.

    Source: Sonnet 2, `snt.Conv2DTranspose`.

    >>> import modulekit as mk
    >>> encode, decode = mk.Conv2D(16, 3, stride=2), mk.Conv2DTranspose(1, 3, output_shape=[27, 27], stride=2)
    >>> decode(encode(jnp.ones([8, 27, 27, 1]))).shape, decode.w.shape
    ((8, 27, 27, 1), (3, 3, 1, 16))
    """

    def __init__(
        self,
        output_channels: int,
        kernel_shape: Sizes,
        output_shape: Sizes | None = None,
        stride: Sizes = 1,
        rate: Sizes = 1,
        padding: str = "SAME",
        with_bias: bool = True,
        w_init: Initializer | None = None,
        b_init: Initializer | None = None,
        data_format: str = "NHWC",
        name: str | None = None,
    ) -> None:
        super().__init__(
            2, output_channels, kernel_shape, output_shape, stride, rate, padding, with_bias, w_init, b_init, data_format,
            name,
        )  # fmt: skip


class Conv3DTranspose(ConvNDTranspose):
    """Transposes a convolution of `[batch, depth, height, width, channels]`; positions have three parts.

    `y[n, q, o] = sum_{p, k, i} x[n, p, i] w[k, o, i] + b[o]`, over all `p stride + k rate - before = q`.

    Arguments, attributes and errors are those of `ConvNDTranspose`.

    Source: Sonnet 2, `snt.Conv3DTranspose`.

    >>> import modulekit as mk
    >>> layer = mk.Conv3DTranspose(4, kernel_shape=3, stride=[1, 2, 2])
    >>> layer(jnp.ones([2, 5, 6, 7, 1])).shape, layer.w.shape
    ((2, 5, 12, 14, 4), (3, 3, 3, 4, 1))
    """

    def __init__(
        self,
        output_channels: int,
        kernel_shape: Sizes,
        output_shape: Sizes | None = None,
        stride: Sizes = 1,
        rate: Sizes = 1,
        padding: str = "SAME",
        with_bias: bool = True,
        w_init: Initializer | None = None,
        b_init: Initializer | None = None,
        data_format: str = "NDHWC",
        name: str | None = None,
    ) -> None:
        super().__init__(
            3, output_channels, kernel_shape, output_shape, stride, rate, padding, with_bias, w_init, b_init, data_format,
            name,
        )  # fmt: skip
