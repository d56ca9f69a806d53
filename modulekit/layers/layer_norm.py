"""Normalization over chosen axes of one example: `LayerNorm`, `InstanceNorm`, `RMSNorm`."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from modulekit.core.arithmetic import array_of
from modulekit.core.module import Module
from modulekit.core.once import once
from modulekit.core.variable import Variable
from modulekit.initializers import Initializer
from modulekit.layers import affine
from modulekit.layers.data_format import channel_index
from modulekit.layers.inputs import location

Axis = int | slice | Sequence[int]


def checked_axis(axis: Axis) -> tuple[int, ...] | slice:
    """Returns the axes of a normalization, or raises `ValueError` for anything but an int, a slice or ints."""
    if isinstance(axis, slice):
        return axis
    if isinstance(axis, int):
        return (axis,)
    if isinstance(axis, Sequence) and all(isinstance(number, int) for number in axis):
        return tuple(axis)
    raise ValueError(f"`axis` should be an int, slice or iterable of ints. Received: {axis!r}")


def axes_of(axis: tuple[int, ...] | slice, rank: int) -> tuple[int, ...]:
    """Returns the axes that an `axis` argument means for inputs of a rank."""
    return tuple(range(rank))[axis] if isinstance(axis, slice) else axis


def standardized(x: Any, axes: Sequence[int], eps: Any) -> Any:
    """Returns `(x - mean) / sqrt(variance + eps)` over axes; the moments of half precision are taken in float32."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean, variance = moments(wide, axes)
    return ((wide - mean) * lax.rsqrt(variance + eps)).astype(x.dtype)


def moments(x: Any, axes: Sequence[int]) -> tuple[Any, Any]:
    """Returns mean and (biased) variance over axes, which are kept."""
    mean = jnp.mean(x, axis=tuple(axes), keepdims=True)
    return mean, jnp.mean(jnp.square(x - lax.stop_gradient(mean)), axis=tuple(axes), keepdims=True)


class LayerNorm(Module):
    """`y = scale (x - mean) / sqrt(variance + eps) + offset`, mean and variance over chosen axes.

    Args:
      axis: the axes to normalize over: an int, a slice or ints. `-1` or `1` for the channels, `slice(1, None)` for all but
        the batch.
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

    Sources: Ba, Kiros and Hinton, Layer normalization, 2016; Sonnet 2, `snt.LayerNorm`, whose formula in words has the
    epsilon beside the root, and whose code has it under the root, as here.

    >>> import modulekit as mk
    >>> mk.LayerNorm(-1, create_scale=True, create_offset=True)(jnp.array([[1.0, 3.0]])).round(3).tolist()
    [[-1.0, 1.0]]
    """

    def __init__(
        self,
        axis: Axis,
        create_scale: bool,
        create_offset: bool,
        eps: float = 1e-5,
        scale_init: Initializer | None = None,
        offset_init: Initializer | None = None,
        data_format: str = "channels_last",
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        channel_index(data_format)
        affine.check_choices(create_scale, create_offset, scale_init, offset_init)
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
          ValueError: another rank than in the first call, or a `scale` or `offset` that the module has itself.
        """
        inputs = array_of(inputs)
        self._initialize(inputs)
        scale = affine.chosen(self, "scale", self.create_scale, self.scale, scale)
        offset = affine.chosen(self, "offset", self.create_offset, self.offset, offset)
        check_rank(self, inputs, self.rank)
        return affine.applied(standardized(inputs, axes_of(self.axis, self.rank), self.eps), scale, offset)


def check_rank(module: Module, inputs: jax.Array, rank: int) -> None:
    """Raises `ValueError` for inputs of another rank than in the first call."""
    if inputs.ndim != rank:
        raise ValueError(
            f"{location(module)}: The rank of the inputs cannot change between calls, the original call was rank={rank} "
            f"but this call was rank={inputs.ndim}."
        )


class InstanceNorm(LayerNorm):
    """`y = scale (x - mean) / sqrt(variance + eps) + offset`, each channel of each example for itself.

    It is a `LayerNorm` over the spatial axes.

    Args:
      create_scale: whether there is a trainable `scale`.
      create_offset: whether there is a trainable `offset`.
      eps: added to the variance.
      scale_init: initializer of `scale`; ones if None.
      offset_init: initializer of `offset`; zeros if None.
      data_format: where the channels are.
      name: the module's name.

    Sources: Ulyanov, Vedaldi and Lempitsky, Instance normalization, 2016; Sonnet 2, `snt.InstanceNorm`.

    >>> import modulekit as mk
    >>> mk.InstanceNorm(create_scale=False, create_offset=False)(jnp.array([[[1.0], [3.0]]])).round(3).tolist()
    [[[-1.0], [1.0]]]
    """

    def __init__(
        self,
        create_scale: bool,
        create_offset: bool,
        eps: float = 1e-5,
        scale_init: Initializer | None = None,
        offset_init: Initializer | None = None,
        data_format: str = "channels_last",
        name: str | None = None,
    ) -> None:
        axis = slice(2, None) if channel_index(data_format) == 1 else slice(1, -1)
        super().__init__(axis, create_scale, create_offset, eps, scale_init, offset_init, data_format, name)


class RMSNorm(Module):
    """`y = scale x / sqrt(mean(x^2) + eps)`, the mean over chosen axes.

    Args:
      axis: the axes to normalize over.
      create_scale: whether there is a trainable `scale`.
      eps: added to the mean square.
      scale_init: initializer of `scale`; ones if None.
      data_format: where the channels are.
      name: the module's name.

    Attributes:
      scale: `[channels]`, or `[channels, 1, ...]` with the channels first; None without. Made on the first call.

    Raises:
      ValueError: `scale_init` without a scale, an unknown data format, or no valid `axis`.

    Source: Zhang and Sennrich, Root mean square layer normalization, 2019, equation 4. Not in Sonnet.

    >>> import modulekit as mk
    >>> mk.RMSNorm()(jnp.array([[2.0, -2.0]])).round(3).tolist()
    [[1.0, -1.0]]
    """

    def __init__(
        self,
        axis: Axis = -1,
        create_scale: bool = True,
        eps: float = 1e-5,
        scale_init: Initializer | None = None,
        data_format: str = "channels_last",
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        channel_index(data_format)
        affine.check_choices(create_scale, True, scale_init, None)
        self.axis = checked_axis(axis)
        self.create_scale = create_scale
        self.eps = eps
        self.scale_init = scale_init
        self.data_format = data_format
        self.scale: Variable | None = None

    @once
    def _initialize(self, inputs: Any) -> None:
        self.rank = inputs.ndim
        if self.create_scale:
            shape = affine.parameter_shape(inputs.shape, self.data_format)
            self.scale = affine.made_scale(self.scale_init, shape, inputs.dtype)

    def __call__(self, inputs: Float[Array, "batch *rest"], scale: Any = None) -> jax.Array:
        """Returns the normalized inputs, an array of their shape and dtype.

        Args:
          inputs: `[batch, ..., channels]`, or `[batch, channels, ...]` with the channels first.
          scale: stands for the module's own, which it must not have; broadcast to the inputs.

        Raises:
          ValueError: another rank than in the first call, or a `scale` that the module has itself.
        """
        inputs = array_of(inputs)
        self._initialize(inputs)
        scale = affine.chosen(self, "scale", self.create_scale, self.scale, scale)
        check_rank(self, inputs, self.rank)
        wide = inputs.astype(jnp.promote_types(inputs.dtype, jnp.float32))
        mean_square = jnp.mean(jnp.square(wide), axis=axes_of(self.axis, self.rank), keepdims=True)
        return affine.applied((wide * lax.rsqrt(mean_square + self.eps)).astype(inputs.dtype), scale, None)
