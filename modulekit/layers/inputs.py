"""Checks of a layer's input, with errors that name the layer by its path."""

from typing import Any

import jax.numpy as jnp

from modulekit.core import names
from modulekit.core.explain import summarize
from modulekit.core.module import Module


def location(module: Module) -> str:
    """Returns where a running module stands: `layers[0] of Sequential(...)`, or its repr if it is the outermost one."""
    for frame in names.frames():
        if frame.module is not None and frame.module is not module:
            path = frame.module.path_of(module)
            if path is not None:
                return f"{module!r} (path {path} in {frame.module!r})"
    return repr(module)


def check_input(module: Module, inputs: Any, input_size: int | None) -> None:
    """Raises `ValueError` unless `inputs` is `[batch, ..., input_size]` of a floating-point dtype.

    Args:
      module: the layer, for the message.
      inputs: what came.
      input_size: the width of the first call; None before it.
    """
    shape, dtype = jnp.shape(inputs), jnp.result_type(inputs)
    if len(shape) < 2:
        raise ValueError(
            f"{location(module)} expects inputs of shape [batch, ..., input_size], rank >= 2, got {summarize(inputs)}: "
            "add a batch axis, as in x[None]"
        )
    if input_size is not None and shape[-1] != input_size:
        raise ValueError(
            f"{location(module)} expects inputs of width {input_size}, got {summarize(inputs)}: a layer's input size is "
            "fixed when its weight is made; use another layer for another width"
        )
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(
            f"{location(module)} expects floating-point inputs, got {summarize(inputs)}: convert them, as in "
            "x.astype('float32')"
        )
