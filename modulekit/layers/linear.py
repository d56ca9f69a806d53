"""`Linear`, and its transpose."""

import math
from typing import Any

from jaxtyping import Array, Float

from modulekit.core.arithmetic import array_of
from modulekit.core.module import Module
from modulekit.core.once import once
from modulekit.core.variable import Variable
from modulekit.initializers import Initializer, TruncatedNormal, Zeros
from modulekit.layers.inputs import check_input, location


class Linear(Module):
    """`y = x w + b`, on the last axis.

    Args:
      output_size: the number of outputs.
      with_bias: whether there is a `b`.
      w_init: initializer of `w`; truncated normal with standard deviation `1 / sqrt(input_size)` if None.
      b_init: initializer of `b`; zeros if None.
      name: the module's name.

    Attributes:
      w: `[input_size, output_size]`, made on the first call.
      b: `[output_size]`.

    Raises:
      ValueError: `b_init` without a bias, or an `output_size` below 1.

    Source: Sonnet 2, `snt.Linear`.

    >>> import modulekit as mk, jax.numpy as jnp
    >>> layer = mk.Linear(10)
    >>> layer(jnp.ones([32, 784])).shape
    (32, 10)
    """

    def __init__(
        self,
        output_size: int,
        with_bias: bool = True,
        w_init: Initializer | None = None,
        b_init: Initializer | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        check_sizes(output_size, with_bias, b_init)
        self.output_size = output_size
        self.with_bias = with_bias
        self.w_init = w_init
        self.b_init = b_init if b_init is not None or not with_bias else Zeros()

    @once
    def _initialize(self, inputs: Any) -> None:
        self.input_size = inputs.shape[-1]
        w_init = self.w_init or TruncatedNormal(stddev=1 / math.sqrt(self.input_size))
        self.w = Variable(w_init([self.input_size, self.output_size], inputs.dtype), name="w")
        if self.b_init is not None:
            self.b = Variable(self.b_init([self.output_size], inputs.dtype), name="b")

    def __call__(self, inputs: Float[Array, "batch *rest input_size"]) -> Float[Array, "batch *rest output_size"]:
        """Returns `inputs w + b`.

        Args:
          inputs: `[batch, ..., input_size]`.

        Returns:
          `[batch, ..., output_size]`.

        Raises:
          ValueError: a rank below 2, another `input_size` than on the first call, or an integer dtype.
        """
        check_input(self, inputs, getattr(self, "input_size", None))
        self._initialize(inputs)
        outputs = array_of(inputs) @ self.w
        return outputs + self.b if self.with_bias else outputs

    def transpose(self, b_init: Initializer | None = None, name: str | None = None) -> "TransposedLinear":
        """Returns a module that multiplies by the transpose of this layer's `w`, the same variable.

        Args:
          b_init: initializer of the new module's own bias; zeros if None.
          name: its name; this one's name with `_transpose` if None.

        >>> import modulekit as mk, jax.numpy as jnp
        >>> encode = mk.Linear(3)
        >>> decode = encode.transpose()
        >>> decode(encode(jnp.ones([2, 5]))).shape, decode.w is encode.w
        ((2, 5), True)
        """
        return TransposedLinear(self, self.with_bias, b_init, name=name or f"{self.name}_transpose")


class TransposedLinear(Module):
    """`y = x w^T + b`, with the `w` of a `Linear`: one variable, one gradient, in two places.

    Args:
      linear: the layer whose weight is used. It must have been called, or be called first.
      with_bias: whether there is a `b`, which is this module's own.
      b_init: initializer of `b`; zeros if None.
      name: the module's name.

    Attributes:
      w: the variable of `linear`, of shape `[output_size, input_size]` as seen from here; known after the first call.
      b: `[output_size]`, where `output_size` is the `input_size` of `linear`.
    """

    _views = {"w": "transposed"}

    def __init__(
        self,
        linear: Linear,
        with_bias: bool = True,
        b_init: Initializer | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        check_sizes(1, with_bias, b_init)
        self.shared = Reference(linear)
        self.with_bias = with_bias
        self.b_init = b_init if b_init is not None or not with_bias else Zeros()

    @once
    def _initialize(self, inputs: Any) -> None:
        linear: Linear = self.shared.module
        if not hasattr(linear, "w"):
            raise ValueError(
                f"{location(self)} uses the weight of {linear!r}, which has not been called yet: call that one first"
            )
        self.w = linear.w
        self.output_size = self.w.shape[0]
        if self.b_init is not None:
            self.b = Variable(self.b_init([self.output_size], inputs.dtype), name="b")

    def __call__(self, inputs: Float[Array, "batch *rest input_size"]) -> Float[Array, "batch *rest output_size"]:
        """Returns `inputs w^T + b`.

        Args:
          inputs: `[batch, ..., input_size]`, where `input_size` is the `output_size` of the shared layer.

        Returns:
          `[batch, ..., output_size]`.

        Raises:
          ValueError: a rank below 2, another `input_size`, or an integer dtype.
        """
        check_input(self, inputs, self.shared.module.output_size)
        self._initialize(inputs)
        outputs = array_of(inputs) @ self.w.T
        return outputs + self.b if self.with_bias else outputs

    def transpose(self) -> Linear:
        """Returns the layer whose weight this one uses."""
        linear: Linear = self.shared.module
        return linear


class Reference:
    """Points to a module without holding it: the module's variables are not counted among the pointer's."""

    def __init__(self, module: Any) -> None:
        self.module = module


def check_sizes(output_size: int, with_bias: bool, b_init: Initializer | None) -> None:
    """Raises `ValueError` for an `output_size` below 1, or a `b_init` without a bias."""
    if isinstance(output_size, int) and output_size < 1:
        raise ValueError(f"output_size={output_size} is below 1")
    if not with_bias and b_init is not None:
        raise ValueError(f"When not using a bias the b_init must be None. Received: b_init={b_init!r}")
