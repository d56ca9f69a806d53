"""Recurrent dropout: one mask for all steps of a sequence, kept in the state."""

from typing import Any

import jax
import jax.numpy as jnp

from modulekit.core.randomness import RandomStream, next_key
from modulekit.layers.dropout import dropout as dropped
from modulekit.layers.lstm import LSTM, LSTMState
from modulekit.layers.rnn_core import RNNCore


class RecurrentDropout(RNNCore):
    """A core that sees its previous state through masks: `y, s' = core(x, s m)`.

    `initial_state` draws the masks, `m ~ Bernoulli(1 - rate) / (1 - rate)`, and they stay the same until it is called
    again: the state is `(state of the core, masks)`.

    Args:
      base_core: the core; its name with `_recurrent_dropout` is this one's.
      rates: the share of elements to drop for each part of the core's state, None for a part that is left alone.
      seed: gives the masks a random stream of their own, which starts from this number; None draws from the default one.
    """

    def __init__(self, base_core: RNNCore, rates: Any, seed: int | None = None) -> None:
        super().__init__(name=f"{base_core.name}_recurrent_dropout")
        self.base_core = base_core
        self.rates = rates
        self.stream = None if seed is None else RandomStream(seed)

    def __call__(self, inputs: Any, prev_state: tuple[Any, Any]) -> tuple[Any, tuple[Any, Any]]:
        """Returns the core's outputs, and its next state with the same masks.

        Args:
          inputs: what the core takes, `[batch, ...]`.
          prev_state: the core's state, and the masks.
        """
        state, masks = prev_state
        masked = jax.tree.map(lambda part, mask: part if mask is None else part * mask, state, masks)
        outputs, next_state = self.base_core(inputs, masked)
        return outputs, (next_state, masks)

    def initial_state(self, batch_size: int, **kwargs: Any) -> tuple[Any, Any]:
        """Returns the core's initial state, and new masks.

        Args:
          batch_size: the number of sequences.
          **kwargs: of the core's `initial_state`.
        """
        core: Any = self.base_core
        state = core.initial_state(batch_size, **kwargs)
        return state, jax.tree.map(self._mask, state, self.rates)

    def _mask(self, part: jax.Array, rate: float | None) -> jax.Array | None:
        if rate is None:
            return None
        key = next_key() if self.stream is None else self.stream.next_key()
        return dropped(jnp.ones_like(part), rate, key)


def lstm_with_recurrent_dropout(
    hidden_size: int, dropout: float = 0.5, seed: int | None = None, **kwargs: Any
) -> tuple[RNNCore, LSTM]:
    """Returns an LSTM with dropout on the hidden state that its gates see, for training, and the same LSTM without.

    In `gates = x w_i + (h m) w_h + b`, the mask `m` is the same in all steps of a sequence: `initial_state` draws it.

    Args:
      hidden_size: the size of `c`, and of `h` without a projection.
      dropout: the share of elements to drop, from 0 up to but not including 1.
      seed: gives the masks a random stream of their own, which starts from this number; None draws from the default one.
      **kwargs: further arguments of `LSTM`.

    Returns:
      `(train_lstm, test_lstm)`, with the same variables, both from `[batch, input_size]` to `[batch, size of h]`. The state
      of the first is `(LSTMState, masks)`.

    Raises:
      ValueError: `dropout` is not in [0, 1).

    Source: Gal and Ghahramani, A theoretically grounded application of dropout in recurrent neural networks, 2016.
    Sonnet 2, `snt.lstm_with_recurrent_dropout`.

    >>> import modulekit as mk
    >>> train, test = mk.lstm_with_recurrent_dropout(4, dropout=0.5)
    >>> outputs, _ = mk.dynamic_unroll(train, jnp.ones([7, 3, 5]), train.initial_state(3))
    >>> outputs.shape, train.variables == test.variables
    ((7, 3, 4), True)
    """
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be in the range [0, 1), got {dropout}")
    lstm = LSTM(hidden_size, **kwargs)
    return RecurrentDropout(lstm, LSTMState(hidden=dropout, cell=None), seed), lstm
