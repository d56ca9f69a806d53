"""Recurrent dropout: one mask for all steps of a sequence, another one for the next, and none in testing."""

import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recurrent_reference as reference

import modulekit as mk

TIME, BATCH, INPUTS, HIDDEN = 4, 2, 3, 50
X = reference.random_arrays({"x": (TIME, BATCH, INPUTS)})["x"].astype(np.float32)


def masked_step(mask: np.ndarray) -> reference.Step:
    def step(x: np.ndarray, state: reference.State, w: reference.Arrays) -> reference.State:
        h, c = state
        return reference.lstm_step(x, (h * mask, c), w)

    return step


@pytest.mark.parametrize("unroll", [mk.static_unroll, mk.dynamic_unroll], ids=lambda unroll: unroll.__name__)
def test_each_step_of_an_unroll_sees_the_hidden_state_through_the_same_mask(unroll: Any) -> None:
    train, test = mk.lstm_with_recurrent_dropout(HIDDEN, dropout=0.4)
    test(X[0], test.initial_state(BATCH))
    w = {"w_i": test.input_to_hidden.numpy(), "w_h": test.hidden_to_hidden.numpy(), "b": test.b.numpy()}
    state = train.initial_state(BATCH)
    outputs, (final, masks) = unroll(train, X, state)
    mask = np.asarray(masks.hidden)
    np.testing.assert_array_equal(mask, state[1].hidden)
    for index in range(BATCH):
        own = tuple(np.zeros([1, HIDDEN]) for _ in range(2))
        expected, _ = reference.unrolled(masked_step(mask[index]), X[:, index : index + 1].astype(float), own, w)
        np.testing.assert_allclose(outputs[:, index], expected[:, 0], rtol=2e-5, atol=2e-6)
    np.testing.assert_array_equal(final.hidden, outputs[-1])


def test_masks_keep_the_mean_differ_between_sequences_and_leave_the_cell_alone() -> None:
    train, _ = mk.lstm_with_recurrent_dropout(HIDDEN, dropout=0.25)
    draws = [train.initial_state(40)[1] for _ in range(2)]
    assert all(draw.cell is None for draw in draws)
    first, second = (np.asarray(draw.hidden) for draw in draws)
    assert set(np.unique(first)) == {0.0, np.float32(1 / 0.75)}
    assert abs((first == 0).mean() - 0.25) < 0.05
    assert (first != second).any() and (first[0] != first[1]).any()


def test_masks_differ_from_run_to_run_of_a_compiled_program_and_repeat_with_the_seed() -> None:
    train, _ = mk.lstm_with_recurrent_dropout(HIDDEN, dropout=0.5)
    run = mk.jit(lambda: mk.dynamic_unroll(train, X, train.initial_state(BATCH))[0])
    mk.seed(1)
    first, second = run(), run()
    mk.seed(1)
    again = run()
    assert not np.allclose(first, second)
    np.testing.assert_array_equal(first, again)


def test_a_seed_gives_the_masks_a_stream_of_their_own() -> None:
    cores = [mk.lstm_with_recurrent_dropout(HIDDEN, seed=7)[0] for _ in range(2)]
    mk.seed(1)
    first = cores[0].initial_state(BATCH)[1].hidden
    mk.next_key()
    np.testing.assert_array_equal(cores[1].initial_state(BATCH)[1].hidden, first)
    assert (np.asarray(cores[1].initial_state(BATCH)[1].hidden) != np.asarray(first)).any()
    twin = pickle.loads(pickle.dumps(cores[0]))
    np.testing.assert_array_equal(twin.initial_state(BATCH)[1].hidden, cores[0].initial_state(BATCH)[1].hidden)


def test_training_and_test_core_share_variables_and_agree_without_dropout() -> None:
    train, test = mk.lstm_with_recurrent_dropout(3, dropout=0.0, projection_size=2, name="core")
    outputs = mk.dynamic_unroll(train, X, train.initial_state(BATCH), sequence_length=[2, 4])[0]
    expected = mk.dynamic_unroll(test, X, test.initial_state(BATCH), sequence_length=[2, 4])[0]
    np.testing.assert_array_equal(outputs, expected)
    assert train.variables == test.variables and len(train.variables) == 4
    assert isinstance(test, mk.LSTM) and isinstance(train, mk.RNNCore)
    assert (train.name, test.name) == ("core_recurrent_dropout", "core")


def test_gradients_pass_the_mask_and_agree_between_loop_and_steps() -> None:
    train, _ = mk.lstm_with_recurrent_dropout(4)
    state = train.initial_state(BATCH)
    gradients = [
        mk.grad(lambda unroll=unroll: jnp.square(unroll(train, X, state)[0]).sum(), train)()
        for unroll in (mk.static_unroll, mk.dynamic_unroll)
    ]
    for ours, theirs in zip(*gradients, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-6)
        assert np.abs(theirs).max() > 0


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16], ids=str)
def test_masks_have_the_dtype_of_the_state(dtype: Any) -> None:
    train, _ = mk.lstm_with_recurrent_dropout(3, dtype=dtype)
    result = train(jnp.asarray(X[0], dtype), train.initial_state(BATCH))
    assert {leaf.dtype for leaf in jax.tree.leaves(result)} == {jnp.dtype(dtype)}


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5])
def test_rates_outside_of_zero_to_one_are_refused(rate: float) -> None:
    with pytest.raises(ValueError) as raised:
        mk.lstm_with_recurrent_dropout(4, dropout=rate)
    assert str(raised.value) == f"dropout must be in the range [0, 1), got {rate}"
