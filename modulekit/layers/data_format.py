"""Data formats: where an array has its channels, and what that means for its axes.

A format is a word with one letter for each axis, such as `NHWC` or `NCW`, or `channels_first` or `channels_last`. What
counts is where the channels stand: right behind the batch, or last.
"""

import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from modulekit.core.explain import summarize
from modulekit.core.module import Module
from modulekit.layers.inputs import location

_FIRST = re.compile(r"NC[^C]*|channels_first")
_LAST = re.compile(r"N[^C]*C|(BT|TB)[^D]*D|channels_last")
_SPATIAL_NAMES = {1: ("width",), 2: ("height", "width"), 3: ("depth", "height", "width")}


def channel_index(data_format: str) -> int:
    """Returns the axis of the channels: 1 or -1.

    Args:
      data_format: such as `NHWC`, `NCHW`, `BTD`, `channels_first` or `channels_last`.

    Raises:
      ValueError: it is none of these.

    >>> channel_index("NCW"), channel_index("NHWC")
    (1, -1)
    """
    if _FIRST.fullmatch(data_format):
        return 1
    if _LAST.fullmatch(data_format):
        return -1
    raise ValueError(
        f"Unable to extract channel information from {data_format!r}: use a spatial format (such as 'NHWC' or 'NCHW'), "
        "a sequential one (such as 'BTHWD'), 'channels_first' or 'channels_last'"
    )


def spatial_axes(rank: int, data_format: str) -> range:
    """Returns the axes that are neither batch nor channels.

    >>> list(spatial_axes(4, "NHWC")), list(spatial_axes(4, "NCHW"))
    ([1, 2], [2, 3])
    """
    return range(2, rank) if channel_index(data_format) == 1 else range(1, rank - 1)


def over_axes(values: Sequence[Any], data_format: str, other: Any) -> tuple[Any, ...]:
    """Returns one value for every axis: `values` for the spatial axes, `other` for batch and channels.

    >>> over_axes([2, 3], "NHWC", other=1)
    (1, 2, 3, 1)
    """
    spatial = tuple(values)
    return (other, other, *spatial) if channel_index(data_format) == 1 else (other, *spatial, other)


def add_per_channel(inputs: jax.Array, b: jax.Array, data_format: str) -> jax.Array:
    """Returns `inputs + b`, where `b` has one number for each channel."""
    return inputs + lax.broadcast_in_dim(b, inputs.shape, [channel_index(data_format) % inputs.ndim])


def check_images(
    module: Module, inputs: jax.Array, num_spatial_dims: int, data_format: str, input_channels: int | None
) -> None:
    """Raises `ValueError` unless `inputs` has the right rank and number of channels, and is of a floating-point dtype.

    Args:
      module: the layer, for the message.
      inputs: what came.
      num_spatial_dims: how many spatial axes there must be.
      data_format: where the channels must be.
      input_channels: their number in the first call; None before it.
    """
    index = channel_index(data_format)
    if inputs.ndim != num_spatial_dims + 2:
        names = _SPATIAL_NAMES[num_spatial_dims]
        axes = ", ".join(("batch", "channels", *names) if index == 1 else ("batch", *names, "channels"))
        raise ValueError(
            f"{location(module)}: inputs must have rank {num_spatial_dims + 2}, [{axes}], got {summarize(inputs)}"
        )
    if input_channels is not None and inputs.shape[index] != input_channels:
        raise ValueError(
            f"{location(module)} expects inputs with {input_channels} channels on axis {index}, got {summarize(inputs)}: "
            "their number is fixed when the weight is made; use another layer for another number"
        )
    if not jnp.issubdtype(inputs.dtype, jnp.floating):
        raise ValueError(
            f"{location(module)} expects floating-point inputs, got {summarize(inputs)}: convert them, as in "
            "x.astype('float32')"
        )
