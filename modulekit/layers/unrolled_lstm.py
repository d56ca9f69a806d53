"""`UnrolledLSTM`: an LSTM over a whole sequence."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from modulekit.core.once import once
from modulekit.core.variable import Variable
from modulekit.initializers import Initializer
from modulekit.layers.lstm import LSTMState, checked_lstm_state, gate_bias, gate_weights, zero_state
from modulekit.layers.lstm_sequence import unrolled
from modulekit.layers.recurrent_inputs import check_positive, check_size, checked_inputs
from modulekit.layers.rnn_core import UnrolledRNN


class UnrolledLSTM(UnrolledRNN):
    """An `LSTM` over a whole sequence, `h_t, s_t = lstm(x_t, s_{t-1})`, as `dynamic_unroll` computes it.

    Outside of `mk.jit` it is compiled only once.

    Args:
      hidden_size: the size of `h` and `c`.
      w_i_init: initializer of `w_i`; truncated normal with standard deviation `1 / sqrt(input_size)` if None.
      w_h_init: initializer of `w_h`; truncated normal with standard deviation `1 / sqrt(hidden_size)` if None.
      b_init: initializer of `b`; zeros if None.
      forget_bias: what is added to the quarter of `b` that belongs to the forget gate.
      dtype: of the variables; the inputs must have it.
      name: the module's name.

    Attributes:
      input_to_hidden: `w_i`, `[input_size, 4 * hidden_size]`, made on the first call.
      hidden_to_hidden: `w_h`, `[hidden_size, 4 * hidden_size]`.
      b: `[4 * hidden_size]`.

    Raises:
      ValueError: a `hidden_size` below 1.

    Source: the equations of `LSTM`. Sonnet 2, `snt.UnrolledLSTM`, where the device chooses one of three implementations.

    >>> import modulekit as mk
    >>> lstm = mk.UnrolledLSTM(16)
    >>> outputs, state = lstm(jnp.ones([7, 3, 5]), lstm.initial_state(3))
    >>> outputs.shape, state.cell.shape
    ((7, 3, 16), (3, 16))
    """

    def __init__(
        self,
        hidden_size: int,
        w_i_init: Initializer | None = None,
        w_h_init: Initializer | None = None,
        b_init: Initializer | None = None,
        forget_bias: float = 1.0,
        dtype: Any = jnp.float32,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        check_positive(hidden_size=hidden_size)
        self.hidden_size = hidden_size
        self.w_i_init = w_i_init
        self.w_h_init = w_h_init
        self.b_init = b_init
        self.forget_bias = forget_bias
        self.dtype = dtype

    @property
    def input_to_hidden(self) -> Variable:
        """The weight of the inputs, `[input_size, 4 * hidden_size]`."""
        return self._w_i

    @property
    def hidden_to_hidden(self) -> Variable:
        """The weight of the hidden state, `[hidden_size, 4 * hidden_size]`."""
        return self._w_h

    @once
    def _initialize(self, inputs: jax.Array) -> None:
        self.input_size = inputs.shape[2]
        self._w_i, self._w_h = gate_weights(
            (self.input_size, self.hidden_size), self.hidden_size, (self.w_i_init, self.w_h_init), self.dtype
        )
        self.b = Variable(gate_bias(self.b_init, self.hidden_size, self.forget_bias, self.dtype), name="b")

    def __call__(
        self, input_sequence: Float[Array, "time batch input_size"], initial_state: LSTMState
    ) -> tuple[Float[Array, "time batch hidden_size"], LSTMState]:
        """Returns the hidden states of all steps, and the state after the last one.

        Args:
          input_sequence: `[time, batch, input_size]`.
          initial_state: `h` and `c`, `[batch, hidden_size]`, from `initial_state` or from another sequence.

        Returns:
          `(output_sequence, final_state)`, `[time, batch, hidden_size]` and `[batch, hidden_size]`.

        Raises:
          ValueError: another rank, another `input_size` than on the first call, or a state of another shape.
          TypeError: another dtype than the core's, or a state that is no `LSTMState`.
        """
        x = checked_inputs(self, input_sequence, ("time", "batch", "input_size"), self.dtype)
        check_size(self, x, getattr(self, "input_size", None))
        shape = (x.shape[1], self.hidden_size)
        h, c = checked_lstm_state(self, initial_state, shape, shape, self.dtype)
        self._initialize(x)
        state = LSTMState(jnp.broadcast_to(h, shape), jnp.broadcast_to(c, shape))
        return unrolled(x, state, self._w_i.value, self._w_h.value, self.b.value)

    def initial_state(self, batch_size: int) -> LSTMState:
        """Returns zeros.

        Args:
          batch_size: the number of sequences.
        """
        shape = (batch_size, self.hidden_size)
        return zero_state(shape, shape, self.dtype)
