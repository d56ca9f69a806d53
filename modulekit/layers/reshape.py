"""Reshaping of all axes behind the leading ones, as functions and as modules."""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Shaped

from modulekit.core.arithmetic import ArrayLike, value_of
from modulekit.core.explain import summarize
from modulekit.core.methods import no_name_scope
from modulekit.core.module import Module, allow_empty_variables
from modulekit.core.once import once


def reshape(
    inputs: ArrayLike, output_shape: int | Sequence[int], preserve_dims: int = 1, name: str | None = None
) -> Shaped[Array, "*axes"]:
    """Returns `inputs` with its axes after the first `preserve_dims` reshaped; the elements keep their order.

    `y = jnp.reshape(inputs, [*preserved, *output_shape])`.

    Args:
      inputs: `[*preserved, *axes]`.
      output_shape: the sizes in place of `axes`. At most one is -1, which stands for what is left.
      preserve_dims: the number of leading axes that stay.
      name: without effect.

    Returns:
      `[*preserved, *output_shape]`.

    Raises:
      ValueError: a `preserve_dims` below 1 or above the rank, more than one -1, or sizes that do not hold the elements.

    Source: Sonnet 2, `snt.reshape`.

    >>> reshape(jnp.ones([2, 3, 4, 5]), [-1, 5]).shape
    (2, 12, 5)
    """
    _check_preserved(preserve_dims)
    inputs = jnp.asarray(value_of(inputs))
    if inputs.ndim < preserve_dims:
        raise ValueError(
            f"Input tensor has {inputs.ndim} dimensions, should have at least as many as preserve_dims={preserve_dims}: "
            f"got {summarize(inputs)}"
        )
    preserved, axes = inputs.shape[:preserve_dims], inputs.shape[preserve_dims:]
    wanted = (output_shape,) if isinstance(output_shape, int) else tuple(output_shape)
    elements, known = math.prod(axes), math.prod(size for size in wanted if size != -1)
    resolved = tuple(elements // max(known, 1) if size == -1 else size for size in wanted)
    if wanted.count(-1) > 1 or min(resolved, default=0) < 0 or math.prod(resolved) != elements:
        raise ValueError(
            f"output_shape={list(wanted)} does not hold the {elements} elements of {list(axes)}, the axes of "
            f"{summarize(inputs)} after the first {preserve_dims}: give sizes whose product is {elements}, at most one -1"
        )
    return inputs.reshape(*preserved, *resolved)


def flatten(inputs: ArrayLike, name: str = "flatten") -> Shaped[Array, "batch size"]:
    """Returns `inputs` with all axes after the first as one, `y = jnp.reshape(inputs, [batch, -1])`.

    Args:
      inputs: `[batch, ...]`.
      name: without effect.

    Returns:
      `[batch, size]`, where `size` is the product of the other axes, 1 if there are none.

    Raises:
      ValueError: a scalar.

    Source: Sonnet 2, `snt.flatten`.

    >>> flatten(jnp.ones([2, 3, 4])).shape, flatten(jnp.ones([2])).shape
    ((2, 12), (2, 1))
    """
    return reshape(inputs, (-1,))


@allow_empty_variables
class Reshape(Module):
    """Reshapes all axes of its inputs but the leading ones: `y = jnp.reshape(x, [*preserved, *output_shape])`.

    Args:
      output_shape: the sizes in place of the axes that are not preserved. At most one is -1, which stands for what is left.
      preserve_dims: the number of leading axes that stay.
      name: the module's name.

    Attributes:
      input_shape: the shape of the first inputs.

    Raises:
      ValueError: a `preserve_dims` below 1.

    Source: Sonnet 2, `snt.Reshape`.

    >>> layer = Reshape([-1, 5], preserve_dims=2)
    >>> layer(jnp.ones([2, 3, 4, 5, 5])).shape
    (2, 3, 20, 5)
    >>> layer.reversed()(jnp.ones([2, 3, 20, 5])).shape
    (2, 3, 4, 5, 5)
    """

    def __init__(self, output_shape: int | Sequence[int], preserve_dims: int = 1, name: str | None = None) -> None:
        super().__init__(name=name)
        _check_preserved(preserve_dims)
        self.output_shape = output_shape
        self.preserve_dims = preserve_dims

    @once
    def _initialize(self, inputs: Any) -> None:
        self.input_shape = tuple(inputs.shape)

    def __call__(self, inputs: Shaped[Array, "*axes"]) -> Shaped[Array, "*output_axes"]:
        """Returns `[*preserved, *output_shape]`.

        Args:
          inputs: `[*preserved, *axes]`.

        Raises:
          ValueError: fewer axes than `preserve_dims`, more than one -1, or sizes that do not hold the elements.
        """
        inputs = jnp.asarray(value_of(inputs))
        outputs = reshape(inputs, self.output_shape, self.preserve_dims)
        self._initialize(inputs)
        return outputs

    @no_name_scope
    def reversed(self, name: str | None = None) -> "Reshape":
        """Returns a module that goes back to the shape of the first inputs.

        Args:
          name: its name; this one's with `_reversed` if None.

        Raises:
          ValueError: this module has not been called yet.
        """
        input_shape: tuple[int, ...] | None = getattr(self, "input_shape", None)
        if input_shape is None:
            raise ValueError(
                f"{self!r} has not been called yet, and its input shape is unknown: call it, then reverse it"
            )
        return Reshape(input_shape[self.preserve_dims :], self.preserve_dims, name or f"{self.name}_reversed")


@allow_empty_variables
class Flatten(Reshape):
    """Makes one axis of all axes of its inputs but the leading ones: `y = jnp.reshape(x, [*preserved, -1])`.

    A scalar behind the preserved axes becomes an axis of size 1.

    Args:
      preserve_dims: the number of leading axes that stay.
      name: the module's name.

    Attributes:
      input_shape: the shape of the first inputs.

    Raises:
      ValueError: a `preserve_dims` below 1.

    Source: Sonnet 2, `snt.Flatten`.

    >>> Flatten()(jnp.ones([2, 3, 4])).shape
    (2, 12)
    """

    def __init__(self, preserve_dims: int = 1, name: str | None = None) -> None:
        super().__init__([-1], preserve_dims, name)


def _check_preserved(preserve_dims: int) -> None:
    if preserve_dims < 1:
        raise ValueError(f"Argument preserve_dims should be >= 1. Received: preserve_dims={preserve_dims}")
