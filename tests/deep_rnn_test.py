"""Cores on top of each other, with skip and residual connections, and initial states that are learned."""

import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recurrent_reference as reference

import modulekit as mk

TIME, BATCH, INPUTS = 3, 2, 4
X = reference.random_arrays({"x": (TIME, BATCH, INPUTS)})["x"].astype(np.float32)


def weights_of(core: Any) -> reference.Arrays:
    """Gives a core random weights, and returns them."""
    named = {"w_i": core.input_to_hidden, "w_h": core.hidden_to_hidden, "b": core.b}
    arrays = reference.random_arrays({name: variable.shape for name, variable in named.items()}, seed=len(core.name))
    for name, variable in named.items():
        variable.assign(arrays[name].astype(np.float32))
    return arrays


def random_states(*sizes: tuple[int, ...]) -> list[tuple[np.ndarray, ...]]:
    """Returns the states of some cores: for each, arrays of these sizes."""
    generator = np.random.default_rng(3)
    return [tuple(generator.normal(size=(BATCH, size)) for size in core) for core in sizes]


def as_state(parts: tuple[np.ndarray, ...]) -> Any:
    arrays = [jnp.asarray(part, jnp.float32) for part in parts]
    return mk.LSTMState(*arrays) if len(arrays) == 2 else arrays[0]


def stepped(step: reference.Step, x: np.ndarray, state: tuple[np.ndarray, ...], w: reference.Arrays) -> tuple[Any, Any]:
    """One step of a reference core over a batch."""
    outputs, final = reference.unrolled(step, x[None], state, w)
    return outputs[0], final


def make_pair() -> tuple[mk.LSTM, mk.GRU]:
    return mk.LSTM(INPUTS, name="low"), mk.GRU(INPUTS, name="upper")


def check_step(deep: Any, outputs: np.ndarray, finals: list[Any], starts: list[Any]) -> None:
    """Asserts that a step of a deep core gives these outputs and states."""
    ours, states = mk.jit(deep)(X[0], tuple(map(as_state, starts)))
    np.testing.assert_allclose(ours, outputs, rtol=2e-5, atol=2e-6)
    assert isinstance(states, tuple) and len(states) == len(finals)
    for state, final in zip(states, finals, strict=True):
        for part, wanted in zip(jax.tree.leaves(state), final, strict=True):
            np.testing.assert_allclose(part, wanted, rtol=2e-5, atol=2e-6)


def test_a_deep_rnn_passes_outputs_up_and_steps_only_its_cores() -> None:
    low, upper = make_pair()
    deep = mk.DeepRNN([low, jnp.tanh, upper, lambda x: 2 * x])
    deep(X[0], deep.initial_state(BATCH))
    starts = random_states((INPUTS, INPUTS), (INPUTS,))
    y, low_state = stepped(reference.lstm_step, X[0], starts[0], weights_of(low))
    y, upper_state = stepped(reference.gru_step, np.tanh(y), starts[1], weights_of(upper))
    check_step(deep, 2 * y, [low_state, upper_state], starts)
    assert [v.name for v in deep.variables] == ["low/w_h", "low/w_i", "low/b", "upper/w_h", "upper/w_i", "upper/b"]


@pytest.mark.parametrize("concat", [True, False])
def test_skip_connections_show_the_inputs_to_each_core_and_join_the_outputs(concat: bool) -> None:
    low, upper = make_pair()
    deep = mk.deep_rnn_with_skip_connections([low, upper], concat_final_output=concat)
    deep(X[0], deep.initial_state(BATCH))
    starts = random_states((INPUTS, INPUTS), (INPUTS,))
    below, low_state = stepped(reference.lstm_step, X[0], starts[0], weights_of(low))
    seen = np.concatenate([X[0], below], axis=-1)
    above, upper_state = stepped(reference.gru_step, seen, starts[1], weights_of(upper))
    joined = np.concatenate([below, above], axis=-1) if concat else above
    check_step(deep, joined, [low_state, upper_state], starts)
    assert isinstance(deep, mk.RNNCore) and deep.name == "deep_rnn_with_skip_connections"


def test_skip_connections_join_nested_outputs_part_by_part() -> None:
    class Pair(mk.RNNCore):
        def __call__(self, inputs: Any, prev_state: Any) -> tuple[Any, Any]:
            return {"a": inputs["a"] + 1, "b": inputs["b"] * 2}, prev_state

        def initial_state(self, batch_size: int) -> Any:
            return jnp.zeros([batch_size])

    deep = mk.deep_rnn_with_skip_connections([Pair(), Pair()])
    outputs, _ = deep({"a": jnp.zeros([1, 1]), "b": jnp.ones([1, 1])}, deep.initial_state(1))
    assert outputs["a"].tolist() == [[1, 1, 2]] and outputs["b"].tolist() == [[2, 2, 4]]


def test_residual_connections_add_what_each_core_sees() -> None:
    low, upper = make_pair()
    deep = mk.deep_rnn_with_residual_connections([low, upper], name="res")
    deep(X[0], deep.initial_state(BATCH))
    starts = random_states((INPUTS, INPUTS), (INPUTS,))
    y, low_state = stepped(reference.lstm_step, X[0], starts[0], weights_of(low))
    below = X[0] + y
    y, upper_state = stepped(reference.gru_step, below, starts[1], weights_of(upper))
    check_step(deep, below + y, [low_state, upper_state], starts)
    assert deep.name == "res" and isinstance(deep, mk.DeepRNN)
    assert [module.name for module in deep.submodules if module.name.endswith("_residual")] == [
        "low_residual", "upper_residual",
    ]  # fmt: skip


MAKERS = {
    "deep": lambda: mk.DeepRNN([mk.Linear(3), mk.LSTM(4), jnp.tanh, mk.GRU(2)]),
    "skip": lambda: mk.deep_rnn_with_skip_connections([mk.LSTM(3), mk.GRU(2)]),
    "residual": lambda: mk.deep_rnn_with_residual_connections([mk.LSTM(INPUTS), mk.VanillaRNN(INPUTS)]),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=list(MAKERS))
def test_a_deep_core_unrolls_as_any_other_from_its_first_call_and_after_pickling(make: Any) -> None:
    def loss(unroll: Any, core: Any) -> Any:
        outputs, state = unroll(core, X, core.initial_state(BATCH), [1, 3])
        return jnp.square(outputs).sum() + sum(part.sum() for part in jax.tree.leaves(state)), (outputs, state)

    results = []
    for unroll in (mk.static_unroll, mk.dynamic_unroll):
        mk.seed(2)
        core = make()
        twin = pickle.loads(pickle.dumps(core))
        gradients = mk.jit(lambda unroll=unroll, core=twin: mk.grad(lambda: loss(unroll, core), core, has_aux=True)())()
        results.append((gradients, {path: variable.numpy() for path, variable in twin.paths().items()}))
        again = pickle.loads(pickle.dumps(twin))
        value = mk.jit(lambda unroll=unroll, core=again: loss(unroll, core)[1])()
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), value, gradients[1])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=5e-5, atol=5e-6), *results)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16], ids=str)
def test_deep_cores_keep_half_precision(dtype: Any) -> None:
    deep = mk.deep_rnn_with_skip_connections([mk.LSTM(3, dtype=dtype), mk.GRU(2, dtype=dtype)])
    result = deep(jnp.asarray(X[0], dtype), deep.initial_state(BATCH))
    assert {leaf.dtype for leaf in jax.tree.leaves(result)} == {jnp.dtype(dtype)}


def test_a_deep_rnn_without_cores_has_an_empty_state() -> None:
    deep = mk.DeepRNN([jnp.tanh, jnp.sign])
    assert deep.initial_state(BATCH) == ()
    for state in ((), None):
        outputs, after = deep(X[0], state)
        np.testing.assert_array_equal(outputs, np.sign(np.tanh(X[0])))
        assert after == ()
    np.testing.assert_array_equal(mk.DeepRNN(None)(X[0], ())[0], X[0])


def test_keyword_arguments_of_initial_state_go_to_all_cores() -> None:
    class Filled(mk.RNNCore):
        def __call__(self, inputs: Any, prev_state: Any) -> tuple[Any, Any]:
            return inputs, prev_state

        def initial_state(self, batch_size: int, value: float = 0.0) -> Any:
            return jnp.full([batch_size], value)

    for deep in (
        mk.DeepRNN([Filled(), jnp.tanh, Filled()]),
        mk.deep_rnn_with_skip_connections([Filled(), Filled()]),
        mk.deep_rnn_with_residual_connections([Filled(), Filled()]),
    ):
        state: Any = deep
        assert [part.tolist() for part in state.initial_state(2, value=3.0)] == [[3.0, 3.0], [3.0, 3.0]]


def test_layers_that_are_no_cores_and_numbers_of_states_that_do_not_fit_are_refused() -> None:
    for make in (mk.deep_rnn_with_skip_connections, mk.deep_rnn_with_residual_connections):
        with pytest.raises(ValueError) as raised:
            make([mk.LSTM(4), jnp.tanh])
        assert str(raised.value) == (
            f"{make.__name__} requires all layers to be instances of RNNCore, and layers[1] is tanh: use DeepRNN for layers "
            "that keep no state"
        )
    with pytest.raises(TypeError, match=r"^layers\[1\] of DeepRNN is 3: expected a core, a module or a function$"):
        mk.DeepRNN([jnp.tanh, 3])
    for deep in (mk.DeepRNN([mk.GRU(3), mk.GRU(3)], name="d"), mk.deep_rnn_with_skip_connections([mk.GRU(3)] * 2)):
        with pytest.raises(ValueError) as raised:
            deep(X[0], (jnp.zeros([BATCH, 3]),))
        assert (
            "expects a tuple of 2 states, one for each of its cores, got (float32[2,3],): begin with "
            "initial_state(batch_size)"
        ) in str(raised.value)


# Trainable states.


def test_a_trainable_state_is_the_same_for_all_sequences_and_named_by_its_path() -> None:
    values = {"b": (np.arange(2.0, dtype=np.float32), np.float32(3)), "a": np.ones([2, 1], np.float32)}
    state = mk.TrainableState(values, name="start")
    assert [(v.name, v.shape) for v in state.variables] == [
        ("start/a", (1, 2, 1)), ("start/b/0", (1, 2)), ("start/b/1", (1,)),
    ]  # fmt: skip
    given = state(batch_size=3)
    assert given["a"].shape == (3, 2, 1) and given["b"][1].tolist() == [3, 3, 3]
    np.testing.assert_array_equal(given["b"][0], [[0, 1]] * 3)
    assert [v.name for v in mk.TrainableState(0.5).variables] == ["trainable_state/state"]


def test_a_trainable_state_begins_as_that_of_its_core_and_is_trained_where_the_mask_says() -> None:
    core = mk.DeepRNN([mk.LSTM(3), mk.GRU(2)])
    state = mk.TrainableState.for_core(core, mask=(mk.LSTMState(True, False), True), name="start")
    assert [(v.name, v.trainable) for v in state.variables] == [
        ("start/0/hidden", True), ("start/0/cell", False), ("start/1", True),
    ]  # fmt: skip
    jax.tree.map(np.testing.assert_array_equal, state(5), core.initial_state(5))

    def loss() -> Any:
        return mk.dynamic_unroll(core, X, state(BATCH))[0].sum()

    gradients = mk.jit(mk.grad(loss, state))()
    by_sequence = mk.grad(lambda s: mk.static_unroll(core, X, s)[0].sum())(state(BATCH))
    for ours, each in zip(gradients, (by_sequence[0].hidden, by_sequence[1]), strict=True):
        np.testing.assert_allclose(ours, each.sum(axis=0, keepdims=True), rtol=2e-5, atol=1e-6)
        assert np.abs(ours).max() > 0


class Network(mk.Module):
    """Makes a trainable state on its first call."""

    def __init__(self) -> None:
        super().__init__()
        self.core = mk.LSTM(3)

    @mk.once
    def _initialize(self) -> None:
        self.start = mk.TrainableState.for_core(self.core)

    def __call__(self, x: Any) -> Any:
        self._initialize()
        return mk.dynamic_unroll(self.core, x, self.start(x.shape[1]))[0]


def test_a_trainable_state_can_be_made_inside_a_program_and_pickled() -> None:
    network = Network()
    compiled = mk.jit(network)(X)
    assert network.start.template.hidden.name == "network/trainable_state/hidden"
    twin = pickle.loads(pickle.dumps(network))
    twin.start.template.hidden.assign_add(jnp.ones([1, 3]))
    np.testing.assert_allclose(network(X), compiled, rtol=1e-5, atol=1e-6)
    assert not np.allclose(twin(X), compiled)


def test_a_mask_of_another_structure_is_refused() -> None:
    with pytest.raises(ValueError) as raised:
        mk.TrainableState((jnp.zeros([2]), jnp.zeros([2])), mask=(True,))
    assert str(raised.value) == (
        "the mask of a TrainableState needs the structure of its initial values, (float32[2], float32[2]), got (True,)"
    )
