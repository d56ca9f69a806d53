"""Scale and offset: what a normalization applies per channel after it has normalized."""

from collections.abc import Sequence
from typing import Any

from modulekit.core.arithmetic import array_of
from modulekit.core.module import Module
from modulekit.core.variable import Variable
from modulekit.initializers import Initializer, Ones, Zeros
from modulekit.layers.data_format import channel_index
from modulekit.layers.inputs import location


def check_choices(create_scale: bool, create_offset: bool, scale_init: Any, offset_init: Any) -> None:
    """Raises `ValueError` if there is an initializer for a scale or offset that is not created."""
    if not create_scale and scale_init is not None:
        raise ValueError(f"Cannot set `scale_init` if `create_scale=False`. Received: scale_init={scale_init!r}")
    if not create_offset and offset_init is not None:
        raise ValueError(f"Cannot set `offset_init` if `create_offset=False`. Received: offset_init={offset_init!r}")


def parameter_shape(shape: Sequence[int], data_format: str) -> list[int]:
    """Returns the shape of one number per channel: `[channels]`, or `[channels, 1, ...]` with the channels first."""
    if channel_index(data_format) == -1:
        return [shape[-1]]
    return [shape[1]] + [1] * (len(shape) - 2)


def made_scale(init: Initializer | None, shape: Sequence[int], dtype: Any, trainable: bool = True) -> Variable:
    """Returns the variable of a scale; ones if there is no initializer."""
    return Variable((init or Ones())(shape, dtype), trainable=trainable, name="scale")


def made_offset(init: Initializer | None, shape: Sequence[int], dtype: Any, trainable: bool = True) -> Variable:
    """Returns the variable of an offset; zeros if there is no initializer."""
    return Variable((init or Zeros())(shape, dtype), trainable=trainable, name="offset")


def chosen(module: Module, name: str, created: bool, own: Any, given: Any) -> Any:
    """Returns the scale or offset to apply: the module's own, or the one given in the call; None if there is neither.

    Raises:
      ValueError: both are there.
    """
    if created and given is not None:
        raise ValueError(f"{location(module)}: Cannot pass `{name}` at call time if `create_{name}=True`.")
    if given is None:
        return None if own is None else own.value
    return array_of(given)


def applied(normalized: Any, scale: Any, offset: Any) -> Any:
    """Returns `normalized * scale + offset`, each where there is one, in the dtype of `normalized`."""
    if scale is not None:
        normalized = normalized * scale.astype(normalized.dtype)
    return normalized if offset is None else normalized + offset.astype(normalized.dtype)
