"""Checks of what a recurrent core is given, with errors that name the core by its path."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from modulekit.core.arithmetic import value_of
from modulekit.core.explain import summarize
from modulekit.core.module import Module
from modulekit.layers.inputs import location


def checked_inputs(module: Module, inputs: Any, axes: Sequence[str], dtype: Any) -> jax.Array:
    """Returns a core's inputs as an array.

    Args:
      module: the core, for the message.
      inputs: what came.
      axes: the names of the axes that are expected.
      dtype: of the core's variables.

    Raises:
      TypeError: another dtype.
      ValueError: another rank.
    """
    array = with_dtype(module, inputs, dtype)
    if array.ndim != len(axes):
        raise ValueError(
            f"{location(module)} expects inputs of shape [{', '.join(axes)}], got {summarize(array)}: they must have rank "
            f"{len(axes)}"
        )
    return array


def with_dtype(module: Module, inputs: Any, dtype: Any) -> jax.Array:
    """Returns inputs as an array, or raises `TypeError` if they are not of the dtype of the core's variables."""
    array = jnp.asarray(value_of(inputs))
    if array.dtype != jnp.dtype(dtype):
        raise TypeError(
            f"{location(module)}: inputs must have dtype {jnp.dtype(dtype)}, got {summarize(array)}: convert them, or make "
            f"the core with dtype='{array.dtype}'"
        )
    return array


def check_size(module: Module, inputs: jax.Array, size: int | None, axis: int = -1) -> None:
    """Raises `ValueError` if the inputs have another size along `axis` than on the first call (`size`, None before it)."""
    if size is not None and inputs.shape[axis] != size:
        raise ValueError(
            f"{location(module)} expects inputs with {size} features, got {summarize(inputs)}: a core's input size is fixed "
            "when its weight is made; use another core for another size"
        )


def checked_state(module: Module, state: Any, shape: Sequence[int], dtype: Any, part: str = "prev_state") -> jax.Array:
    """Returns a core's state, or a part of it, as an array.

    Args:
      module: the core, for the message.
      state: what came.
      shape: the expected shape; the first axis may also be 1, for a state that all sequences share.
      dtype: of the core's variables.
      part: the name of the state, for the message.

    Raises:
      TypeError: another dtype.
      ValueError: another shape.
    """
    array = jnp.asarray(value_of(state))
    remedy = "begin with core.initial_state(batch_size), and go on with the state that the core returns"
    if array.shape not in (tuple(shape), (1, *shape[1:])):
        raise ValueError(f"{location(module)} expects {part} of shape {list(shape)}, got {summarize(array)}: {remedy}")
    if array.dtype != jnp.dtype(dtype):
        raise TypeError(
            f"{location(module)}: {part} must have dtype {jnp.dtype(dtype)}, got {summarize(array)}: {remedy}"
        )
    return array


class _Text(str):
    __slots__ = ()
    __repr__ = str.__str__


def form_of(state: Any) -> str:
    """Returns the structure, shapes and dtypes of a state, for messages.

    >>> form_of((jnp.ones([2, 3]), {"count": 1}))
    "(float32[2,3], {'count': 1})"
    """
    return repr(jax.tree.map(lambda part: _Text(summarize(part)), state))


def check_positive(**sizes: int | None) -> None:
    """Raises `ValueError` for a size below 1, by its name; None passes."""
    for name, size in sizes.items():
        if size is not None and size < 1:
            raise ValueError(f"{name}={size} is below 1")
