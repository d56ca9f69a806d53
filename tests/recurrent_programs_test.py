"""A recurrent network compiles to the program that one would write by hand, operation by operation."""

import collections
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import modulekit as mk
from tests.benchmarks import recurrent_overhead as benchmark

FEATURES, HIDDEN = 3, 4
PARAMS = benchmark.make_params(FEATURES, HIDDEN)
SEQUENCE = benchmark.make_inputs(6, 2, FEATURES)


def operations(text: str) -> collections.Counter[str]:
    """Returns how often each operation stands in a lowered program."""
    return collections.Counter(re.findall(r'= "?((?:stablehlo|chlo|func)\.\w+|call)', text))


def programs(gradient: bool) -> dict[str, Any]:
    params = {**PARAMS, "b": PARAMS["b"] + 0.1 * jnp.arange(4.0 * HIDDEN)}
    return benchmark.contenders(params, gradient)


@pytest.mark.parametrize("gradient", [False, True], ids=["forward", "gradient"])
def test_the_benchmark_compares_equal_results(gradient: bool) -> None:
    results = {name: jax.tree.leaves(run(SEQUENCE)) for name, run in programs(gradient).items()}
    if gradient:  # JAX sorts the keys of its dict, `b`, `w_h`, `w_i`; the variables stand as `w_h`, `w_i`, `b`
        for name in ("dynamic_unroll", "UnrolledLSTM"):
            results[name] = [results[name][index] for index in (2, 0, 1)]
    for ours in results.values():
        for leaf, wanted in zip(ours, results["jax"], strict=True):
            np.testing.assert_allclose(leaf, wanted, rtol=1e-5, atol=1e-6)
            assert np.abs(wanted).max() > 0


@pytest.mark.parametrize("gradient", [False, True], ids=["forward", "gradient"])
def test_an_unrolled_lstm_has_the_operations_of_hand_written_jax(gradient: bool) -> None:
    found = programs(gradient)
    by_hand = operations(found["jax"].func.lower(PARAMS, SEQUENCE).as_text())
    assert by_hand["stablehlo.dot_general"] == (5 if gradient else 2) and by_hand["stablehlo.while"] == 1 + gradient
    assert operations(found["dynamic_unroll"].lower(SEQUENCE).as_text()) == by_hand
    ours = operations(found["UnrolledLSTM"].lower(SEQUENCE).as_text())
    if gradient:  # in a form of its own
        assert all(ours[name] == by_hand[name] for name in ("stablehlo.dot_general", "stablehlo.while"))
        assert ours.total() <= by_hand.total()
    else:
        assert ours == by_hand


def test_a_gru_has_the_operations_of_hand_written_jax() -> None:
    core = mk.GRU(HIDDEN)
    mk.build(core, [2, FEATURES], core.initial_state(2))
    w_i, w_h, b = core.input_to_hidden.value, core.hidden_to_hidden.value, core.b.value

    @jax.jit
    def by_hand(w_i: jax.Array, w_h: jax.Array, b: jax.Array, sequence: jax.Array) -> Any:
        def step(h: jax.Array, x: jax.Array) -> Any:
            gates, split = x @ w_i, 2 * HIDDEN
            z, r = jnp.split(jax.nn.sigmoid(gates[:, :split] + h @ w_h[:, :split] + b[:split]), 2, axis=1)
            a = jnp.tanh(gates[:, split:] + (r * h) @ w_h[:, split:] + b[split:])
            h = (1 - z) * h + z * a
            return h, h

        return jax.lax.scan(step, jnp.zeros([2, HIDDEN]), sequence)

    ours = mk.jit(lambda sequence: mk.dynamic_unroll(core, sequence, core.initial_state(2)))
    assert operations(ours.lower(SEQUENCE).as_text()) == operations(by_hand.lower(w_i, w_h, b, SEQUENCE).as_text())
