"""`WeightNorm`: the length of a weight's vectors apart from their direction."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from modulekit.core.arithmetic import ArrayLike, array_of
from modulekit.core.module import Module
from modulekit.core.once import once
from modulekit.core.variable import Variable
from modulekit.initializers import Initializer
from modulekit.layers.spectral_norm import check_weight


class WeightNorm(Module):
    """`w = g v / |v|`: a length `g` and a direction `v` for the weights of each output.

    `|v|` is the Euclidean norm over all axes but the last one, computed in float32 at least.

    Args:
      g_init: initializer of `g`; if None, the norm of the first `v`, with which `w` begins as `v`.
      eps: the least square of the norm that is divided by.
      name: the module's name.

    Attributes:
      g: `[outputs]`, made on the first call.

    Source: Salimans and Kingma, Weight normalization, 2016, equation 2.

    >>> import modulekit as mk
    >>> norm = mk.WeightNorm(g_init=mk.initializers.Ones())
    >>> norm(jnp.array([[3.0, 0.0], [4.0, 2.0]])).round(3).tolist()
    [[0.6..., 0.0], [0.8..., 1.0]]
    """

    def __init__(self, g_init: Initializer | None = None, eps: float = 1e-24, name: str | None = None) -> None:
        super().__init__(name=name)
        self.g_init = g_init
        self.eps = eps

    @once
    def _initialize(self, v: Any) -> None:
        # A variable can be read here under any trace, an argument of a traced function cannot.
        v = array_of(v)
        norm = self._norm(v)
        self.g = Variable(norm if self.g_init is None else self.g_init(norm.shape, norm.dtype), name="g")

    def __call__(self, v: ArrayLike) -> Float[Array, "*window inputs outputs"]:
        """Returns `g v / |v|`.

        Args:
          v: a weight, `[inputs, outputs]` or `[*window, inputs, outputs]`, or the variable that holds it. Give the
            variable where the first call is compiled or differentiated: without `g_init`, `g` is made from its value.

        Returns:
          An array of the shape and dtype of `v`.

        Raises:
          ValueError: a rank below 2, another number of outputs than on the first call, or an integer dtype.
          TypeError: the first call is given an array that is known in compiled code only, and there is no `g_init`.
        """
        array = array_of(v)
        check_weight(self, array, self.g.shape[0] if hasattr(self, "g") else None)
        self._initialize(v)
        norm = self._norm(array)
        return (array * (self.g / norm).astype(array.dtype)).astype(array.dtype)

    def _norm(self, v: jax.Array) -> jax.Array:
        wide = v.astype(jnp.promote_types(v.dtype, jnp.float32))
        squares = jnp.sum(jnp.square(wide), axis=tuple(range(v.ndim - 1)))
        return jnp.sqrt(jnp.maximum(squares, self.eps))
