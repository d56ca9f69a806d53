"""Laws that every module of the catalogue obeys: transforms, first calls, copies and failures change no meaning."""

import contextlib
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from catalogue import (
    ROWS,
    TRAINED,
    Row,
    assert_bitwise,
    assert_concrete,
    assert_near,
    name_of,
    state,
    variables_of,
)
from ways import (
    Stop,
    by_fori_loop,
    by_jit,
    by_jit_of_scan,
    by_nested_jit,
    by_one_jit,
    by_pure_jit,
    by_pure_scan,
    by_scan,
    by_scan_of_jit,
    by_scan_of_scan,
    by_unrolled_scan,
    by_while_loop,
    copied,
    eager,
    eager_first_state,
    fail_after_scan_in_jit,
    fail_in_a_debug_callback,
    fail_in_grad_in_jit,
    fail_in_jit,
    fail_in_scan,
    fail_in_value_and_grad,
    fail_in_while_loop,
    fail_while_running,
    first_by_build,
    first_by_fori_loop,
    first_by_jit,
    first_by_jit_around_grad,
    first_by_jit_of_jit_of_scan,
    first_by_lowering,
    first_by_scan,
    first_by_scan_of_grad,
    first_by_value_and_grad,
    gradient,
    gradient_by_fori_loop,
    gradient_by_implicit_variables,
    gradient_by_jax,
    gradient_by_jit,
    gradient_by_jit_of_jit,
    gradient_by_scan,
    gradient_of_jit,
    gradient_of_jit_of_scan,
    gradient_of_scan,
    pickled,
    trained_by_grad_of_jit,
    trained_by_jit,
    trained_by_jit_of_scan,
    trained_by_minimize,
    trained_by_scan,
    trained_eagerly,
    vmapped,
)

import modulekit as mk

HERE = Path(__file__).parent
REPRESENTATIVE = [
    row for row in ROWS if row.name in ("tied_pair", "dropout_in_training", "moving_average", "by_name", "affine")
]
every_row = pytest.mark.parametrize("row", ROWS, ids=name_of)
every_trained_row = pytest.mark.parametrize("row", TRAINED, ids=name_of)


def each(rows: list[Row], some: list[Any], others: list[Any]) -> Any:
    """Parametrizes by (row, way): some ways with every row, and the other ways with a few rows that stand for all."""
    few = [row for row in rows if row in REPRESENTATIVE]
    pairs = [(row, way) for way in some for row in rows] + [(row, way) for way in others for row in few]
    return pytest.mark.parametrize(("row", "way"), pairs, ids=name_of)


ALWAYS = [by_jit, by_jit_of_scan, by_scan_of_jit, by_pure_jit]
NESTED = [
    by_one_jit, by_nested_jit, by_scan, by_unrolled_scan, by_scan_of_scan, by_fori_loop, by_while_loop, by_pure_scan,
]  # fmt: skip


@each(ROWS, ALWAYS, NESTED)
def test_calls_under_any_transform_equal_eager_calls_from_the_first_one(row: Row, way: Any) -> None:
    module = row.fresh()
    expected = eager(row, module)
    expected_state = state(module)
    module = row.fresh()
    outputs = way(row, module)
    assert_near(outputs, expected)
    assert_near(state(module), expected_state)
    assert_concrete(variables_of(module))


@every_row
def test_a_transform_changes_no_integer_state_at_all(row: Row) -> None:
    module = row.fresh()
    eager(row, module)
    integers = {path: value for path, value in state(module).items() if not np.issubdtype(value.dtype, np.floating)}
    for way in (by_jit, by_scan):
        module = row.fresh()
        way(row, module)
        assert_bitwise({path: value for path, value in state(module).items() if path in integers}, integers)


# Training.


@each(TRAINED, [trained_by_jit], [trained_by_scan, trained_by_jit_of_scan, trained_by_grad_of_jit, trained_by_minimize])
def test_training_under_any_transform_equals_eager_training_from_the_first_step(row: Row, way: Any) -> None:
    module, optimizer = row.fresh(), mk.optimizers.Momentum(0.1, 0.9)
    start = eager_first_state(row)
    expected = trained_eagerly(row, module, optimizer)
    expected_state, expected_slots = state(module), state(optimizer)
    assert all(not np.array_equal(expected_state[p], start[p]) for p, v in module.paths().items() if v.trainable)
    module, optimizer = row.fresh(), mk.optimizers.Momentum(0.1, 0.9)
    losses = way(row, module, optimizer)
    assert_near(np.float32(losses), np.float32(expected))
    assert_near(state(module), expected_state)
    assert_near(state(optimizer), expected_slots)


# Gradients, by pairs of transforms.


@each(
    TRAINED,
    [gradient_by_jit, gradient_of_jit, gradient_of_scan],
    [gradient_by_jit_of_jit, gradient_by_scan, gradient_by_fori_loop, gradient_of_jit_of_scan,
     gradient_by_implicit_variables],
)  # fmt: skip
def test_gradients_under_any_pair_of_transforms_are_those_of_jax_grad(row: Row, way: Any) -> None:
    module = row.fresh()
    expected = gradient_by_jax(row, module)
    expected_state = state(module)
    assert any(np.abs(g).max() > 0 for g in expected)
    module = row.fresh()
    gradients = way(row, module)
    assert_near(list(gradients), expected)
    assert_near(state(module), expected_state)


@every_trained_row
def test_the_eager_gradient_is_that_of_jax_grad_bitwise(row: Row) -> None:
    module = row.fresh()
    expected = gradient_by_jax(row, module)
    module = row.fresh()
    for actual, wanted in zip(gradient(row, module), expected, strict=True):
        np.testing.assert_array_equal(actual, wanted, strict=True)


DETERMINISTIC = [row for row in TRAINED if row.name not in ("dropout_in_training", "mlp_with_dropout", "random_stream")]


@pytest.mark.parametrize("row", DETERMINISTIC, ids=name_of)
def test_vmap_of_a_pure_function_equals_separate_calls_and_nests_with_jit_and_grad(row: Row) -> None:
    module = row.fresh()
    mk.build(module, *row.inputs, **row.options)
    before = state(module)
    expected = []
    for inputs in zip(*row.steps(), strict=True):
        expected.append(row.call(module, *inputs))
        for variable, value in zip(module.paths().values(), before.values(), strict=False):
            variable.assign(value)
    assert_near(vmapped(row, module, row.steps()), jnp.stack(expected))
    assert_near(mk.jit(lambda steps: vmapped(row, module, steps))(row.steps()), jnp.stack(expected))
    assert_bitwise(state(module), before)


@pytest.mark.parametrize("row", DETERMINISTIC, ids=name_of)
def test_a_gradient_passes_through_vmap_and_vmap_through_a_gradient(row: Row) -> None:
    module = row.fresh()
    mk.build(module, *row.inputs, **row.options)
    trained = list(module.trainable_variables)
    pure, _ = mk.functionalize(lambda *inputs: row.loss(module, *inputs), variables_of(module))

    def mean_loss(steps: Any) -> Any:
        return jax.vmap(lambda inputs: pure(pure.values(), *inputs)[0])(steps).mean()

    through = mk.grad(mean_loss, trained)(row.steps())
    compiled = mk.jit(mk.grad(mean_loss, trained))(row.steps())
    inner, values = mk.functionalize(
        lambda inputs: mk.grad(lambda: row.loss(module, *inputs), trained)(), variables_of(module)
    )
    each = jax.vmap(lambda inputs: inner(values, inputs)[0])(row.steps())
    assert_near(compiled, through)
    assert_near([g.mean(axis=0) for g in each], through)


# First calls.


# An abandoned scan inside a jit is reported by JAX's leak checker even where plain JAX code abandons it.
UNCHECKED = (first_by_jit_of_jit_of_scan,)


@each(
    ROWS,
    [first_by_jit_around_grad, first_by_build],
    [first_by_value_and_grad, first_by_scan_of_grad, first_by_jit, first_by_scan, first_by_fori_loop,
     first_by_jit_of_jit_of_scan, first_by_lowering],
)  # fmt: skip
def test_a_first_call_inside_any_transform_makes_the_eager_first_weights_bitwise_and_leaks_nothing(
    row: Row, way: Any
) -> None:
    module = row.fresh()
    row.call(module)
    expected = {path: v.numpy() for path, v in module.paths().items() if v.trainable}
    names = {path: v.name for path, v in module.paths().items()}
    module = row.fresh()
    with contextlib.nullcontext() if way in UNCHECKED or row not in REPRESENTATIVE else jax.checking_leaks():
        way(row, module)
    assert {path: v.name for path, v in module.paths().items()} == names
    assert_bitwise({path: v.numpy() for path, v in module.paths().items() if v.trainable}, expected)
    assert_concrete(variables_of(module))


@every_row
def test_building_draws_first_weights_and_writes_nothing_else(row: Row) -> None:
    module = row.fresh()
    mk.build(module, *row.inputs, **row.options)
    built = state(module)
    specification = mk.build(module, *row.inputs, **row.options)
    assert_bitwise(state(module), built)
    output = row.call(module)
    assert (specification.shape, specification.dtype) == (output.shape, output.dtype)


# Copies.


@pytest.mark.parametrize("copies", [copied, pickled], ids=name_of)
@every_row
def test_a_copy_keeps_weights_names_and_sharing_and_draws_nothing_again(row: Row, copies: Any) -> None:
    module = row.fresh()
    row.call(module)
    twin = copies(module)
    assert_bitwise(state(twin), state(module))
    assert [v.name for v in twin.paths().values()] == [v.name for v in module.paths().values()]
    assert [v.trainable for v in twin.paths().values()] == [v.trainable for v in module.paths().values()]
    assert not set(map(id, twin.paths().values())) & set(map(id, module.paths().values()))
    assert repr(twin) == repr(module)
    mk.seed(99)  # a weight drawn again would now be another one
    expected = row.call(module)
    mk.seed(99)
    np.testing.assert_array_equal(row.call(twin), expected)


@pytest.mark.parametrize("copies", [copied, pickled], ids=name_of)
@every_row
def test_a_copy_of_a_module_that_was_never_called_still_makes_its_own_variables(row: Row, copies: Any) -> None:
    module = row.fresh()
    row.call(module)
    expected = state(module)
    module = row.fresh()
    twin = copies(module)
    row.call(twin)
    assert_bitwise(state(twin), expected)
    assert len(module.paths()) <= len(twin.paths())


@pytest.mark.parametrize("copies", [copied, pickled], ids=name_of)
@every_trained_row
def test_training_a_copy_leaves_the_original_alone_and_the_other_way_round(row: Row, copies: Any) -> None:
    module = row.fresh()
    row.call(module)
    twin = copies(module)
    before = {path: v.numpy() for path, v in module.paths().items()}
    trained_by_jit(row, twin, mk.optimizers.SGD(0.1))
    assert_bitwise({path: v.numpy() for path, v in module.paths().items()}, before)
    after = {path: v.numpy() for path, v in twin.paths().items()}
    trained_by_jit(row, module, mk.optimizers.SGD(0.3))
    assert_bitwise({path: v.numpy() for path, v in twin.paths().items()}, after)


def test_pickles_of_every_row_are_the_same_module_in_another_process(tmp_path: Path) -> None:
    expected = {}
    for row in ROWS:
        module = row.fresh()
        row.call(module)
        (tmp_path / f"{row.name}.pickle").write_bytes(pickle.dumps(module))
        values = {path: v.numpy() for path, v in module.paths().items()}
        names = [v.name for v in module.paths().values()]
        mk.seed(5)
        expected[row.name] = (values, names, np.asarray(row.call(module)))
    environment = {"PYTHONPATH": f"{HERE}:{HERE.parent}", "JAX_PLATFORMS": "cpu", "PATH": ""}
    script = HERE / "subprocesses" / "unpickle_rows.py"
    result = subprocess.run(
        [sys.executable, str(script), str(tmp_path), "catalogue"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    for row in ROWS:
        values, names, output = pickle.loads((tmp_path / f"{row.name}.result").read_bytes())
        assert_bitwise(values, expected[row.name][0])
        assert names == expected[row.name][1]
        np.testing.assert_array_equal(output, expected[row.name][2])


# Failures.


@each(
    ROWS,
    [fail_in_grad_in_jit, fail_while_running],
    [fail_in_jit, fail_in_scan, fail_after_scan_in_jit, fail_in_while_loop, fail_in_value_and_grad,
     fail_in_a_debug_callback],
)  # fmt: skip
def test_after_an_exception_every_variable_is_bitwise_as_before_and_usable(row: Row, way: Any) -> None:
    module = row.fresh()
    row.call(module)
    before = state(module)
    with pytest.raises((Stop, RuntimeError)) as raised:
        way(row, module)
    assert raised.type is Stop or "Stop" in str(raised.value)
    assert_bitwise(state(module), before)
    assert_concrete(variables_of(module))
    mk.jit(lambda: row.call(module))()


@every_row
def test_a_first_call_that_fails_can_be_made_again_with_the_same_first_weights(row: Row) -> None:
    module = row.fresh()
    row.call(module)
    expected = {path: v.numpy() for path, v in module.paths().items() if v.trainable}
    module = row.fresh()
    with pytest.raises(Stop):
        fail_in_grad_in_jit(row, module)
    row.call(module)
    assert_bitwise({path: v.numpy() for path, v in module.paths().items() if v.trainable}, expected)


@every_trained_row
def test_a_wrong_shape_inside_a_compiled_step_changes_nothing(row: Row) -> None:
    module, optimizer = row.fresh(), mk.optimizers.Adam(0.1)
    update = mk.jit(lambda *inputs: optimizer.minimize(lambda: row.loss(module, *inputs), module))
    update(*row.inputs)
    before, slots = state(module), state(optimizer)
    with pytest.raises((ValueError, TypeError)):
        update(*(np.ones([4, 9], np.float32) for _ in row.inputs))
    assert_bitwise(state(module), before)
    assert_bitwise(state(optimizer), slots)
    assert np.isfinite(update(*row.inputs))


# Sharing and donation, over the whole catalogue.


@every_trained_row
def test_each_variable_is_collected_once_and_has_one_gradient_and_one_slot(row: Row) -> None:
    module, optimizer = row.fresh(), mk.optimizers.Momentum(0.1, 0.9)
    mk.jit(lambda: optimizer.minimize(lambda: row.loss(module), module))()
    trained = module.trainable_variables
    assert len(set(trained)) == len(trained) == len(mk.grad(lambda: row.loss(module), module)())
    assert len(set(module.variables)) == len(module.variables) == len(module.paths())
    assert [slot.shape for slot in optimizer.accumulated_momentum] == [v.shape for v in trained]


@every_row
def test_arrays_handed_out_before_a_compiled_call_stay_valid_and_unchanged(row: Row) -> None:
    module = row.fresh()
    compiled = mk.jit(lambda: row.call(module))
    compiled()
    for _ in range(3):
        handed = {path: v.value for path, v in module.paths().items()}
        views = {path: np.asarray(array) for path, array in handed.items()}
        copies = {path: view.copy() for path, view in views.items()}
        compiled()
        assert not any(array.is_deleted() for array in handed.values())
        assert_bitwise(views, copies)
        assert_bitwise({path: np.asarray(array) for path, array in handed.items()}, copies)
