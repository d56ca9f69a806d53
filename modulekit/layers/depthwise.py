"""`DepthwiseConv2D`: a convolution of each channel by itself."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from modulekit import pad
from modulekit.core.arithmetic import value_of
from modulekit.core.module import Module
from modulekit.core.once import once
from modulekit.core.variable import Variable
from modulekit.initializers import Initializer
from modulekit.layers.convolution import (
    Sizes,
    bias_initializer,
    check_padding_name,
    check_positive,
    convolve,
    kernel_initializer,
)
from modulekit.layers.data_format import add_per_channel, channel_index, check_images


class DepthwiseConv2D(Module):
    """`y[n, p, i m + j] = sum_k x[n, p stride + k rate - before, i] w[k, i, j] + b[i m + j]`, with `m = channel_multiplier`.

    Args:
      kernel_shape: the size of the window, one for both spatial axes or one for each.
      channel_multiplier: the number of outputs for each input channel.
      stride: the step of the window, one for both axes or one for each.
      rate: the distance of the inputs that a window covers, one for both axes or one for each.
      padding: "SAME" (`ceil(inputs / stride)` outputs), "VALID" (none), a function as in `mk.pad`, `[before, after]`, or a
        list of one of these for each axis.
      with_bias: whether there is a `b`.
      w_init: initializer of `w`; truncated normal with standard deviation `1 / sqrt(window)` if None.
      b_init: initializer of `b`; zeros if None.
      data_format: where the channels are: last, as in `NHWC` or `channels_last`, or first, as in `NCHW` or
        `channels_first`.
      name: the module's name.

    Attributes:
      w: `[*window, input_channels, channel_multiplier]` in any data format, made on the first call.
      b: `[input_channels * channel_multiplier]`.
      input_channels: their number, known after the first call.

    Raises:
      ValueError: an unknown `data_format`, a `channel_multiplier` below 1, or `b_init` without a bias.
      TypeError: a wrong number of strides or rates.

    Source: Sonnet 2, `snt.DepthwiseConv2D`. Paddings other than names, and different strides, are additions.

    >>> import modulekit as mk
    >>> layer = mk.DepthwiseConv2D(3, channel_multiplier=2)
    >>> layer(jnp.ones([8, 28, 28, 5])).shape, layer.w.shape
    ((8, 28, 28, 10), (3, 3, 5, 2))
    """

    def __init__(
        self,
        kernel_shape: Sizes,
        channel_multiplier: int = 1,
        stride: Sizes = 1,
        rate: Sizes = 1,
        padding: str | pad.Paddings = "SAME",
        with_bias: bool = True,
        w_init: Initializer | None = None,
        b_init: Initializer | None = None,
        data_format: str = "NHWC",
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        channel_index(data_format)
        check_positive(channel_multiplier=channel_multiplier)
        self.kernel_shape = kernel_shape
        self.channel_multiplier = channel_multiplier
        self.stride = pad.per_axis(stride, 2, "stride")
        self.rate = pad.per_axis(rate, 2, "rate")
        self.padding = padding
        self.with_bias = with_bias
        self.w_init = w_init
        self.b_init = bias_initializer(with_bias, b_init)
        self.data_format = data_format

    @once
    def _initialize(self, inputs: Any) -> None:
        input_channels = inputs.shape[channel_index(self.data_format)]
        window = pad.per_axis(self.kernel_shape, 2, "kernel_shape")
        w_init = kernel_initializer(self.w_init, window)
        self.w = Variable(w_init([*window, input_channels, self.channel_multiplier], inputs.dtype), name="w")
        if self.b_init is not None:
            self.b = Variable(self.b_init([input_channels * self.channel_multiplier], inputs.dtype), name="b")
        self.input_channels = input_channels

    def __call__(self, inputs: Float[Array, "batch *axes"]) -> Float[Array, "batch *output_axes"]:
        """Returns the convolution of each channel with its own kernels, plus `b`.

        Args:
          inputs: `[batch, height, width, input_channels]`, or with the channels where `data_format` says.

        Returns:
          `[batch, *positions, input_channels * channel_multiplier]`, in the same format.

        Raises:
          ValueError: another rank, another number of channels than on the first call, or an integer dtype; an unknown
            `padding`, or a window wider than the inputs.
          TypeError: a wrong number of kernel sizes or paddings.
        """
        inputs = jnp.asarray(value_of(inputs))
        check_images(self, inputs, 2, self.data_format, getattr(self, "input_channels", None))
        if isinstance(self.padding, str):
            check_padding_name(self.padding)
        self._initialize(inputs)
        outputs = convolve(
            inputs,
            self.w.value.reshape(*self.w.shape[:2], 1, -1),
            stride=self.stride,
            rate=self.rate,
            padding=self.padding,
            data_format=self.data_format,
            groups=inputs.shape[channel_index(self.data_format)],
        )
        return add_per_channel(outputs, self.b.value, self.data_format) if self.with_bias else outputs
