"""`VanillaRNN`: a recurrent network without gates."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from modulekit.core.once import once
from modulekit.core.variable import Variable
from modulekit.initializers import Initializer, Zeros
from modulekit.layers.inputs import check_input
from modulekit.layers.linear import Linear
from modulekit.layers.recurrent_inputs import check_positive, checked_state, with_dtype
from modulekit.layers.rnn_core import RNNCore


class VanillaRNN(RNNCore):
    """`h' = activation(x w_i + h w_h + b)`.

    Args:
      hidden_size: the size of `h`.
      activation: a function of an array.
      w_i_init: initializer of `w_i`; truncated normal with standard deviation `1 / sqrt(input_size)` if None.
      w_h_init: initializer of `w_h`; truncated normal with standard deviation `1 / sqrt(hidden_size)` if None.
      b_init: initializer of `b`; zeros if None.
      dtype: of the variables; the inputs must have it.
      name: the module's name.

    Attributes:
      input_to_hidden: `w_i`, `[input_size, hidden_size]`, made on the first call.
      hidden_to_hidden: `w_h`, `[hidden_size, hidden_size]`.
      b: `[hidden_size]`.

    Raises:
      ValueError: a `hidden_size` below 1.

    Source: Elman, Finding structure in time, 1990. Sonnet 2, `snt.VanillaRNN`.

    >>> import modulekit as mk
    >>> core = mk.VanillaRNN(16)
    >>> outputs, state = core(jnp.ones([3, 5]), core.initial_state(3))
    >>> outputs.shape, state.shape
    ((3, 16), (3, 16))
    """

    def __init__(
        self,
        hidden_size: int,
        activation: Callable[[jax.Array], jax.Array] = jnp.tanh,
        w_i_init: Initializer | None = None,
        w_h_init: Initializer | None = None,
        b_init: Initializer | None = None,
        dtype: Any = jnp.float32,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        check_positive(hidden_size=hidden_size)
        self.hidden_size = hidden_size
        self.activation = activation
        self.b_init = b_init
        self.dtype = dtype
        self._input_to_hidden = Linear(hidden_size, with_bias=False, w_init=w_i_init, name="input_to_hidden")
        self._hidden_to_hidden = Linear(hidden_size, with_bias=False, w_init=w_h_init, name="hidden_to_hidden")

    @property
    def input_to_hidden(self) -> Variable:
        """The weight of the inputs, `[input_size, hidden_size]`."""
        return self._input_to_hidden.w

    @property
    def hidden_to_hidden(self) -> Variable:
        """The weight of the hidden state, `[hidden_size, hidden_size]`."""
        return self._hidden_to_hidden.w

    @once
    def _initialize(self) -> None:
        self.b = Variable((self.b_init or Zeros())([self.hidden_size], self.dtype), name="b")

    def __call__(
        self, inputs: Float[Array, "batch *rest input_size"], prev_state: Float[Array, "_ *rest hidden_size"]
    ) -> tuple[Float[Array, "batch *rest hidden_size"], Float[Array, "batch *rest hidden_size"]]:
        """Returns the new hidden state, twice: it is output and state.

        Args:
          inputs: `[batch, input_size]`; axes may stand between these two.
          prev_state: `h`, `[batch, hidden_size]`, from `initial_state` or from the step before.

        Returns:
          `(h', h')`, `[batch, hidden_size]`.

        Raises:
          ValueError: a rank below 2, another `input_size` than on the first call, or a state of another shape.
          TypeError: another dtype than the core's.
        """
        x = with_dtype(self, inputs, self.dtype)
        check_input(self, x, getattr(self._input_to_hidden, "input_size", None))
        h = checked_state(self, prev_state, (*x.shape[:-1], self.hidden_size), self.dtype)
        self._initialize()
        h = self.activation(self._input_to_hidden(x) + self._hidden_to_hidden(h) + self.b)
        return h, h

    def initial_state(self, batch_size: int) -> Float[Array, "batch hidden_size"]:
        """Returns zeros.

        Args:
          batch_size: the number of sequences.
        """
        return jnp.zeros([batch_size, self.hidden_size], self.dtype)
