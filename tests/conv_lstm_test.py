"""LSTMs with convolutions: their equations, in one, two and three dimensions, channels last and first."""

import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recurrent_reference as reference

import modulekit as mk

TIME, BATCH, INPUTS, OUTPUTS = 2, 2, 1, 2
ZEROS = {"w_i_init": mk.initializers.Zeros(), "w_h_init": mk.initializers.Zeros()}  # quicker where weights are assigned
KINDS = {  # class, the image's size, the kernel's, and the formats: channels last and first
    1: (mk.Conv1DLSTM, (4,), (3,), ("NWC", "NCW")),
    2: (mk.Conv2DLSTM, (3, 2), (3, 2), ("NHWC", "NCHW")),
    3: (mk.Conv3DLSTM, (2, 3, 2), (1, 2, 3), ("NDHWC", "NCDHW")),
}
every_rank = pytest.mark.parametrize("rank", KINDS)
both_formats = pytest.mark.parametrize("first", [False, True], ids=["channels_last", "channels_first"])


def arrays_of(rank: int) -> reference.Arrays:
    """Returns weights, a sequence and a state, channels last."""
    _, image, kernel, _ = KINDS[rank]
    return reference.random_arrays({
        "w_i": (*kernel, INPUTS, 4 * OUTPUTS), "w_h": (*kernel, OUTPUTS, 4 * OUTPUTS), "b": (4 * OUTPUTS,),
        "x": (TIME, BATCH, *image, INPUTS), "h": (BATCH, *image, OUTPUTS), "c": (BATCH, *image, OUTPUTS),
    })  # fmt: skip


def make(rank: int, first: bool, **options: Any) -> Any:
    """Returns a core that has not been called."""
    cls, image, kernel, formats = KINDS[rank]
    shape = (INPUTS, *image) if first else (*image, INPUTS)
    return cls(shape, OUTPUTS, kernel, data_format=formats[first], **options)


def turned(array: Any, first: bool, batch_axis: int = 0) -> jax.Array:
    """Returns a channels-last array as the core takes it."""
    return jnp.moveaxis(jnp.asarray(array), -1, batch_axis + 1) if first else jnp.asarray(array)


def back(array: Any, first: bool, batch_axis: int = 0) -> np.ndarray:
    return np.moveaxis(np.asarray(array, np.float32), batch_axis + 1, -1) if first else np.asarray(array, np.float32)


def given_to(arrays: reference.Arrays, first: bool, dtype: Any = jnp.float32) -> dict[str, jax.Array]:
    cast = {name: jnp.asarray(arrays[name], dtype) for name in ("x", "h", "c")}
    return {name: turned(array, first, int(name == "x")) for name, array in cast.items()}


def built(rank: int, first: bool, arrays: reference.Arrays, dtype: Any = jnp.float32) -> Any:
    """Returns a core with these weights."""
    core = make(rank, first, dtype=dtype, **ZEROS)
    mk.build(core, given_to(arrays, first, dtype)["x"][0], core.initial_state(BATCH))
    for name, variable in (("w_i", core.input_to_hidden), ("w_h", core.hidden_to_hidden), ("b", core.b)):
        variable.assign(jnp.asarray(arrays[name], dtype))
    return core


def expected_of(arrays: reference.Arrays) -> tuple[np.ndarray, reference.State]:
    return reference.unrolled(reference.conv_lstm_step, arrays["x"], (arrays["h"], arrays["c"]), arrays)


@both_formats
@every_rank
def test_steps_are_those_of_the_equations(rank: int, first: bool) -> None:
    arrays = arrays_of(rank)
    core, given = built(rank, first, arrays), given_to(arrays, first)
    outputs, (h, c) = expected_of(arrays)
    ours, state = mk.jit(lambda x, s: mk.dynamic_unroll(core, x, s))(given["x"], mk.LSTMState(given["h"], given["c"]))
    np.testing.assert_allclose(back(ours, first, 1), outputs, rtol=1e-5, atol=2e-6)
    np.testing.assert_allclose(back(state.hidden, first), h, rtol=1e-5, atol=2e-6)
    np.testing.assert_allclose(back(state.cell, first), c, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize(("rank", "first"), [(1, True), (2, False)], ids=str)
def test_gradients_are_those_of_central_differences(rank: int, first: bool) -> None:
    arrays = arrays_of(rank)
    image = KINDS[rank][1]
    factors = reference.random_arrays({"y": (TIME, BATCH, *image, OUTPUTS), "c": (BATCH, *image, OUTPUTS)}, seed=1)

    def expected_loss(arrays: reference.Arrays) -> float:
        outputs, state = expected_of(arrays)
        return float((outputs * factors["y"]).sum() + (state[1] * factors["c"]).sum())

    core = built(rank, first, arrays)
    seen = {name: turned(factor, first, int(name == "y")) for name, factor in factors.items()}

    def loss(given: dict[str, jax.Array]) -> jax.Array:
        outputs, state = mk.static_unroll(core, given["x"], mk.LSTMState(given["h"], given["c"]))
        return (outputs * seen["y"]).sum() + (state.cell * seen["c"]).sum()

    variables = [core.input_to_hidden, core.hidden_to_hidden, core.b]
    ours, for_given = mk.jit(mk.grad(loss, variables, argnums=0))(given_to(arrays, first))
    gradients = dict(zip(("w_i", "w_h", "b"), ours, strict=True))
    gradients |= {name: back(array, first, int(name == "x")) for name, array in for_given.items()}
    wanted = reference.differences(expected_loss, arrays)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(gradient, wanted[name], rtol=2e-5, atol=5e-6, err_msg=name)


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float16, 2e-2), (jnp.bfloat16, 1e-1)], ids=str)
@pytest.mark.parametrize("rank", [1, 3])
def test_half_precision_stays_half_precision_and_near(rank: int, dtype: Any, tolerance: float) -> None:
    arrays = {name: 0.5 * array for name, array in arrays_of(rank).items()}
    core, given = built(rank, False, arrays, dtype), given_to(arrays, False, dtype)
    outputs, state = mk.jit(core)(given["x"][0], mk.LSTMState(given["h"], given["c"]))
    assert {leaf.dtype for leaf in jax.tree.leaves((outputs, state, core.initial_state(1)))} == {jnp.dtype(dtype)}
    assert {variable.dtype for variable in core.variables} == {jnp.dtype(dtype)}
    np.testing.assert_allclose(outputs.astype(jnp.float32), expected_of(arrays)[0][0], atol=tolerance, rtol=tolerance)


@both_formats
@every_rank
def test_first_states_are_zeros_and_first_weights_have_sonnets_names_shapes_and_order(rank: int, first: bool) -> None:
    core, (_, image, kernel, _) = make(rank, first, forget_bias=0.5, **ZEROS), KINDS[rank]
    state = core.initial_state(BATCH)
    shape = (BATCH, OUTPUTS, *image) if first else (BATCH, *image, OUTPUTS)
    assert [part.shape for part in state] == [shape, shape] and not any(part.any() for part in state)
    mk.build(core, turned(np.ones([BATCH, *image, INPUTS], np.float32), first), state)
    assert [(variable.name, variable.shape) for variable in core.variables] == [
        (f"conv{rank}_dlstm/b", (4 * OUTPUTS,)),
        (f"conv{rank}_dlstm/hidden_to_hidden/w", (*kernel, OUTPUTS, 4 * OUTPUTS)),
        (f"conv{rank}_dlstm/input_to_hidden/w", (*kernel, INPUTS, 4 * OUTPUTS)),
    ]
    assert core.b.value.tolist() == [0, 0, 0.5, 0.5, 0, 0, 0, 0]


def test_first_kernels_are_truncated_normal_by_their_fan_in() -> None:
    core = mk.Conv2DLSTM([4, 4, 20], 10, kernel_shape=[3, 5])
    mk.build(core, [1, 4, 4, 20], core.initial_state(1))
    for variable, channels in ((core.input_to_hidden, 20), (core.hidden_to_hidden, 10)):
        w = variable.numpy() * np.sqrt(15 * channels)
        assert 1.9 < np.abs(w).max() <= 2.0 and abs(w.std() - 0.8796) < 0.02


@pytest.mark.parametrize("data_format", [None, "channels_last", "NHWC", "channels_first", "NCHW"])
def test_data_formats_have_sonnets_names(data_format: str | None) -> None:
    first = data_format in ("channels_first", "NCHW")
    core = mk.Conv2DLSTM([5, 3, 2] if first else [3, 2, 5], 4, 2, data_format=data_format, **ZEROS)
    shape = (1, 4, 3, 2) if first else (1, 3, 2, 4)
    x = jnp.ones([1, 5, 3, 2] if first else [1, 3, 2, 5])
    assert mk.build(core, x, core.initial_state(1))[0].shape == shape


def test_under_any_transform_a_first_call_makes_the_same_variables_and_outputs() -> None:
    rank = 2
    x = given_to(arrays_of(rank), False)["x"][0]
    ways = {
        "jit": lambda core: mk.jit(core)(x, core.initial_state(BATCH))[0],
        "vmap": lambda core: mk.vmap(lambda x: core(x, core.initial_state(BATCH))[0])(jnp.stack([0 * x, x]))[1],
        "scan": lambda core: mk.scan(lambda s, x: core(x, s)[::-1], core.initial_state(BATCH), x[None])[1][0],
        "remat": lambda core: mk.remat(core)(x, core.initial_state(BATCH))[0],
        "pickle": lambda core: mk.jit(pickle.loads(pickle.dumps(core)))(x, core.initial_state(BATCH))[0],
    }
    mk.seed(4)
    core = make(rank, False)
    expected = core(x, core.initial_state(BATCH))[0]
    for name, way in ways.items():
        mk.seed(4)
        np.testing.assert_allclose(way(make(rank, False)), expected, rtol=2e-5, atol=2e-6, err_msg=name)


def test_what_does_not_fit_is_refused() -> None:
    x = np.ones([2, 4, 3, 1], np.float32)
    core = mk.Conv2DLSTM([4, 3, 1], 2, 3, **ZEROS)
    state = core.initial_state(2)
    mk.build(core, x, state)
    where = repr(core)
    for inputs, error, message in (
        (x[0], ValueError, f"{where} expects inputs of shape [batch, height, width, input_channels], got float32[4,3,1]: "
         "they must have rank 4"),
        (x.astype(np.float16), TypeError, f"{where}: inputs must have dtype float32, got float16[2,4,3,1]"),
        (np.ones([2, 4, 3, 5], np.float32), ValueError, f"{where} expects inputs with 1 features, got float32[2,4,3,5]"),
        (x[:, 1:], ValueError, f"{where} expects the hidden state of shape [2, 3, 3, 2], got float32[2,4,3,2]"),
    ):  # fmt: skip
        with pytest.raises(error) as raised:
            core(inputs, state)
        assert str(raised.value).startswith(message)
    with pytest.raises(TypeError) as raised:
        mk.Conv2DLSTM([4, 3, 1], 2, [3, 3, 3], **ZEROS)(x, state)
    assert str(raised.value).startswith(
        "kernel_shape must be a scalar or sequence of length 1 or sequence of length 2, got [3, 3, 3]"
    )


def test_constructors_refuse_unknown_formats_and_shapes_of_another_rank() -> None:
    with pytest.raises(ValueError) as raised:
        mk.Conv1DLSTM([4, 1], 2, 3, data_format="WRONG")
    assert str(raised.value) == (
        "Unable to extract channel information from 'WRONG': give a format such as 'NHWC' or 'NCHW', 'channels_last' or "
        "'channels_first'"
    )
    with pytest.raises(ValueError) as raised:
        mk.Conv1DLSTM([4], 2, 3)
    assert str(raised.value) == (
        "input_shape=[4] of Conv1DLSTM has 1 axes: expected 2, those of the inputs without the batch"
    )
    with pytest.raises(ValueError, match=r"^output_channels=0 is below 1$"):
        mk.Conv1DLSTM([4, 1], 0, 3)
