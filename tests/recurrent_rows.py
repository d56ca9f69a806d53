"""Rows of the catalogue of modules: recurrent networks, unrolled over a short sequence."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from catalogue import Row

import modulekit as mk


class Unrolled(mk.Module):
    """A core over a sequence, from its own initial state or from a learned one."""

    def __init__(
        self, core: mk.RNNCore, unroll: Any = mk.dynamic_unroll, learned: bool = False, **options: Any
    ) -> None:
        super().__init__()
        self.core = core
        self.unroll = unroll
        self.start = mk.TrainableState.for_core(core) if learned else core.initial_state
        self.options = options

    def __call__(self, sequence: Any) -> Any:
        return self.unroll(self.core, jnp.asarray(sequence), self.start(sequence.shape[1]), **self.options)[0]


class UnrolledNetwork(mk.Module):
    """An `UnrolledLSTM` from its initial state."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = mk.UnrolledLSTM(3)

    def __call__(self, sequence: Any) -> Any:
        return self.lstm(sequence, self.lstm.initial_state(sequence.shape[1]))[0]


def _sequence(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


X = _sequence(3, 2, 4)  # time, batch, features
LENGTHS = np.array([2, 3])

ROWS = [
    Row("vanilla_rnn", lambda: Unrolled(mk.VanillaRNN(3)), (X,)),
    Row("gru", lambda: Unrolled(mk.GRU(3), mk.static_unroll), (X,)),
    Row("lstm", lambda: Unrolled(mk.LSTM(3, projection_size=2), sequence_length=LENGTHS), (X,)),
    Row("unrolled_lstm", UnrolledNetwork, (X,)),
    Row("trainable_state", lambda: Unrolled(mk.LSTM(3), learned=True), (X,)),
    Row("deep_rnn", lambda: Unrolled(mk.DeepRNN([mk.Linear(3), mk.LSTM(3), jnp.tanh, mk.GRU(2)])), (X,)),
    Row("skip_rnn", lambda: Unrolled(mk.deep_rnn_with_skip_connections([mk.GRU(3), mk.VanillaRNN(2)])), (X,)),
    Row("residual_rnn", lambda: Unrolled(mk.deep_rnn_with_residual_connections([mk.GRU(4), mk.VanillaRNN(4)])), (X,)),
    Row("recurrent_dropout", lambda: Unrolled(mk.lstm_with_recurrent_dropout(3, dropout=0.4)[0]), (X,)),
    Row("conv1d_lstm", lambda: Unrolled(mk.Conv1DLSTM([4, 2], 2, 3)), (_sequence(2, 2, 4, 2),)),
    Row("conv2d_lstm", lambda: Unrolled(mk.Conv2DLSTM([2, 3, 3], 2, 3, "NCHW")), (_sequence(2, 1, 2, 3, 3),)),
    Row("conv3d_lstm", lambda: Unrolled(mk.Conv3DLSTM([2, 3, 2, 1], 2, 2)), (_sequence(2, 1, 2, 3, 2, 1),)),
]
