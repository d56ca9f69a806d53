"""`GroupNorm`: normalization over groups of channels."""

from typing import Any

import jax
from jaxtyping import Array, Float

from modulekit.core.arithmetic import array_of
from modulekit.core.module import Module
from modulekit.core.once import once
from modulekit.core.variable import Variable
from modulekit.initializers import Initializer
from modulekit.layers import affine
from modulekit.layers.data_format import channel_index
from modulekit.layers.inputs import location
from modulekit.layers.layer_norm import Axis, axes_of, check_rank, checked_axis, standardized


class GroupNorm(Module):
    """`y = scale (x - mean) / sqrt(variance + eps) + offset`, mean and variance over the channels of a group and other axes.

    Args:
      groups: the number of groups; it divides the number of channels.
      axis: the axes to normalize over; by default all but the batch. `slice(2, None)` for `[batch, time, ...]`.
      create_scale: whether there is a trainable `scale`.
      create_offset: whether there is a trainable `offset`.
      eps: added to the variance.
      scale_init: initializer of `scale`; ones if None.
      offset_init: initializer of `offset`; zeros if None.
      data_format: where the channels are: `channels_last`, `channels_first`, `NHWC`, `NCHW` and the like.
      name: the module's name.

    Attributes:
      scale: `[channels]`, or `[channels, 1, ...]` with the channels first; None without. Made on the first call.
      offset: likewise.

    Raises:
      ValueError: an initializer without what it initializes, an unknown data format, or no valid `axis`.

    Sources: Wu and He, Group normalization, 2018; Sonnet 2, `snt.GroupNorm`.

    >>> import modulekit as mk, jax.numpy as jnp
    >>> mk.GroupNorm(2)(jnp.array([[1.0, 3.0, 10.0, 30.0]])).round(3).tolist()
    [[-1.0, 1.0, -1.0, 1.0]]
    """

    def __init__(
        self,
        groups: int,
        axis: Axis = slice(1, None),
        create_scale: bool = True,
        create_offset: bool = True,
        eps: float = 1e-5,
        scale_init: Initializer | None = None,
        offset_init: Initializer | None = None,
        data_format: str = "channels_last",
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        channel_index(data_format)
        affine.check_choices(create_scale, create_offset, scale_init, offset_init)
        self.groups = groups
        self.axis = checked_axis(axis)
        self.create_scale = create_scale
        self.create_offset = create_offset
        self.eps = eps
        self.scale_init = scale_init
        self.offset_init = offset_init
        self.data_format = data_format
        self.scale: Variable | None = None
        self.offset: Variable | None = None

    @once
    def _initialize(self, inputs: Any) -> None:
        self.rank = inputs.ndim
        channels = inputs.shape[channel_index(self.data_format)]
        if channels % self.groups != 0:
            raise ValueError(
                f"{location(self)}: The number of channels must be divisible by the number of groups, was channels = "
                f"{channels}, groups = {self.groups}"
            )
        shape = affine.parameter_shape(inputs.shape, self.data_format)
        if self.create_scale:
            self.scale = affine.made_scale(self.scale_init, shape, inputs.dtype)
        if self.create_offset:
            self.offset = affine.made_offset(self.offset_init, shape, inputs.dtype)

    def __call__(self, inputs: Float[Array, "batch *rest"], scale: Any = None, offset: Any = None) -> jax.Array:
        """Returns the normalized inputs.

        Args:
          inputs: `[batch, ..., channels]`, or `[batch, channels, ...]` with the channels first.
          scale: stands for the module's own, which it must not have; broadcast to the inputs.
          offset: likewise.

        Returns:
          An array of the shape and dtype of `inputs`.

        Raises:
          ValueError: the channels do not divide into groups, another rank than in the first call, or a `scale` or `offset`
            that the module has itself.
        """
        inputs = array_of(inputs)
        self._initialize(inputs)
        scale = affine.chosen(self, "scale", self.create_scale, self.scale, scale)
        offset = affine.chosen(self, "offset", self.create_offset, self.offset, offset)
        check_rank(self, inputs, self.rank)
        grouped, axes = self._grouped(inputs)
        normalized = standardized(grouped, axes, self.eps).reshape(inputs.shape)
        return affine.applied(normalized, scale, offset)

    def _grouped(self, inputs: jax.Array) -> tuple[jax.Array, list[int]]:
        """Returns the inputs with the channels split into two axes, groups first, and the axes to normalize over."""
        axes = axes_of(self.axis, self.rank)
        if channel_index(self.data_format) == -1:
            shape = [*inputs.shape[:-1], self.groups, inputs.shape[-1] // self.groups]
            return inputs.reshape(shape), [a + 1 if a == self.rank - 1 else a for a in axes]
        shape = [inputs.shape[0], self.groups, inputs.shape[1] // self.groups, *inputs.shape[2:]]
        return inputs.reshape(shape), [a if a == 0 else a + 1 for a in axes]
