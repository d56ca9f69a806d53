"""`Conv1D`, `Conv2D`, `Conv3D`."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from modulekit import pad
from modulekit.core.arithmetic import value_of
from modulekit.core.module import Module
from modulekit.core.once import once
from modulekit.core.variable import Variable
from modulekit.initializers import Initializer
from modulekit.layers.convolution import Sizes, bias_initializer, check_positive, convolve, kernel_initializer
from modulekit.layers.data_format import add_per_channel, channel_index, check_images
from modulekit.layers.inputs import location


class ConvND(Module):
    """Abstract: `y[n, p, o] = sum_{k, i} x[n, p stride + k rate - before, i] w[k, i, o] + b[o]`, `p` and `k` positions.

    `before` is the padding in front; beyond the inputs, `x` is 0.

    Args:
      num_spatial_dims: the number of spatial axes.
      output_channels: the number of outputs at each position.
      kernel_shape: the size of the window, one for all spatial axes or one for each.
      stride: the step of the window, one for all axes or one for each.
      rate: the distance of the inputs that a window covers, one for all axes or one for each; above 1, a dilated
        convolution.
      padding: "SAME" (`ceil(inputs / stride)` outputs), "VALID" or None (none), a function as in `mk.pad`,
        `[before, after]`, or a list of one of these for each axis.
      with_bias: whether there is a `b`.
      w_init: initializer of `w`; truncated normal with standard deviation `1 / sqrt(window * input_channels / groups)` if
        None.
      b_init: initializer of `b`; zeros if None.
      data_format: where the channels are: last, as in `NHWC` or `channels_last`, or first, as in `NCHW` or
        `channels_first`.
      name: the module's name.
      groups: divides the channels into groups; each output channel sees the input channels of its own group only.

    Attributes:
      w: `[*window, input_channels / groups, output_channels]` in any data format, made on the first call.
      b: `[output_channels]`.
      input_channels: their number, known after the first call.

    Raises:
      ValueError: an unknown `data_format`, `b_init` without a bias, or `groups` that do not divide `output_channels`.
    """

    def __init__(
        self,
        num_spatial_dims: int,
        output_channels: int,
        kernel_shape: Sizes,
        stride: Sizes,
        rate: Sizes,
        padding: str | pad.Paddings | None,
        with_bias: bool,
        w_init: Initializer | None,
        b_init: Initializer | None,
        data_format: str,
        name: str | None,
        groups: int,
    ) -> None:
        super().__init__(name=name)
        channel_index(data_format)
        check_positive(output_channels=output_channels, groups=groups)
        if output_channels % groups:
            raise ValueError(f"groups={groups} do not divide output_channels={output_channels}")
        self.num_spatial_dims = num_spatial_dims
        self.output_channels = output_channels
        self.kernel_shape = kernel_shape
        self.stride = stride
        self.rate = rate
        self.padding = padding
        self.with_bias = with_bias
        self.w_init = w_init
        self.b_init = bias_initializer(with_bias, b_init)
        self.data_format = data_format
        self.groups = groups

    @once
    def _initialize(self, inputs: Any) -> None:
        input_channels = inputs.shape[channel_index(self.data_format)]
        if input_channels % self.groups:
            raise ValueError(
                f"{location(self)}: groups={self.groups} do not divide the {input_channels} channels of the inputs"
            )
        window = pad.per_axis(self.kernel_shape, self.num_spatial_dims, "kernel_shape")
        seen = (*window, input_channels // self.groups)
        w_init = kernel_initializer(self.w_init, seen)
        self.w = Variable(w_init([*seen, self.output_channels], inputs.dtype), name="w")
        if self.b_init is not None:
            self.b = Variable(self.b_init([self.output_channels], inputs.dtype), name="b")
        self.input_channels = input_channels

    def __call__(self, inputs: Float[Array, "batch *axes"]) -> Float[Array, "batch *output_axes"]:
        """Returns the convolution of `inputs` with `w`, plus `b`.

        Args:
          inputs: `[batch, *spatial, input_channels]`, or with the channels where `data_format` says.

        Returns:
          `[batch, *positions, output_channels]`, in the same format.

        Raises:
          ValueError: another rank, another number of channels than on the first call, or an integer dtype; an unknown
            `padding`, a wrong number of strides or rates, or a window wider than the inputs.
          TypeError: a wrong number of kernel sizes or paddings.
        """
        inputs = jnp.asarray(value_of(inputs))
        known = getattr(self, "input_channels", None)
        check_images(self, inputs, self.num_spatial_dims, self.data_format, known)
        self._initialize(inputs)
        outputs = convolve(
            inputs,
            self.w.value,
            stride=self.stride,
            rate=self.rate,
            padding=self.padding,
            data_format=self.data_format,
            groups=self.groups,
        )
        return add_per_channel(outputs, self.b.value, self.data_format) if self.with_bias else outputs


class Conv1D(ConvND):
    """Convolves `[batch, width, channels]`: `y[n, p, o] = sum_{k, i} x[n, p stride + k rate - before, i] w[k, i, o] + b[o]`.

    Arguments, attributes and errors are those of `ConvND`.

    Source: Sonnet 2, `snt.Conv1D`. `groups`, and numbers for `padding`, are additions.

    >>> import modulekit as mk
    >>> layer = mk.Conv1D(16, kernel_shape=3, padding=mk.pad.causal)
    >>> layer(jnp.ones([8, 100, 4])).shape, layer.w.shape
    ((8, 100, 16), (3, 4, 16))
    """

    def __init__(
        self,
        output_channels: int,
        kernel_shape: Sizes,
        stride: Sizes = 1,
        rate: Sizes = 1,
        padding: str | pad.Paddings | None = "SAME",
        with_bias: bool = True,
        w_init: Initializer | None = None,
        b_init: Initializer | None = None,
        data_format: str = "NWC",
        name: str | None = None,
        *,
        groups: int = 1,
    ) -> None:
        super().__init__(
            1,
            output_channels,
            kernel_shape,
            stride,
            rate,
            padding,
            with_bias,
            w_init,
            b_init,
            data_format,
            name,
            groups,
        )


class Conv2D(ConvND):
    """Convolves `[batch, height, width, channels]`; positions `p` and `k` are pairs, a row and a column.

    `y[n, p, o] = sum_{k, i} x[n, p stride + k rate - before, i] w[k, i, o] + b[o]`; `before` is the padding in front.

    Arguments, attributes and errors are those of `ConvND`.

    Source: Sonnet 2, `snt.Conv2D`. `groups`, and numbers for `padding`, are additions.

    >>> import modulekit as mk
    >>> layer = mk.Conv2D(16, kernel_shape=[5, 3], stride=2)
    >>> layer(jnp.ones([8, 28, 28, 1])).shape, layer.w.shape
    ((8, 14, 14, 16), (5, 3, 1, 16))
    """

    def __init__(
        self,
        output_channels: int,
        kernel_shape: Sizes,
        stride: Sizes = 1,
        rate: Sizes = 1,
        padding: str | pad.Paddings | None = "SAME",
        with_bias: bool = True,
        w_init: Initializer | None = None,
        b_init: Initializer | None = None,
        data_format: str = "NHWC",
        name: str | None = None,
        *,
        groups: int = 1,
    ) -> None:
        super().__init__(
            2,
            output_channels,
            kernel_shape,
            stride,
            rate,
            padding,
            with_bias,
            w_init,
            b_init,
            data_format,
            name,
            groups,
        )


class Conv3D(ConvND):
    """Convolves `[batch, depth, height, width, channels]`; positions `p` and `k` have three parts.

    `y[n, p, o] = sum_{k, i} x[n, p stride + k rate - before, i] w[k, i, o] + b[o]`; `before` is the padding in front.

    Arguments, attributes and errors are those of `ConvND`.

    Source: Sonnet 2, `snt.Conv3D`. `groups`, and numbers for `padding`, are additions.

    >>> import modulekit as mk
    >>> layer = mk.Conv3D(4, kernel_shape=3, data_format="NCDHW")
    >>> layer(jnp.ones([2, 1, 5, 6, 7])).shape, layer.w.shape
    ((2, 4, 5, 6, 7), (3, 3, 3, 1, 4))
    """

    def __init__(
        self,
        output_channels: int,
        kernel_shape: Sizes,
        stride: Sizes = 1,
        rate: Sizes = 1,
        padding: str | pad.Paddings | None = "SAME",
        with_bias: bool = True,
        w_init: Initializer | None = None,
        b_init: Initializer | None = None,
        data_format: str = "NDHWC",
        name: str | None = None,
        *,
        groups: int = 1,
    ) -> None:
        super().__init__(
            3,
            output_channels,
            kernel_shape,
            stride,
            rate,
            padding,
            with_bias,
            w_init,
            b_init,
            data_format,
            name,
            groups,
        )
