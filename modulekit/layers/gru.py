"""`GRU`: a gated recurrent unit."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from modulekit.core.once import once
from modulekit.core.variable import Variable
from modulekit.initializers import Initializer, VarianceScaling, Zeros
from modulekit.layers.recurrent_inputs import check_positive, check_size, checked_inputs, checked_state
from modulekit.layers.rnn_core import RNNCore


class GRU(RNNCore):
    """Gated recurrent unit.

    The equations of one step, where `z`, `r` and `a` are the three thirds of the gates, `w_hz`, ... the corresponding
    columns of `w_h`, and `s` is the sigmoid:

        z = s(x w_iz + h w_hz + b_z)
        r = s(x w_ir + h w_hr + b_r)
        a = tanh(x w_ia + (r h) w_ha + b_a)
        h' = (1 - z) h + z a

    Args:
      hidden_size: the size of `h`.
      w_i_init: initializer of `w_i`; Glorot's uniform one if None.
      w_h_init: initializer of `w_h`; Glorot's uniform one if None.
      b_init: initializer of `b`; zeros if None.
      dtype: of the variables; the inputs must have it.
      name: the module's name.

    Attributes:
      input_to_hidden: `w_i`, `[input_size, 3 * hidden_size]`, made on the first call.
      hidden_to_hidden: `w_h`, `[hidden_size, 3 * hidden_size]`.
      b: `[3 * hidden_size]`.

    Raises:
      ValueError: a `hidden_size` below 1.

    Source: Chung et al., Empirical evaluation of gated recurrent neural networks on sequence modeling, 2014. Sonnet 2,
    `snt.GRU`.

    >>> import modulekit as mk
    >>> core = mk.GRU(16)
    >>> outputs, state = core(jnp.ones([3, 5]), core.initial_state(3))
    >>> outputs.shape, state.shape
    ((3, 16), (3, 16))
    """

    def __init__(
        self,
        hidden_size: int,
        w_i_init: Initializer | None = None,
        w_h_init: Initializer | None = None,
        b_init: Initializer | None = None,
        dtype: Any = jnp.float32,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        check_positive(hidden_size=hidden_size)
        self.hidden_size = hidden_size
        self.w_i_init = w_i_init
        self.w_h_init = w_h_init
        self.b_init = b_init
        self.dtype = dtype

    @property
    def input_to_hidden(self) -> Variable:
        """The weight of the inputs, `[input_size, 3 * hidden_size]`."""
        return self._w_i

    @property
    def hidden_to_hidden(self) -> Variable:
        """The weight of the hidden state, `[hidden_size, 3 * hidden_size]`."""
        return self._w_h

    @once
    def _initialize(self, inputs: jax.Array) -> None:
        self.input_size = inputs.shape[1]
        glorot = VarianceScaling(mode="fan_avg", distribution="uniform")
        columns = 3 * self.hidden_size
        # Sonnet collects the variables in the order of these attributes by name.
        self._w_i = Variable((self.w_i_init or glorot)([self.input_size, columns], self.dtype), name="w_i")
        self._w_h = Variable((self.w_h_init or glorot)([self.hidden_size, columns], self.dtype), name="w_h")
        self.b = Variable((self.b_init or Zeros())([columns], self.dtype), name="b")

    def __call__(
        self, inputs: Float[Array, "batch input_size"], prev_state: Float[Array, "_ hidden_size"]
    ) -> tuple[Float[Array, "batch hidden_size"], Float[Array, "batch hidden_size"]]:
        """Returns the new hidden state, twice: it is output and state.

        Args:
          inputs: `[batch, input_size]`.
          prev_state: `h`, `[batch, hidden_size]`, from `initial_state` or from the step before.

        Returns:
          `(h', h')`, `[batch, hidden_size]`.

        Raises:
          ValueError: another rank, another `input_size` than on the first call, or a state of another shape.
          TypeError: another dtype than the core's.
        """
        x = checked_inputs(self, inputs, ("batch", "input_size"), self.dtype)
        check_size(self, x, getattr(self, "input_size", None))
        h = checked_state(self, prev_state, (x.shape[0], self.hidden_size), self.dtype)
        self._initialize(x)
        gates, w_h, b = x @ self._w_i, self._w_h.value, self.b.value
        split = 2 * self.hidden_size
        z, r = jnp.split(jax.nn.sigmoid(gates[:, :split] + h @ w_h[:, :split] + b[:split]), 2, axis=1)
        a = jnp.tanh(gates[:, split:] + (r * h) @ w_h[:, split:] + b[split:])
        h = (1 - z) * h + z * a
        return h, h

    def initial_state(self, batch_size: int) -> Float[Array, "batch hidden_size"]:
        """Returns zeros.

        Args:
          batch_size: the number of sequences.
        """
        return jnp.zeros([batch_size, self.hidden_size], self.dtype)
