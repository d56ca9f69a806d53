"""Unrolling: both ways compute what the sequences, one by one, would give; under any transform, from the first call."""

import pickle
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recurrent_reference as reference

import modulekit as mk
from modulekit.layers.lstm import lstm_step
from modulekit.layers.lstm_sequence import unrolled

TIME, BATCH, INPUTS, HIDDEN = 5, 3, 2, 3
LENGTHS = [2, 0, 5]
UNROLLS = [mk.static_unroll, mk.dynamic_unroll]
every_unroll = pytest.mark.parametrize("unroll", UNROLLS, ids=lambda unroll: unroll.__name__)
X = reference.random_arrays({"x": (TIME, BATCH, INPUTS)})["x"].astype(np.float32)


class Counter(mk.RNNCore):
    """Adds up inputs, and counts the steps in a scalar; its outputs and state are nested."""

    def __call__(self, inputs: Any, prev_state: Any) -> tuple[Any, Any]:
        count, total = prev_state
        total = total + inputs["x"]
        return {"total": total, "twice": (2 * total, count)}, (count + 1, total)

    def initial_state(self, batch_size: int, **kwargs: Any) -> Any:
        return 0, jnp.full([batch_size, INPUTS], 10.0)


def lstm() -> tuple[mk.LSTM, reference.Arrays]:
    """Returns an LSTM with random weights, and these."""
    zeros = mk.initializers.Zeros()  # quicker than drawing what is assigned below
    core = mk.LSTM(HIDDEN, w_i_init=zeros, w_h_init=zeros)
    mk.build(core, X[0], core.initial_state(BATCH))
    named = {"w_i": core.input_to_hidden, "w_h": core.hidden_to_hidden, "b": core.b}
    arrays = reference.random_arrays({name: variable.shape for name, variable in named.items()}, seed=2)
    for name, variable in named.items():
        variable.assign(arrays[name].astype(np.float32))
    return core, arrays


def zeros() -> reference.State:
    return np.zeros([BATCH, HIDDEN]), np.zeros([BATCH, HIDDEN])


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "lengths"])
@every_unroll
def test_an_unroll_is_each_sequence_on_its_own_up_to_its_length(unroll: Any, lengths: Any) -> None:
    core, arrays = lstm()
    expected, final = reference.unrolled(reference.lstm_step, X.astype(float), zeros(), arrays, lengths)
    outputs, state = mk.jit(lambda x: unroll(core, x, core.initial_state(BATCH), lengths))(X)
    np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-6)
    for part, wanted in zip(state, final, strict=True):
        np.testing.assert_allclose(part, wanted, rtol=1e-5, atol=1e-6)


@every_unroll
def test_gradients_stop_where_a_sequence_ends(unroll: Any) -> None:
    core, arrays = lstm()
    factors = reference.random_arrays({"y": (TIME, BATCH, HIDDEN), "c": (BATCH, HIDDEN)}, seed=4)

    def expected_loss(arrays: reference.Arrays) -> float:
        outputs, final = reference.unrolled(reference.lstm_step, arrays["x"], zeros(), arrays, LENGTHS)
        return float((outputs * factors["y"]).sum() + (final[1] * factors["c"]).sum())

    def loss(x: jax.Array) -> jax.Array:
        outputs, state = unroll(core, x, core.initial_state(BATCH), jnp.array(LENGTHS))
        return (outputs * factors["y"]).sum() + (state.cell * factors["c"]).sum()

    variables = [core.input_to_hidden, core.hidden_to_hidden, core.b]
    ours, for_x = mk.jit(mk.grad(loss, variables, argnums=0))(X)
    wanted = reference.differences(expected_loss, {**arrays, "x": X.astype(float)})
    for name, gradient in zip(("w_i", "w_h", "b", "x"), (*ours, for_x), strict=True):
        np.testing.assert_allclose(gradient, wanted[name], rtol=2e-5, atol=5e-6, err_msg=name)
    assert not for_x[2:, 0].any() and not for_x[:, 1].any() and for_x[4, 2].any()


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "lengths"])
@every_unroll
def test_inputs_outputs_and_states_may_be_nested_and_scalars_go_on_past_the_end(unroll: Any, lengths: Any) -> None:
    core = Counter()
    outputs, (count, total) = unroll(core, {"x": X}, core.initial_state(BATCH), sequence_length=lengths)
    sums = 10 + np.cumsum(X, axis=0)
    for index, length in enumerate(lengths or [TIME] * BATCH):
        sums[length:, index] = sums[length - 1, index] if length else 0
    np.testing.assert_allclose(outputs["total"], sums, rtol=1e-5)
    np.testing.assert_allclose(outputs["twice"][0], 2 * sums, rtol=1e-5)
    assert outputs["twice"][1].tolist() == [0, 1, 2, 3, 4] and int(count) == 5
    np.testing.assert_allclose(
        total, sums[-1] if lengths is None else [*sums[-1:, 0], [10, 10], sums[-1, 2]], rtol=1e-5
    )


@every_unroll
def test_any_function_is_a_core_and_one_length_may_stand_for_all(unroll: Any) -> None:
    outputs, total = unroll(lambda x, s: (s + x, s + x), X, np.zeros([BATCH, INPUTS], np.float32), sequence_length=2)
    np.testing.assert_allclose(total, X[:2].sum(axis=0), rtol=1e-6)
    np.testing.assert_array_equal(outputs[2:], np.broadcast_to(total, (3, BATCH, INPUTS)))


def test_arguments_of_sonnet_that_say_how_to_run_a_loop_change_nothing() -> None:
    core, _ = lstm()
    plain = mk.dynamic_unroll(core, X, core.initial_state(BATCH))[0]
    told = mk.dynamic_unroll(core, X, core.initial_state(BATCH), None, 32, True)[0]
    np.testing.assert_array_equal(plain, told)


def test_a_compiled_loop_has_one_step_in_its_program_and_a_static_unroll_has_all() -> None:
    core, _ = lstm()
    state = core.initial_state(BATCH)
    texts = [mk.jit(lambda x, unroll=unroll: unroll(core, x, state)[0]).lower(X).as_text() for unroll in UNROLLS]
    assert [text.count("stablehlo.dot_general") for text in texts] == [2 * TIME, 2]
    assert [text.count("stablehlo.while") for text in texts] == [0, 1]
    held = mk.jit(lambda x: mk.dynamic_unroll(core, x, state, LENGTHS)[0]).lower(X).as_text()
    assert held.count("stablehlo.dot_general") == 2


# Transforms, from the first call.


def outputs_of(unroll: Any, core: Any, x: Any) -> Any:
    return unroll(core, x, core.initial_state(BATCH), sequence_length=LENGTHS)[0]


def by_jit(unroll: Any, core: Any) -> Any:
    return mk.jit(lambda x: outputs_of(unroll, core, x))(X)


def by_vmap(unroll: Any, core: Any) -> Any:
    return mk.vmap(lambda x: outputs_of(unroll, core, x))(jnp.stack([0 * X, X]))[1]


def by_scan(unroll: Any, core: Any) -> Any:
    return mk.scan(lambda _, x: (None, outputs_of(unroll, core, x)), None, jnp.stack([0 * X, X]))[1][1]


def by_remat(unroll: Any, core: Any) -> Any:
    return mk.remat(lambda x: outputs_of(unroll, core, x))(X)


def by_remat_of_the_core(unroll: Any, core: Any) -> Any:
    return unroll(mk.remat(core), X, core.initial_state(BATCH), LENGTHS)[0]


def by_grad(unroll: Any, core: Any) -> Any:
    return mk.grad(lambda: (outputs_of(unroll, core, X).sum(), outputs_of(unroll, core, X)), core, has_aux=True)()[1]


def by_build(unroll: Any, core: Any) -> Any:
    mk.build(lambda x: outputs_of(unroll, core, x), [TIME, BATCH, INPUTS])
    return outputs_of(unroll, core, X)


WAYS = [by_jit, by_vmap, by_scan, by_remat, by_remat_of_the_core, by_grad, by_build]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@every_unroll
def test_under_any_transform_the_first_call_makes_the_same_variables_and_outputs(unroll: Any, way: Any) -> None:
    mk.seed(5)
    expected_core = mk.GRU(HIDDEN)
    expected = outputs_of(mk.static_unroll, expected_core, X)
    mk.seed(5)
    core = mk.GRU(HIDDEN)
    np.testing.assert_allclose(way(unroll, core), expected, rtol=2e-5, atol=2e-6)
    for variable, wanted in zip(core.variables, expected_core.variables, strict=True):
        np.testing.assert_array_equal(variable.value, wanted.value)


def gradient(unroll: Any, core: Any) -> Any:
    return mk.grad(lambda: jnp.square(outputs_of(unroll, core, X)).sum(), core)()


def gradient_by_jit(unroll: Any, core: Any) -> Any:
    return mk.jit(lambda: gradient(unroll, core))()


def gradient_of_remat(unroll: Any, core: Any) -> Any:
    return mk.grad(mk.remat(lambda: jnp.square(outputs_of(unroll, core, X)).sum()), core)()


def gradient_of_scan(unroll: Any, core: Any) -> Any:
    def loss() -> Any:
        return mk.scan(lambda t, x: (t + jnp.square(outputs_of(unroll, core, x)).sum(), None), 0.0, X[None])[0]

    return mk.grad(loss, core)()


def gradient_by_vmap(unroll: Any, core: Any) -> Any:
    def of(x: Any) -> Any:
        return mk.grad(lambda: jnp.square(outputs_of(unroll, core, x)).sum(), core)()

    return [each[1] for each in mk.jit(mk.vmap(of))(jnp.stack([0 * X, X]))]


@pytest.mark.parametrize(
    "way",
    [gradient, gradient_by_jit, gradient_of_remat, gradient_of_scan, gradient_by_vmap],
    ids=lambda way: way.__name__,
)
def test_gradients_through_a_compiled_loop_are_those_of_the_steps_under_any_transform(way: Any) -> None:
    mk.seed(5)
    expected = mk.jit(lambda core: gradient(mk.static_unroll, core))(mk.GRU(HIDDEN))
    mk.seed(5)
    for ours, wanted in zip(way(mk.dynamic_unroll, mk.GRU(HIDDEN)), expected, strict=True):
        np.testing.assert_allclose(ours, wanted, rtol=2e-5, atol=5e-6)
        assert np.abs(wanted).max() > 0


class Noisy(mk.RNNCore):
    """Draws in each step, and counts the steps in a variable."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = mk.Variable(0, trainable=False, name="steps")

    def __call__(self, inputs: Any, prev_state: Any) -> tuple[Any, Any]:
        self.steps.assign_add(1)
        return jax.random.normal(mk.next_key(), inputs.shape), prev_state

    def initial_state(self, batch_size: int, **kwargs: Any) -> Any:
        return ()


@pytest.mark.parametrize("lengths", [None, [TIME] * BATCH], ids=["full", "lengths"])
def test_steps_write_variables_and_draw_numbers_as_they_would_one_by_one(lengths: Any) -> None:
    results = []
    for unroll in (mk.static_unroll, mk.dynamic_unroll, mk.jit(mk.dynamic_unroll)):
        mk.seed(8)
        core = Noisy()
        outputs, _ = unroll(core, X, (), lengths)
        results.append((np.asarray(outputs), int(core.steps)))
        assert len(np.unique(outputs)) == outputs.size
    for outputs, steps in results:
        assert steps == TIME
        np.testing.assert_array_equal(outputs, results[0][0])


# UnrolledLSTM.


def test_an_unrolled_lstm_is_the_unroll_of_an_lstm_with_its_weights() -> None:
    core, _ = lstm()
    network = mk.UnrolledLSTM(HIDDEN, name="other")
    state = mk.LSTMState(*(jnp.asarray(part, jnp.float32) + 0.5 for part in zeros()))
    network(X, state)
    for ours, theirs in zip(network.variables, core.variables, strict=True):
        assert ours.name.replace("other", "lstm") == theirs.name
        ours.assign(theirs.value)

    def both(run: Callable[..., Any], module: Any) -> Any:
        def loss(x: Any) -> Any:
            outputs, final = run(x, state)
            return (outputs**2).sum() + final.cell.sum(), (outputs, final)

        return mk.jit(mk.value_and_grad(loss, module, has_aux=True, argnums=0))(X)

    (loss, results), gradients = both(network, network)
    (wanted_loss, wanted_results), wanted_gradients = both(lambda x, s: mk.dynamic_unroll(core, x, s), core)
    jax.tree.map(np.testing.assert_array_equal, results, wanted_results)
    jax.tree.map(
        lambda found, wanted: np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6),
        (loss, gradients),
        (wanted_loss, wanted_gradients),
    )


def derivatives(function: Callable[..., Any], operands: dict[str, jax.Array]) -> dict[str, Any]:
    """Returns derivatives of all kinds of a scalar function of a dict."""
    keys = dict(zip(operands, jax.random.split(jax.random.key(3), len(operands)), strict=True))
    along = {name: jax.random.normal(keys[name], x.shape) for name, x in operands.items()}
    gradient = jax.grad(function)
    return {
        "forward": jax.jvp(function, (operands,), (along,)),
        "reverse": gradient(operands),
        "forward over reverse": jax.jvp(gradient, (operands,), (along,)),
        "reverse over forward": jax.grad(lambda operands: jax.jvp(function, (operands,), (along,))[1])(operands),
        "rematerialized": jax.grad(jax.checkpoint(function))(operands),
        "mapped": jax.vmap(lambda factor: gradient({name: factor * x for name, x in operands.items()}))(
            jnp.arange(3.0)
        ),
        **{
            f"by {name} alone": jax.grad(lambda x, name=name: function({**operands, name: x}))(operands[name])
            for name in operands
        },
    }


def test_the_derivatives_of_an_unrolled_lstm_are_those_of_the_loop() -> None:
    _, arrays = lstm()
    state = dict(zip(("h", "c"), (jnp.asarray(part, jnp.float32) + 0.5 for part in zeros()), strict=True))
    operands = {"x": X, **{name: jnp.asarray(arrays[name], jnp.float32) for name in ("w_i", "w_h", "b")}, **state}

    def loss(outputs: jax.Array, h: jax.Array, c: jax.Array) -> jax.Array:
        return (outputs**3).sum() + (h * c).sum()

    def ours(x: Any, h: Any, c: Any, **weights: Any) -> jax.Array:
        outputs, final = unrolled(x, mk.LSTMState(h, c), **weights)
        return loss(outputs, *final)

    def plain(x: Any, h: Any, c: Any, **weights: Any) -> jax.Array:
        def step(state: Any, x: Any) -> Any:
            state = lstm_step(x, *state, **weights)
            return state, state[0]

        final, outputs = jax.lax.scan(step, (h, c), x)
        return loss(outputs, *final)

    found, wanted = (derivatives(lambda o, f=f: f(**o), operands) for f in (ours, plain))
    for kind, values in wanted.items():
        for leaf, other in zip(jax.tree.leaves(found[kind]), jax.tree.leaves(values), strict=True):
            np.testing.assert_allclose(leaf, other, rtol=2e-5, atol=2e-5, err_msg=kind)
            assert np.abs(other).max() > 0, kind


def test_an_unrolled_lstm_is_compiled_once_outside_of_other_programs(caplog: pytest.LogCaptureFixture) -> None:
    network = mk.UnrolledLSTM(HIDDEN)
    state = network.initial_state(BATCH)
    network(X, state)
    twin = mk.UnrolledLSTM(HIDDEN)
    twin(X, state)
    with jax.log_compiles():
        first = network(X, state)[0]
        network.b.assign_add(jnp.ones_like(network.b.value))
        second = network(X, state)[0]
        twin(X, state)
    assert not [record.message for record in caplog.records if "_unrolled" in record.message]
    assert not np.allclose(first, second)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16], ids=str)
def test_an_unrolled_lstm_keeps_half_precision(dtype: Any) -> None:
    network = mk.UnrolledLSTM(HIDDEN, dtype=dtype)
    result = network(jnp.asarray(X, dtype), network.initial_state(BATCH))
    assert {leaf.dtype for leaf in jax.tree.leaves((result, network.b.value))} == {jnp.dtype(dtype)}
    core = mk.LSTM(HIDDEN, dtype=dtype)
    core(jnp.asarray(X[0], dtype), core.initial_state(BATCH))
    for ours, theirs in zip(core.variables, network.variables, strict=True):
        ours.assign(theirs.value)
    steps = mk.static_unroll(core, jnp.asarray(X, dtype), core.initial_state(BATCH))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a.astype(jnp.float32), b.astype(jnp.float32), atol=2e-2), steps, result
    )


def test_an_unrolled_lstm_can_be_pickled_and_takes_one_state_for_all_sequences() -> None:
    network = mk.UnrolledLSTM(HIDDEN)
    expected = network(X, network.initial_state(BATCH))[0]
    twin = pickle.loads(pickle.dumps(network))
    np.testing.assert_array_equal(twin(X, twin.initial_state(1))[0], expected)


# What does not fit.


@every_unroll
def test_sequences_without_steps_or_of_different_numbers_of_them_are_refused(unroll: Any) -> None:
    core = Counter()
    state = core.initial_state(BATCH)
    for sequence, message in (
        ({"x": X[:0]}, "input_sequence must have at least a single time step, got {'x': float32[0,3,2]}"),
        (
            (X, X[1:]),
            "input_sequence tensors must have consistent number of time steps, got (float32[5,3,2], float32[4,3,2])",
        ),
        (2.0, "input_sequence must consist of arrays [time, batch, ...], got float32[]"),
        ((), "input_sequence must consist of arrays [time, batch, ...], got ()"),
    ):
        with pytest.raises(ValueError) as raised:
            unroll(core, sequence, state)
        assert str(raised.value).startswith(message)


@every_unroll
def test_lengths_of_another_batch_are_refused(unroll: Any) -> None:
    core, _ = lstm()
    with pytest.raises(ValueError) as raised:
        unroll(core, X, core.initial_state(BATCH), [1, 2])
    assert str(raised.value) == (
        "sequence_length has 2 elements, and among outputs and states is float32[3,3]: each needs a first axis of that "
        "size, the batch"
    )


def test_a_state_that_changes_its_form_in_a_compiled_loop_is_refused() -> None:
    core, _ = lstm()
    one = core.initial_state(1)
    with pytest.raises(ValueError) as raised:
        mk.dynamic_unroll(core, X, one)
    assert str(raised.value) == (
        f"{core!r} was given the state LSTMState(hidden=float32[1,3], cell=float32[1,3]) and returned "
        "LSTMState(hidden=float32[3,3], cell=float32[3,3]): in a compiled loop it stays the same structure of the same "
        "shapes and dtypes. Give an initial state of the form that the core returns"
    )
    with pytest.raises(ValueError, match="in a compiled loop it stays the same structure"):
        mk.dynamic_unroll(lambda x, s: (x, s.astype(jnp.float16)), X, jnp.zeros([BATCH]))


@pytest.mark.parametrize(
    ("x", "state", "error", "message"),
    [
        (
            X[0],
            3,
            ValueError,
            "expects inputs of shape [time, batch, input_size], got float32[3,2]: they must have rank 3",
        ),
        (X.astype(np.float16), 3, TypeError, "inputs must have dtype float32, got float16[5,3,2]"),
        (X, 2, ValueError, "expects the hidden state of shape [3, 3], got float32[2,3]"),
    ],
    ids=["rank", "dtype", "state"],
)
def test_an_unrolled_lstm_refuses_what_does_not_fit(x: Any, state: int, error: type[Exception], message: str) -> None:
    network = mk.UnrolledLSTM(HIDDEN)
    with pytest.raises(error) as raised:
        network(x, network.initial_state(state))
    assert message in str(raised.value)
    assert network.paths() == {}
