"""`LSTM`, its state, and what all kinds of LSTM have in common."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from modulekit.core.explain import summarize
from modulekit.core.module import Module
from modulekit.core.once import once
from modulekit.core.variable import Variable
from modulekit.initializers import Initializer, TruncatedNormal, Zeros
from modulekit.layers.inputs import location
from modulekit.layers.recurrent_inputs import check_positive, check_size, checked_inputs, checked_state
from modulekit.layers.rnn_core import RNNCore


class LSTMState(NamedTuple):
    """What an LSTM carries from step to step.

    Attributes:
      hidden: `[batch, ...]`, the output of the step before.
      cell: `[batch, ...]`.

    Source: Sonnet 2, `snt.LSTMState`.

    >>> LSTMState(hidden=1, cell=2)
    LSTMState(hidden=1, cell=2)
    """

    hidden: Any
    cell: Any


class LSTM(RNNCore):
    """Long short-term memory.

    The equations of one step, where `i`, `f`, `g` and `o` are the four quarters of the gates and `s` is the sigmoid:

        i, f, g, o = x w_i + h w_h + b
        c' = s(f) c + s(i) tanh(g)
        h' = s(o) tanh(c')              (with a projection: h' = (s(o) tanh(c')) projection)

    Args:
      hidden_size: the size of `c`, and of `h` without a projection.
      projection_size: the size of `h`; `hidden_size`, and no projection, if None.
      projection_init: initializer of `projection`; truncated normal with standard deviation `1 / sqrt(hidden_size)` if
        None.
      w_i_init: initializer of `w_i`; truncated normal with standard deviation `1 / sqrt(input_size)` if None.
      w_h_init: initializer of `w_h`; truncated normal with standard deviation `1 / sqrt(size of h)` if None.
      b_init: initializer of `b`; zeros if None.
      forget_bias: what is added to the quarter of `b` that belongs to `f`, so that a fresh LSTM forgets little.
      dtype: of the variables; the inputs must have it.
      name: the module's name.

    Attributes:
      input_to_hidden: `w_i`, `[input_size, 4 * hidden_size]`, made on the first call.
      hidden_to_hidden: `w_h`, `[size of h, 4 * hidden_size]`.
      b: `[4 * hidden_size]`.
      projection: `[hidden_size, projection_size]`, or None.

    Raises:
      ValueError: `projection_init` without a projection, or a size below 1.

    Source: Zaremba et al., Recurrent neural network regularization, 2014; forget bias: Jozefowicz et al., An empirical
    exploration of recurrent network architectures, 2015; projection: Sak et al., Long short-term memory based recurrent
    neural network architectures, 2014. Sonnet 2, `snt.LSTM`.

    >>> import modulekit as mk
    >>> core = mk.LSTM(16)
    >>> outputs, state = core(jnp.ones([3, 5]), core.initial_state(3))
    >>> outputs.shape, state.hidden.shape, state.cell.shape
    ((3, 16), (3, 16), (3, 16))
    """

    def __init__(
        self,
        hidden_size: int,
        projection_size: int | None = None,
        projection_init: Initializer | None = None,
        w_i_init: Initializer | None = None,
        w_h_init: Initializer | None = None,
        b_init: Initializer | None = None,
        forget_bias: float = 1.0,
        dtype: Any = jnp.float32,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        if projection_size is None and projection_init is not None:
            raise ValueError(
                f"projection_init must be None when projection is not used, got {projection_init!r}: give projection_size"
            )
        check_positive(hidden_size=hidden_size, projection_size=projection_size)
        self.hidden_size = hidden_size
        self.projection_size = projection_size
        self.projection_init = projection_init
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
        """The weight of the hidden state, `[size of h, 4 * hidden_size]`."""
        return self._w_h

    @once
    def _initialize(self, inputs: jax.Array) -> None:
        self.input_size = inputs.shape[1]
        output_size, dtype = self.projection_size or self.hidden_size, self.dtype
        # Sonnet collects the variables in this order: that of the attributes by name.
        self._w_i, self._w_h = gate_weights(
            (self.input_size, output_size), self.hidden_size, (self.w_i_init, self.w_h_init), dtype
        )
        self.b = Variable(gate_bias(self.b_init, self.hidden_size, self.forget_bias, dtype), name="b")
        self.projection: Variable | None = None
        if self.projection_size is not None:
            init = self.projection_init or TruncatedNormal(stddev=1 / math.sqrt(self.hidden_size))
            self.projection = Variable(init([self.hidden_size, self.projection_size], dtype), name="projection")

    def __call__(
        self, inputs: Float[Array, "batch input_size"], prev_state: LSTMState
    ) -> tuple[Float[Array, "batch output_size"], LSTMState]:
        """Returns the new hidden state, and the state after the step.

        Args:
          inputs: `[batch, input_size]`.
          prev_state: `h` and `c`, from `initial_state` or from the step before.

        Returns:
          `(h', LSTMState(h', c'))`, of shapes `[batch, projection_size or hidden_size]` and `[batch, hidden_size]`.

        Raises:
          ValueError: another rank, another `input_size` than on the first call, or a state of another shape.
          TypeError: another dtype than the core's, or a state that is no `LSTMState`.
        """
        x = checked_inputs(self, inputs, ("batch", "input_size"), self.dtype)
        check_size(self, x, getattr(self, "input_size", None))
        output_size = self.projection_size or self.hidden_size
        h, c = checked_lstm_state(
            self, prev_state, (x.shape[0], output_size), (x.shape[0], self.hidden_size), self.dtype
        )
        self._initialize(x)
        h, c = lstm_step(x, h, c, self._w_i.value, self._w_h.value, self.b.value)
        if self.projection is not None:
            h = h @ self.projection.value
        return h, LSTMState(hidden=h, cell=c)

    def initial_state(self, batch_size: int) -> LSTMState:
        """Returns zeros.

        Args:
          batch_size: the number of sequences.
        """
        output_size = self.projection_size or self.hidden_size
        return zero_state((batch_size, output_size), (batch_size, self.hidden_size), self.dtype)


def lstm_step(
    x: jax.Array, h: jax.Array, c: jax.Array, w_i: jax.Array, w_h: jax.Array, b: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns hidden state and cell after a step, before any projection; the arguments are those of the equations."""
    return gated(x @ w_i + h @ w_h + b, c)


def gated(gates: jax.Array, cell: jax.Array, axis: int = -1) -> tuple[jax.Array, jax.Array]:
    """Returns the hidden state and the cell after a step: `c' = s(f) c + s(i) tanh(g)`, `h' = s(o) tanh(c')`.

    Args:
      gates: `i`, `f`, `g` and `o` side by side along `axis`.
      cell: `c`, with a quarter of that size along `axis`.
      axis: that of the features.

    >>> h, c = gated(jnp.zeros([1, 4]), jnp.ones([1, 1]))
    >>> c.tolist()
    [[0.5]]
    """
    i, f, g, o = jnp.split(gates, 4, axis=axis)
    cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(cell), cell


def gate_weights(
    sizes: tuple[int, int], hidden_size: int, inits: tuple[Initializer | None, Initializer | None], dtype: Any
) -> tuple[Variable, Variable]:
    """Returns new variables `w_i` and `w_h`.

    Args:
      sizes: of the inputs and of the hidden state.
      hidden_size: a quarter of the number of columns.
      inits: their initializers; truncated normal with standard deviation `1 / sqrt(size)` where None.
      dtype: of both.
    """
    w_i, w_h = (
        Variable((init or TruncatedNormal(stddev=1 / math.sqrt(size)))([size, 4 * hidden_size], dtype), name=name)
        for size, init, name in zip(sizes, inits, ("w_i", "w_h"), strict=True)
    )
    return w_i, w_h


def gate_bias(b_init: Initializer | None, hidden_size: int, forget_bias: float, dtype: Any) -> jax.Array:
    """Returns the first value of `b`, zeros if `b_init` is None, with `forget_bias` added to its second quarter."""
    bias = (b_init or Zeros())([4 * hidden_size], dtype)
    return bias.at[hidden_size : 2 * hidden_size].add(jnp.asarray(forget_bias, dtype))


def zero_state(hidden_shape: tuple[int, ...], cell_shape: tuple[int, ...], dtype: Any) -> LSTMState:
    """Returns an LSTM's state of zeros."""
    return LSTMState(hidden=jnp.zeros(hidden_shape, dtype), cell=jnp.zeros(cell_shape, dtype))


def checked_lstm_state(
    module: Module, state: Any, hidden_shape: tuple[int, ...], cell_shape: tuple[int, ...], dtype: Any
) -> tuple[jax.Array, jax.Array]:
    """Returns hidden state and cell as arrays, or raises `TypeError` or `ValueError` if they are not as expected."""
    if not hasattr(state, "hidden") or not hasattr(state, "cell"):
        raise TypeError(
            f"{location(module)} expects an LSTMState for its state, got {summarize(state)}: give "
            "LSTMState(hidden=..., cell=...), or begin with initial_state(batch_size)"
        )
    hidden = checked_state(module, state.hidden, hidden_shape, dtype, "the hidden state")
    return hidden, checked_state(module, state.cell, cell_shape, dtype, "the cell")
