"""Cores step as their equations say, forward and in their gradients, in each dtype, and refuse what does not fit."""

import dataclasses
import pickle
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recurrent_reference as reference

import modulekit as mk

TIME, BATCH, INPUTS, HIDDEN = 3, 2, 2, 3
ZEROS = {"w_i_init": mk.initializers.Zeros(), "w_h_init": mk.initializers.Zeros()}  # quicker where weights are assigned


@dataclasses.dataclass(frozen=True, eq=False)
class Kind:
    """A core, its reference, and the shapes of its weights and of its state."""

    name: str
    make: Callable[..., Any]
    step: reference.Step
    weights: dict[str, tuple[int, ...]]
    state: tuple[int, ...] = (HIDDEN,)


def _gates(count: int, hidden: int = HIDDEN) -> dict[str, tuple[int, ...]]:
    return {"w_i": (INPUTS, count * HIDDEN), "w_h": (hidden, count * HIDDEN), "b": (count * HIDDEN,)}


KINDS = [
    Kind("vanilla_rnn", lambda **k: mk.VanillaRNN(HIDDEN, **k), reference.vanilla_step, _gates(1)),
    Kind("gru", lambda **k: mk.GRU(HIDDEN, **k), reference.gru_step, _gates(3)),
    Kind("lstm", lambda **k: mk.LSTM(HIDDEN, **k), reference.lstm_step, _gates(4), (HIDDEN, HIDDEN)),
    Kind(
        "projected_lstm",
        lambda **k: mk.LSTM(HIDDEN, projection_size=2, **k),
        reference.lstm_step,
        {**_gates(4, hidden=2), "projection": (HIDDEN, 2)},
        (2, HIDDEN),
    ),
]  # fmt: skip
every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)


def variables_of(core: Any) -> dict[str, mk.Variable]:
    """Returns the variables by their names in the equations."""
    named = {"w_i": core.input_to_hidden, "w_h": core.hidden_to_hidden, "b": core.b}
    projection = getattr(core, "projection", None)
    return named if projection is None else {**named, "projection": projection}


def arrays_of(kind: Kind) -> reference.Arrays:
    """Returns weights, a sequence and an initial state."""
    state = {f"state_{index}": (BATCH, size) for index, size in enumerate(kind.state)}
    return reference.random_arrays({**kind.weights, "x": (TIME, BATCH, INPUTS), **state})


def state_of(kind: Kind, arrays: dict[str, Any]) -> Any:
    parts = [arrays[f"state_{index}"] for index in range(len(kind.state))]
    return parts[0] if len(parts) == 1 else mk.LSTMState(*parts)


def built(kind: Kind, arrays: reference.Arrays, dtype: Any = jnp.float32) -> Any:
    """Returns a core with these weights."""
    core = kind.make(dtype=dtype, **ZEROS)
    mk.build(core, jax.ShapeDtypeStruct((BATCH, INPUTS), dtype), core.initial_state(BATCH))
    for name, variable in variables_of(core).items():
        variable.assign(jnp.asarray(arrays[name], dtype))
    return core


def single(arrays: reference.Arrays, dtype: Any = jnp.float32) -> dict[str, jax.Array]:
    return {name: jnp.asarray(array, dtype) for name, array in arrays.items()}


def expected_of(kind: Kind, arrays: reference.Arrays) -> tuple[np.ndarray, reference.State]:
    state = tuple(arrays[f"state_{index}"] for index in range(len(kind.state)))
    return reference.unrolled(kind.step, arrays["x"], state, arrays)


@every_kind
def test_steps_are_those_of_the_equations(kind: Kind) -> None:
    arrays = arrays_of(kind)
    core, given = built(kind, arrays), single(arrays)
    outputs, state = expected_of(kind, arrays)
    ours = state_of(kind, given)
    for time in range(TIME):
        output, ours = core(given["x"][time], ours)
        np.testing.assert_allclose(output, outputs[time], rtol=1e-5, atol=1e-6)
    for part, wanted in zip(jax.tree.leaves(ours), state, strict=True):
        np.testing.assert_allclose(part, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("unroll", [mk.static_unroll, mk.dynamic_unroll], ids=["static", "dynamic"])
@every_kind
def test_gradients_of_weights_inputs_and_state_are_those_of_central_differences(kind: Kind, unroll: Any) -> None:
    arrays = arrays_of(kind)
    factors = reference.random_arrays({"y": (TIME, BATCH, kind.state[0]), "s": (BATCH, kind.state[-1])}, seed=1)

    def expected_loss(arrays: reference.Arrays) -> float:
        outputs, state = expected_of(kind, arrays)
        return float((outputs * factors["y"]).sum() + (state[-1] * factors["s"]).sum())

    core = built(kind, arrays)
    variables = variables_of(core)
    given = {name: array for name, array in single(arrays).items() if name not in variables}

    def loss(given: dict[str, jax.Array]) -> jax.Array:
        outputs, state = unroll(core, given["x"], state_of(kind, given))
        return (outputs * factors["y"]).sum() + (jax.tree.leaves(state)[-1] * factors["s"]).sum()

    ours, for_given = mk.jit(mk.grad(loss, list(variables.values()), argnums=0))(given)
    gradients = {**dict(zip(variables, ours, strict=True)), **for_given}
    wanted = reference.differences(expected_loss, arrays)
    assert gradients.keys() == wanted.keys()
    for name, gradient in gradients.items():
        np.testing.assert_allclose(gradient, wanted[name], rtol=2e-5, atol=5e-6, err_msg=name)


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float16, 1e-2), (jnp.bfloat16, 5e-2)], ids=str)
@every_kind
def test_half_precision_stays_half_precision_and_near(kind: Kind, dtype: Any, tolerance: float) -> None:
    arrays = arrays_of(kind)
    core = built(kind, arrays, dtype)
    given = single(arrays, dtype)
    outputs, state = mk.jit(lambda x, state: mk.dynamic_unroll(core, x, state))(given["x"], state_of(kind, given))
    initial = core.initial_state(4)
    assert {leaf.dtype for leaf in jax.tree.leaves((outputs, state, initial))} == {jnp.dtype(dtype)}
    assert {variable.dtype for variable in core.variables} == {jnp.dtype(dtype)}
    rounded = {name: np.asarray(array.astype(jnp.float32), np.float64) for name, array in given.items()}
    np.testing.assert_allclose(
        outputs.astype(jnp.float32), expected_of(kind, rounded)[0], atol=tolerance, rtol=tolerance
    )


@every_kind
def test_first_states_are_zeros_and_first_weights_have_sonnets_names_shapes_and_order(kind: Kind) -> None:
    core = kind.make(name="core", **ZEROS)
    state = core.initial_state(BATCH)
    assert [leaf.shape for leaf in jax.tree.leaves(state)] == [(BATCH, size) for size in kind.state]
    assert not any(leaf.any() for leaf in jax.tree.leaves(state))
    core(jnp.ones([BATCH, INPUTS]), state)
    assert {name: variable.shape for name, variable in variables_of(core).items()} == kind.weights
    names = {
        "vanilla_rnn": ["core/b", "core/hidden_to_hidden/w", "core/input_to_hidden/w"],
        "projected_lstm": ["core/w_h", "core/w_i", "core/b", "core/projection"],
    }
    assert [v.name for v in core.variables] == names.get(kind.name, ["core/w_h", "core/w_i", "core/b"])
    assert all(variable.trainable for variable in core.variables)


def test_the_bias_of_a_fresh_lstm_is_the_forget_bias_in_its_second_quarter() -> None:
    for make in (mk.LSTM, mk.UnrolledLSTM):
        core = make(2, b_init=mk.initializers.Constant(0.25), forget_bias=0.5)
        x = jnp.ones([1, 3]) if make is mk.LSTM else jnp.ones([1, 1, 3])
        core(x, core.initial_state(1))
        assert core.b.value.tolist() == [0.25, 0.25, 0.75, 0.75, 0.25, 0.25, 0.25, 0.25]


def test_first_weights_are_truncated_normal_by_fan_in_and_those_of_a_gru_glorot_uniform() -> None:
    inputs, hidden = 60, 90
    lstm, gru, vanilla = mk.LSTM(hidden, projection_size=40), mk.GRU(hidden), mk.VanillaRNN(hidden)
    for core in (lstm, gru, vanilla):
        core(jnp.ones([1, inputs]), core.initial_state(1))
    for variable, size in (
        (lstm.input_to_hidden, inputs), (lstm.hidden_to_hidden, 40), (lstm.projection, hidden),
        (vanilla.input_to_hidden, inputs), (vanilla.hidden_to_hidden, hidden),
    ):  # fmt: skip
        w = variable.numpy() * np.sqrt(size)
        assert 1.9 < np.abs(w).max() <= 2.0 and abs(w.std() - 0.8796) < 0.03
    for variable in (gru.input_to_hidden, gru.hidden_to_hidden):
        limit = np.sqrt(6 / sum(variable.shape))
        w = variable.numpy()
        assert 0.99 * limit < np.abs(w).max() <= limit and abs(w.std() * np.sqrt(3) - limit) < 0.01
    for core in (gru, vanilla):
        assert not core.b.value.any()


def test_a_vanilla_rnn_takes_any_activation_and_any_axes_between_batch_and_features() -> None:
    core = mk.VanillaRNN(HIDDEN, activation=jnp.sin)
    x = jnp.asarray(reference.random_arrays({"x": (BATCH, 4, INPUTS)})["x"], jnp.float32)
    outputs, state = core(x, jnp.ones([BATCH, 4, HIDDEN]))
    w = {name: variable.numpy() for name, variable in variables_of(core).items()}
    np.testing.assert_allclose(outputs, np.sin(x @ w["w_i"] + np.ones(HIDDEN) @ w["w_h"] + w["b"]), atol=1e-6)
    assert state is outputs


@every_kind
def test_one_state_may_stand_for_all_sequences_of_a_batch(kind: Kind) -> None:
    core = kind.make()
    x = jnp.ones([BATCH, INPUTS])
    for one, each in zip(*(jax.tree.leaves(core(x, core.initial_state(n))) for n in (1, BATCH)), strict=True):
        np.testing.assert_array_equal(one, each)


@every_kind
def test_a_core_can_be_pickled_before_and_after_its_first_call(kind: Kind) -> None:
    x = jnp.ones([BATCH, INPUTS])
    mk.seed(3)
    core = kind.make()
    fresh = pickle.dumps(core)
    expected = core(x, core.initial_state(BATCH))[0]
    used = pickle.loads(pickle.dumps(core))
    np.testing.assert_array_equal(used(x, used.initial_state(BATCH))[0], expected)
    mk.seed(3)
    twin = pickle.loads(fresh)
    np.testing.assert_array_equal(twin(x, twin.initial_state(BATCH))[0], expected)


# What does not fit.

X = np.ones([BATCH, INPUTS], np.float32)
H = np.zeros([BATCH, HIDDEN], np.float32)
BEGIN = "begin with core.initial_state(batch_size), and go on with the state that the core returns"
REFUSED = {
    "rank": (mk.GRU, X[None], H, ValueError, "GRU(hidden_size=3) expects inputs of shape [batch, input_size], got "
             "float32[1,2,2]: they must have rank 2"),
    "dtype": (mk.VanillaRNN, X.astype(np.float16), H, TypeError, "VanillaRNN(hidden_size=3): inputs must have dtype "
              "float32, got float16[2,2]: convert them, or make the core with dtype='float16'"),
    "state width": (mk.GRU, X, H[:, 1:], ValueError, "GRU(hidden_size=3) expects prev_state of shape [2, 3], got "
                    f"float32[2,2]: {BEGIN}"),
    "state batch": (mk.VanillaRNN, X, np.zeros([4, 3], np.float32), ValueError, "VanillaRNN(hidden_size=3) expects "
                    f"prev_state of shape [2, 3], got float32[4,3]: {BEGIN}"),
    "state dtype": (mk.GRU, X, H.astype(np.float16), TypeError, "GRU(hidden_size=3): prev_state must have dtype float32, "
                    f"got float16[2,3]: {BEGIN}"),
    "no lstm state": (mk.LSTM, X, H, TypeError, "LSTM(hidden_size=3) expects an LSTMState for its state, got float32[2,3]: "
                      "give LSTMState(hidden=..., cell=...), or begin with initial_state(batch_size)"),
    "cell": (mk.LSTM, X, mk.LSTMState(H, H[:, :1]), ValueError, "LSTM(hidden_size=3) expects the cell of shape [2, 3], got "
             f"float32[2,1]: {BEGIN}"),
}  # fmt: skip


@pytest.mark.parametrize(("make", "x", "state", "error", "message"), REFUSED.values(), ids=list(REFUSED))
def test_what_does_not_fit_is_refused_before_any_weight_is_made(
    make: Any, x: Any, state: Any, error: type[Exception], message: str
) -> None:
    core = make(HIDDEN)
    with pytest.raises(error) as raised:
        core(x, state)
    assert str(raised.value).startswith(message)
    assert core.paths() == {}


@pytest.mark.parametrize("make", [mk.LSTM, mk.GRU], ids=lambda make: make.__name__)
def test_another_input_size_than_on_the_first_call_is_refused(make: Any) -> None:
    core = make(HIDDEN)
    core(X, core.initial_state(BATCH))
    with pytest.raises(ValueError) as raised:
        core(np.ones([BATCH, 5], np.float32), core.initial_state(BATCH))
    assert str(raised.value).startswith(
        f"{make.__name__}(hidden_size=3) expects inputs with 2 features, got float32[2,5]: a core's input size is fixed "
        "when its weight is made; use another core for another size"
    )


def test_an_error_names_the_path_of_the_core() -> None:
    deep = mk.DeepRNN([mk.Linear(4), mk.GRU(HIDDEN)])
    with pytest.raises(
        ValueError, match=r"GRU\(hidden_size=3\) \(path layers\[1\] in DeepRNN\(.*expects prev_state of shape"
    ):
        deep(X, (H[:, 1:],))


def test_sizes_below_one_and_a_projection_without_a_size_are_refused() -> None:
    for make in (mk.LSTM, mk.GRU, mk.VanillaRNN, mk.UnrolledLSTM):
        with pytest.raises(ValueError, match=r"^hidden_size=0 is below 1$"):
            make(0)
    with pytest.raises(ValueError, match=r"^projection_size=0 is below 1$"):
        mk.LSTM(2, projection_size=0)
    with pytest.raises(ValueError) as raised:
        mk.LSTM(2, projection_init=mk.initializers.Ones())
    assert str(raised.value) == (
        "projection_init must be None when projection is not used, got Ones(): give projection_size"
    )


def test_the_abstract_classes_cannot_be_made() -> None:
    for abstract in (mk.RNNCore, mk.UnrolledRNN):
        with pytest.raises(TypeError, match="abstract"):
            abstract()
