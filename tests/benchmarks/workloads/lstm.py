"""An LSTM over a sequence, and a linear layer on its last output."""

from typing import Any

import jax
import jax.numpy as jnp

import modulekit as mk
from tests.benchmarks import recurrent_overhead
from tests.benchmarks.workloads.mlp import linear_weights, make_linear
from tests.benchmarks.workloads.workload import Params, Workload, labeled_noise, without_statistics

STEPS, INPUTS, HIDDEN, CLASSES = 50, 32, 128, 10


def make_params() -> Params:
    """Returns the weights."""
    return {
        "lstm": recurrent_overhead.make_params(INPUTS, HIDDEN),
        "linear": make_linear(jax.random.key(1), HIDDEN, CLASSES),
    }


def forward(params: Params, x: jax.Array) -> jax.Array:
    """Returns the logits for sequences `[batch, time, features]`."""
    state = jnp.zeros([len(x), HIDDEN]), jnp.zeros([len(x), HIDDEN])
    outputs, _ = recurrent_overhead.unroll_by_step(params["lstm"], x.swapaxes(0, 1), state)
    return outputs[-1] @ params["linear"]["w"] + params["linear"]["b"]


class LastOutput(mk.Module):
    """The network as a module."""

    def __init__(self, name: str | None = None) -> None:
        super().__init__(name=name)
        self.lstm = mk.UnrolledLSTM(HIDDEN)
        self.linear = mk.Linear(CLASSES)

    def __call__(self, x: Any) -> jax.Array:
        """Returns the logits."""
        outputs, _ = self.lstm(x.swapaxes(0, 1), self.lstm.initial_state(len(x)))
        return self.linear(outputs[-1])


def weights_of(model: LastOutput) -> Params:
    """Returns its variables."""
    lstm = model.lstm
    return {
        "lstm": {"w_i": lstm.input_to_hidden, "w_h": lstm.hidden_to_hidden, "b": lstm.b},
        "linear": linear_weights(model.linear),
    }


LSTM = Workload(
    "lstm",
    "lstm",
    32,
    labeled_noise((STEPS, INPUTS), CLASSES),
    make_params,
    without_statistics(forward),
    LastOutput,
    weights_of,
)
