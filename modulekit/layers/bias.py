"""`Bias`: adds a variable."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Num

from modulekit.core.arithmetic import ArrayLike, value_of
from modulekit.core.explain import summarize
from modulekit.core.module import Module
from modulekit.core.once import once
from modulekit.core.variable import Variable
from modulekit.initializers import Initializer, Zeros
from modulekit.layers.inputs import location


class Bias(Module):
    """`y = x + multiplier b`, where `b` has some of the axes of `x` and is the same along the others.

    Args:
      output_size: the shape that one input must have, without the batch axis; any if None.
      bias_dims: the axes of the input along which `b` differs; all but the batch axis if None, and none, so that `b` is
        one number, if empty.
      b_init: initializer of `b`; zeros if None.
      name: the module's name.

    Attributes:
      b: the sizes of the input's axes, with 1 for those that are not in `bias_dims`, from the first other than 1; made on
        the first call.
      input_size: the shape of one input of the first call.

    Source: Sonnet 2, `snt.Bias`.

    >>> import modulekit as mk
    >>> x = jnp.ones([8, 28, 29, 3])
    >>> shapes = []
    >>> for bias_dims in (None, [], [-1], [1]):
    ...     bias = mk.Bias(bias_dims=bias_dims)
    ...     assert bias(x).shape == x.shape
    ...     shapes.append(bias.b.shape)
    >>> shapes
    [(28, 29, 3), (), (3,), (28, 1, 1)]
    """

    def __init__(
        self,
        output_size: int | Sequence[int] | None = None,
        bias_dims: Sequence[int] | None = None,
        b_init: Initializer | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        self.output_size = output_size
        self.bias_dims = bias_dims
        self.b_init = b_init or Zeros()

    @once
    def _initialize(self, inputs: Any) -> None:
        shape = bias_shape(inputs.shape, self.bias_dims)
        self.b = Variable(self.b_init(shape, inputs.dtype), name="b")
        self.input_size = tuple(inputs.shape[1:])

    def __call__(
        self, inputs: Num[Array, "batch *axes"], multiplier: ArrayLike | None = None
    ) -> Num[Array, "batch *axes"]:
        """Returns `inputs + multiplier b`.

        Args:
          inputs: `[batch, ...]`.
          multiplier: multiplies `b` in this call, so that -1 takes off what another call has added; 1 if None.

        Returns:
          An array of the shape of the inputs.

        Raises:
          ValueError: a rank below 2, another shape than `output_size`, an axis in `bias_dims` that is the batch or does not
            exist, or inputs that `b` does not fit.
        """
        inputs = jnp.asarray(value_of(inputs))
        self._check(inputs)
        self._initialize(inputs)
        if jnp.broadcast_shapes(inputs.shape, self.b.shape) != inputs.shape:
            raise ValueError(
                f"{location(self)} has a b of shape {list(self.b.shape)}, which does not fit {summarize(inputs)}: its "
                "shape is fixed on the first call; use another layer for other inputs, or fewer bias_dims"
            )
        return inputs + (self.b.value if multiplier is None else self.b * multiplier)

    def _check(self, inputs: Any) -> None:
        if inputs.ndim < 2:
            raise ValueError(
                f"{location(self)}: inputs must have rank >= 2, [batch, ...], got {summarize(inputs)}: add a batch axis, "
                "as in x[None]"
            )
        size = self.output_size
        if size is not None and inputs.shape[1:] != ((size,) if isinstance(size, int) else tuple(size)):
            raise ValueError(f"{location(self)} expects inputs of shape [batch, *output_size], got {summarize(inputs)}")


def bias_shape(input_shape: Sequence[int], bias_dims: Sequence[int] | None) -> tuple[int, ...]:
    """Returns the shape of the `b` of a `Bias` for inputs of a shape.

    Args:
      input_shape: the shape of the inputs, batch axis included.
      bias_dims: the axes along which `b` differs; all but the batch axis if None.

    Raises:
      ValueError: an axis is the batch or does not exist.

    >>> bias_shape([8, 28, 29, 3], [1, -1])
    (28, 1, 3)
    """
    if bias_dims is None:
        return tuple(input_shape[1:])
    rank = len(input_shape)
    shape = [1] * rank
    for dim in bias_dims:
        if not -rank <= dim < rank:
            raise ValueError(f"Dimension {dim} (bias_dims={tuple(bias_dims)}) out of range for input of rank {rank}.")
        if dim % rank == 0:
            raise ValueError(
                f"Cannot apply bias across the minibatch dimension. Received: bias_dims={tuple(bias_dims)} for input of "
                f"rank {rank}"
            )
        shape[dim] = input_shape[dim]
    start = next((axis for axis, size in enumerate(shape) if size != 1), rank)
    return tuple(shape[start:])
