"""`Conv1DLSTM`, `Conv2DLSTM` and `Conv3DLSTM`: LSTMs whose products are convolutions."""

import abc
import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from modulekit.core.module import Module
from modulekit.core.once import once
from modulekit.core.variable import Variable
from modulekit.initializers import Initializer, TruncatedNormal
from modulekit.layers.convolution import convolve
from modulekit.layers.lstm import LSTMState, checked_lstm_state, gate_bias, gated, zero_state
from modulekit.layers.recurrent_inputs import check_positive, check_size, checked_inputs
from modulekit.layers.rnn_core import RNNCore

_SPATIAL = {1: "W", 2: "HW", 3: "DHW"}
_WORDS = {"D": "depth", "H": "height", "W": "width"}


class ConvNDLSTM(RNNCore):
    """Abstract: an LSTM whose state is an image.

    The equations of one step, where `*` is a convolution that keeps the size, `i`, `f`, `g` and `o` are the four quarters
    of the gates' channels, and `s` is the sigmoid:

        i, f, g, o = x * w_i + h * w_h + b
        c' = s(f) c + s(i) tanh(g)
        h' = s(o) tanh(c')

    Args:
      num_spatial_dims: the number of axes that are neither batch nor channels.
      input_shape: the shape of the inputs without the batch, from which the initial state takes its own.
      output_channels: the channels of `h` and `c`.
      kernel_shape: the size of the kernels along each spatial axis, or one number for all.
      data_format: `N...C` (also None or `channels_last`), or `NC...` (also `channels_first`).
      w_i_init: initializer of `w_i`; truncated normal with standard deviation `1 / sqrt(n)` if None, where `n` is the
        number of weights of one output.
      w_h_init: initializer of `w_h`; likewise.
      b_init: initializer of `b`; zeros if None.
      forget_bias: what is added to the quarter of `b` that belongs to `f`, so that a fresh LSTM forgets little.
      dtype: of the variables; the inputs must have it.
      name: the module's name.

    Attributes:
      input_to_hidden: `w_i`, `[*kernel_shape, input_channels, 4 * output_channels]`, made on the first call.
      hidden_to_hidden: `w_h`, `[*kernel_shape, output_channels, 4 * output_channels]`.
      b: `[4 * output_channels]`.

    Raises:
      ValueError: an unknown data format, an `input_shape` of another rank, or `output_channels` below 1.

    Source: Shi et al., Convolutional LSTM network: a machine learning approach for precipitation nowcasting, 2015.
    Sonnet 2, `snt.Conv2DLSTM` and its siblings; there, channels first fails.
    """

    @abc.abstractmethod
    def __init__(
        self,
        num_spatial_dims: int,
        input_shape: Sequence[int],
        output_channels: int,
        kernel_shape: int | Sequence[int],
        data_format: str | None = None,
        w_i_init: Initializer | None = None,
        w_h_init: Initializer | None = None,
        b_init: Initializer | None = None,
        forget_bias: float = 1.0,
        dtype: Any = jnp.float32,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        check_positive(output_channels=output_channels)
        if len(input_shape) != num_spatial_dims + 1:
            raise ValueError(
                f"input_shape={list(input_shape)} of {type(self).__name__} has {len(input_shape)} axes: expected "
                f"{num_spatial_dims + 1}, those of the inputs without the batch"
            )
        self.num_spatial_dims = num_spatial_dims
        self.input_shape = tuple(input_shape)
        self.output_channels = output_channels
        self.channel_axis = channel_axis(data_format)
        self.b_init = b_init
        self.forget_bias = forget_bias
        self.dtype = dtype
        convolution = (num_spatial_dims, 4 * output_channels, kernel_shape, self.channel_axis)
        self._input_to_hidden = SameConvolution(*convolution, w_i_init, name="input_to_hidden")
        self._hidden_to_hidden = SameConvolution(*convolution, w_h_init, name="hidden_to_hidden")

    @property
    def input_to_hidden(self) -> Variable:
        """The kernel of the inputs, `[*kernel_shape, input_channels, 4 * output_channels]`."""
        return self._input_to_hidden.w

    @property
    def hidden_to_hidden(self) -> Variable:
        """The kernel of the hidden state, `[*kernel_shape, output_channels, 4 * output_channels]`."""
        return self._hidden_to_hidden.w

    @once
    def _initialize(self) -> None:
        self.b = Variable(gate_bias(self.b_init, self.output_channels, self.forget_bias, self.dtype), name="b")

    def __call__(
        self, inputs: Float[Array, "batch *image"], prev_state: LSTMState
    ) -> tuple[Float[Array, "batch *output_image"], LSTMState]:
        """Returns the new hidden state, and the state after the step.

        Args:
          inputs: `[batch, ..., input_channels]`, with as many axes between as the name says; with channels first,
            `[batch, input_channels, ...]`.
          prev_state: `h` and `c`, from `initial_state` or from the step before.

        Returns:
          `(h', LSTMState(h', c'))`, of the shape of the inputs with `output_channels` for the channels.

        Raises:
          ValueError: another rank, other channels than on the first call, or a state of another shape.
          TypeError: another dtype than the core's, a state that is no `LSTMState`, or a `kernel_shape` of another length.
        """
        axis = self.channel_axis
        x = checked_inputs(self, inputs, axis_names(self.num_spatial_dims, axis), self.dtype)
        check_size(self, x, getattr(self._input_to_hidden, "input_channels", None), axis)
        shape = with_channels(x.shape, self.output_channels, axis)
        h, c = checked_lstm_state(self, prev_state, shape, shape, self.dtype)
        self._initialize()
        b = self.b.value.reshape(with_channels((1,) * x.ndim, -1, axis))
        h, c = gated(self._input_to_hidden(x) + self._hidden_to_hidden(h) + b, c, axis)
        return h, LSTMState(hidden=h, cell=c)

    def initial_state(self, batch_size: int) -> LSTMState:
        """Returns zeros.

        Args:
          batch_size: the number of sequences.
        """
        shape = with_channels((batch_size, *self.input_shape), self.output_channels, self.channel_axis)
        return zero_state(shape, shape, self.dtype)


class Conv1DLSTM(ConvNDLSTM):
    """An LSTM whose state is a row of pixels: `i, f, g, o = x * w_i + h * w_h + b`.

    Args:
      input_shape: `[width, input_channels]`.
      output_channels: the channels of `h` and `c`.
      kernel_shape: the width of the kernels.
      data_format: "NWC", or "NCW" for channels first.
      w_i_init: this and the other arguments are those of `ConvNDLSTM`.

    Source: Sonnet 2, `snt.Conv1DLSTM`.

    >>> import modulekit as mk
    >>> core = mk.Conv1DLSTM([8, 3], output_channels=4, kernel_shape=3)
    >>> core(jnp.ones([2, 8, 3]), core.initial_state(2))[0].shape
    (2, 8, 4)
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        output_channels: int,
        kernel_shape: int | Sequence[int],
        data_format: str | None = "NWC",
        w_i_init: Initializer | None = None,
        w_h_init: Initializer | None = None,
        b_init: Initializer | None = None,
        forget_bias: float = 1.0,
        dtype: Any = jnp.float32,
        name: str | None = None,
    ) -> None:
        super().__init__(
            1,
            input_shape,
            output_channels,
            kernel_shape,
            data_format,
            w_i_init,
            w_h_init,
            b_init,
            forget_bias,
            dtype,
            name,
        )


class Conv2DLSTM(ConvNDLSTM):
    """An LSTM whose state is an image: `i, f, g, o = x * w_i + h * w_h + b`.

    Args:
      input_shape: `[height, width, input_channels]`.
      output_channels: the channels of `h` and `c`.
      kernel_shape: the height and width of the kernels, or one number for both.
      data_format: "NHWC", or "NCHW" for channels first.
      w_i_init: this and the other arguments are those of `ConvNDLSTM`.

    Source: Sonnet 2, `snt.Conv2DLSTM`.

    >>> import modulekit as mk
    >>> core = mk.Conv2DLSTM([8, 6, 3], output_channels=4, kernel_shape=3)
    >>> core(jnp.ones([2, 8, 6, 3]), core.initial_state(2))[0].shape
    (2, 8, 6, 4)
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        output_channels: int,
        kernel_shape: int | Sequence[int],
        data_format: str | None = "NHWC",
        w_i_init: Initializer | None = None,
        w_h_init: Initializer | None = None,
        b_init: Initializer | None = None,
        forget_bias: float = 1.0,
        dtype: Any = jnp.float32,
        name: str | None = None,
    ) -> None:
        super().__init__(
            2,
            input_shape,
            output_channels,
            kernel_shape,
            data_format,
            w_i_init,
            w_h_init,
            b_init,
            forget_bias,
            dtype,
            name,
        )


class Conv3DLSTM(ConvNDLSTM):
    """An LSTM whose state is a volume: `i, f, g, o = x * w_i + h * w_h + b`.

    Args:
      input_shape: `[depth, height, width, input_channels]`.
      output_channels: the channels of `h` and `c`.
      kernel_shape: the depth, height and width of the kernels, or one number for all.
      data_format: "NDHWC", or "NCDHW" for channels first.
      w_i_init: this and the other arguments are those of `ConvNDLSTM`.

    Source: Sonnet 2, `snt.Conv3DLSTM`.

    >>> import modulekit as mk
    >>> core = mk.Conv3DLSTM([4, 3, 2, 3], output_channels=4, kernel_shape=3)
    >>> core(jnp.ones([2, 4, 3, 2, 3]), core.initial_state(2))[0].shape
    (2, 4, 3, 2, 4)
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        output_channels: int,
        kernel_shape: int | Sequence[int],
        data_format: str | None = "NDHWC",
        w_i_init: Initializer | None = None,
        w_h_init: Initializer | None = None,
        b_init: Initializer | None = None,
        forget_bias: float = 1.0,
        dtype: Any = jnp.float32,
        name: str | None = None,
    ) -> None:
        super().__init__(
            3,
            input_shape,
            output_channels,
            kernel_shape,
            data_format,
            w_i_init,
            w_h_init,
            b_init,
            forget_bias,
            dtype,
            name,
        )


class SameConvolution(Module):
    """`y = x * w`, of the size of `x`; where the padding is odd, there is more of it at the end.

    Args:
      num_spatial_dims: the number of axes that are neither batch nor channels.
      output_channels: the channels of `y`.
      kernel_shape: the size of the kernel along each spatial axis, or one number for all.
      channel_axis: -1, or 1 for channels first.
      w_init: initializer of `w`; truncated normal with standard deviation `1 / sqrt(fan_in)` if None.
      name: the module's name.

    Attributes:
      w: `[*kernel_shape, input_channels, output_channels]`, made on the first call.
    """

    def __init__(
        self,
        num_spatial_dims: int,
        output_channels: int,
        kernel_shape: int | Sequence[int],
        channel_axis: int,
        w_init: Initializer | None,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        self.num_spatial_dims = num_spatial_dims
        self.output_channels = output_channels
        self.kernel_shape = kernel_shape
        self.channel_axis = channel_axis
        self.w_init = w_init

    @once
    def _initialize(self, inputs: jax.Array) -> None:
        sizes = (self.kernel_shape,) if isinstance(self.kernel_shape, int) else tuple(self.kernel_shape)
        if len(sizes) not in (1, self.num_spatial_dims):
            raise TypeError(
                f"kernel_shape must be a scalar or sequence of length 1 or sequence of length {self.num_spatial_dims}, got "
                f"{self.kernel_shape!r}"
            )
        kernel = sizes * self.num_spatial_dims if len(sizes) == 1 else sizes
        self.input_channels = inputs.shape[self.channel_axis]
        w_init = self.w_init or TruncatedNormal(stddev=1 / math.sqrt(math.prod(kernel) * self.input_channels))
        self.w = Variable(w_init([*kernel, self.input_channels, self.output_channels], inputs.dtype), name="w")

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Returns `inputs * w`."""
        self._initialize(inputs)
        data_format = "channels_first" if self.channel_axis == 1 else "channels_last"
        return convolve(inputs, self.w.value, data_format=data_format)


def channel_axis(data_format: str | None) -> int:
    """Returns the axis of the channels: -1, or 1 if they come first; raises `ValueError` for an unknown format.

    >>> channel_axis("NHWC"), channel_axis("NCHW")
    (-1, 1)
    """
    if data_format is None or data_format == "channels_last" or re.fullmatch("N[^C]*C", data_format):
        return -1
    if data_format == "channels_first" or re.fullmatch("NC[^C]*", data_format):
        return 1
    raise ValueError(
        f"Unable to extract channel information from {data_format!r}: give a format such as 'NHWC' or 'NCHW', "
        "'channels_last' or 'channels_first'"
    )


def axis_names(num_spatial_dims: int, channel_axis: int) -> list[str]:
    """Returns the names of the axes of an image, for messages."""
    spatial = [_WORDS[letter] for letter in _SPATIAL[num_spatial_dims]]
    return ["batch", "input_channels", *spatial] if channel_axis == 1 else ["batch", *spatial, "input_channels"]


def with_channels(shape: tuple[int, ...], channels: int, axis: int) -> tuple[int, ...]:
    """Returns a shape with another size along the axis of the channels."""
    return (shape[0], channels, *shape[2:]) if axis == 1 else (*shape[:-1], channels)
