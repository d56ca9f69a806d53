"""Laws that every module of the catalogue obeys: transforms, first calls, copies and failures change no meaning."""

import contextlib
import copy
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
    STEPS,
    TRAINED,
    Row,
    assert_bitwise,
    assert_concrete,
    assert_near,
    name_of,
    state,
    variables_of,
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


# Ways to call a module several times. Each returns the stacked outputs, or the last one where a loop keeps no others.


def eager(row: Row, module: Any) -> Any:
    return jnp.stack([row.call(module, *inputs) for inputs in zip(*row.steps(), strict=True)])


def by_jit(row: Row, module: Any) -> Any:
    compiled = mk.jit(lambda *inputs: row.call(module, *inputs))
    return jnp.stack([compiled(*inputs) for inputs in zip(*row.steps(), strict=True)])


def by_one_jit(row: Row, module: Any) -> Any:
    return mk.jit(lambda: eager(row, module))()


def by_nested_jit(row: Row, module: Any) -> Any:
    inner = mk.jit(lambda inputs: row.call(module, *inputs))
    outer = mk.jit(lambda *inputs: inner(inputs))
    return jnp.stack([outer(*inputs) for inputs in zip(*row.steps(), strict=True)])


def by_scan(row: Row, module: Any) -> Any:
    return mk.scan(lambda carry, inputs: (carry, row.call(module, *inputs)), None, row.steps())[1]


def by_unrolled_scan(row: Row, module: Any) -> Any:
    return mk.scan(lambda carry, inputs: (carry, row.call(module, *inputs)), None, row.steps(), unroll=2)[1]


def by_jit_of_scan(row: Row, module: Any) -> Any:
    return mk.jit(lambda steps: mk.scan(lambda _, inputs: (None, row.call(module, *inputs)), None, steps)[1])(
        row.steps()
    )


def by_scan_of_jit(row: Row, module: Any) -> Any:
    compiled = mk.jit(lambda inputs: row.call(module, *inputs))
    return mk.scan(lambda _, inputs: (None, compiled(inputs)), None, row.steps())[1]


def by_scan_of_scan(row: Row, module: Any) -> Any:
    def outer(_: Any, steps: Any) -> tuple[Any, Any]:
        return mk.scan(lambda _, inputs: (None, row.call(module, *inputs)), None, steps)

    outputs = mk.scan(outer, None, jax.tree.map(lambda x: x[:, None], row.steps()))[1]
    return outputs[:, 0]


def by_fori_loop(row: Row, module: Any) -> Any:
    steps = jax.tree.map(jnp.asarray, row.steps())
    shape = jax.ShapeDtypeStruct(*_output_spec(row))

    def body(i: Any, outputs: Any) -> Any:
        return outputs.at[i].set(row.call(module, *(x[i] for x in steps)))

    return mk.fori_loop(0, STEPS, body, jnp.zeros((STEPS, *shape.shape), shape.dtype))


def by_while_loop(row: Row, module: Any) -> Any:
    steps = jax.tree.map(jnp.asarray, row.steps())
    shape = jax.ShapeDtypeStruct(*_output_spec(row))

    def body(loop: Any) -> Any:
        i, outputs = loop
        return i + 1, outputs.at[i].set(row.call(module, *(x[i] for x in steps)))

    start = (0, jnp.zeros((STEPS, *shape.shape), shape.dtype))
    return mk.jit(lambda: mk.while_loop(lambda loop: loop[0] < STEPS, body, start)[1])()


def by_pure_jit(row: Row, module: Any) -> Any:
    mk.build(module, *row.inputs, **row.options)
    pure, values = mk.functionalize(lambda inputs: row.call(module, *inputs), variables_of(module))
    compiled, outputs = jax.jit(pure), []
    for inputs in zip(*row.steps(), strict=True):
        output, values = compiled(values, inputs)
        outputs.append(output)
    pure.commit(values)
    return jnp.stack(outputs)


def by_pure_scan(row: Row, module: Any) -> Any:
    mk.build(module, *row.inputs, **row.options)
    pure, values = mk.functionalize(lambda inputs: row.call(module, *inputs), variables_of(module))

    def step(values: Any, inputs: Any) -> tuple[Any, Any]:
        output, values = pure(values, inputs)
        return values, output

    values, outputs = jax.lax.scan(step, values, row.steps())
    pure.commit(values)
    return outputs


def _output_spec(row: Row) -> tuple[tuple[int, ...], Any]:
    output = row.call(row.make(), *row.inputs)
    mk.seed(7)
    return output.shape, output.dtype


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


def trained_eagerly(row: Row, module: Any, optimizer: mk.Optimizer) -> list[float]:
    return [float(_update(row, module, optimizer, inputs)) for inputs in zip(*row.steps(), strict=True)]


def trained_by_jit(row: Row, module: Any, optimizer: mk.Optimizer) -> list[float]:
    update = mk.jit(lambda inputs: _update(row, module, optimizer, inputs))
    return [float(update(inputs)) for inputs in zip(*row.steps(), strict=True)]


def trained_by_scan(row: Row, module: Any, optimizer: mk.Optimizer) -> list[float]:
    return mk.scan(lambda _, inputs: (None, _update(row, module, optimizer, inputs)), None, row.steps())[1].tolist()


def trained_by_jit_of_scan(row: Row, module: Any, optimizer: mk.Optimizer) -> list[float]:
    def run(steps: Any) -> Any:
        return mk.scan(lambda _, inputs: (None, _update(row, module, optimizer, inputs)), None, steps)[1]

    return mk.jit(run)(row.steps()).tolist()


def trained_by_grad_of_jit(row: Row, module: Any, optimizer: mk.Optimizer) -> list[float]:
    loss_of = mk.jit(lambda inputs: row.loss(module, *inputs))
    losses = []
    for inputs in zip(*row.steps(), strict=True):
        loss, gradients = mk.value_and_grad(loss_of, module)(inputs)
        optimizer.apply(gradients, module.trainable_variables)
        losses.append(float(loss))
    return losses


def trained_by_minimize(row: Row, module: Any, optimizer: mk.Optimizer) -> list[float]:
    update = mk.jit(lambda *inputs: optimizer.minimize(lambda: row.loss(module, *inputs), module))
    return [float(update(*inputs)) for inputs in zip(*row.steps(), strict=True)]


def _update(row: Row, module: Any, optimizer: mk.Optimizer, inputs: Any) -> Any:
    loss, gradients = mk.value_and_grad(lambda: row.loss(module, *inputs), module)()
    optimizer.apply(gradients, module.trainable_variables)
    return loss


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


def eager_first_state(row: Row) -> dict[str, np.ndarray]:
    module = row.fresh()
    mk.build(module, *row.inputs, **row.options)
    first = state(module)
    row.fresh()
    return first


# Gradients, by pairs of transforms.


def gradient(row: Row, module: Any) -> list[Any]:
    return mk.grad(lambda: row.loss(module), module)()


def gradient_by_jit(row: Row, module: Any) -> list[Any]:
    return mk.jit(lambda inputs: mk.grad(lambda: row.loss(module, *inputs), module)())(row.inputs)


def gradient_of_jit(row: Row, module: Any) -> list[Any]:
    return mk.grad(mk.jit(lambda *inputs: row.loss(module, *inputs)), module)(*row.inputs)


def gradient_by_jit_of_jit(row: Row, module: Any) -> list[Any]:
    inner = mk.jit(lambda *inputs: row.loss(module, *inputs))
    return mk.jit(lambda inputs: mk.grad(inner, module)(*inputs))(row.inputs)


def gradient_by_scan(row: Row, module: Any) -> list[Any]:
    stacked = jax.tree.map(lambda x: x[None], row.inputs)
    found = mk.scan(lambda _, inputs: (None, mk.grad(row.loss, module)(module, *inputs)), None, stacked)[1]
    return [gradients[0] for gradients in found]


def gradient_of_scan(row: Row, module: Any) -> list[Any]:
    stacked = jax.tree.map(lambda x: x[None], row.inputs)

    def loss() -> Any:
        return mk.scan(lambda total, inputs: (total + row.loss(module, *inputs), None), 0.0, stacked)[0]

    return mk.grad(loss, module)()


def gradient_by_fori_loop(row: Row, module: Any) -> list[Any]:
    mk.build(module, *row.inputs, **row.options)
    zeros = [jnp.zeros(v.shape, v.dtype) for v in module.trainable_variables]
    return mk.fori_loop(0, 1, lambda _, __: mk.grad(lambda: row.loss(module), module)(), zeros)


def gradient_of_jit_of_scan(row: Row, module: Any) -> list[Any]:
    stacked = jax.tree.map(lambda x: x[None], row.inputs)
    inner = mk.jit(lambda xs: mk.scan(lambda t, inputs: (t + row.loss(module, *inputs), None), 0.0, xs)[0])
    return mk.grad(inner, module)(stacked)


def gradient_by_jax(row: Row, module: Any) -> list[Any]:
    mk.build(module, *row.inputs, **row.options)
    trained = list(module.trainable_variables)
    others = [v for v in variables_of(module) if v not in trained]
    pure, values = mk.functionalize(lambda: row.loss(module), [*trained, *others])
    split = len(trained)
    gradients, new = jax.grad(lambda ws: pure([*ws, *values[split:]]), has_aux=True)(values[:split])
    pure.commit(new)
    return gradients


def gradient_by_implicit_variables(row: Row, module: Any) -> list[Any]:
    pairs = dict(_implicit_pairs(row, module))
    return [pairs[v] for v in module.trainable_variables]


def _implicit_pairs(row: Row, module: Any) -> list[tuple[mk.Variable, Any]]:
    return [(v, g) for g, v in mk.implicit_value_and_gradients(lambda: row.loss(module))()[1]]


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


def vmapped(row: Row, module: Any, steps: Any) -> Any:
    pure, values = mk.functionalize(lambda *inputs: row.call(module, *inputs), variables_of(module))
    return jax.vmap(lambda inputs: pure(values, *inputs)[0])(steps)


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


def first_by_value_and_grad(row: Row, module: Any) -> None:
    mk.value_and_grad(lambda: jnp.sum(row.call(module)), module)()


def first_by_jit_around_grad(row: Row, module: Any) -> None:
    mk.jit(lambda: mk.grad(lambda: jnp.sum(row.call(module)), module)())()


def first_by_scan_of_grad(row: Row, module: Any) -> None:
    mk.scan(lambda _, __: (None, mk.grad(lambda: jnp.sum(row.call(module)), module)()), None, length=1)


def first_by_jit(row: Row, module: Any) -> None:
    mk.jit(lambda *inputs: row.call(module, *inputs))(*row.inputs)


def first_by_scan(row: Row, module: Any) -> None:
    mk.scan(lambda _, inputs: (None, row.call(module, *inputs)), None, jax.tree.map(lambda x: x[None], row.inputs))


def first_by_fori_loop(row: Row, module: Any) -> None:
    mk.fori_loop(0, 1, lambda _, total: total + jnp.sum(row.call(module)), 0.0)


def first_by_jit_of_jit_of_scan(row: Row, module: Any) -> None:
    inner = mk.jit(lambda: mk.scan(lambda _, __: (None, row.call(module)), None, length=1)[1])
    mk.jit(lambda: inner() * 2)()


def first_by_build(row: Row, module: Any) -> None:
    mk.build(module, *row.inputs, **row.options)


def first_by_lowering(row: Row, module: Any) -> None:
    mk.jit(lambda *inputs: row.call(module, *inputs)).lower(*row.inputs)


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


def copied(module: Any) -> Any:
    return copy.deepcopy(module)


def pickled(module: Any) -> Any:
    return pickle.loads(pickle.dumps(module))


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
        [sys.executable, str(script), str(tmp_path)], env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    for row in ROWS:
        values, names, output = pickle.loads((tmp_path / f"{row.name}.result").read_bytes())
        assert_bitwise(values, expected[row.name][0])
        assert names == expected[row.name][1]
        np.testing.assert_array_equal(output, expected[row.name][2])


# Failures.


class Stop(Exception):
    """What the failing functions below raise."""


def fail_in_jit(row: Row, module: Any) -> None:
    def run() -> None:
        row.call(module)
        raise Stop

    mk.jit(run)()


def fail_in_grad_in_jit(row: Row, module: Any) -> None:
    def loss() -> Any:
        row.call(module)
        raise Stop

    mk.jit(lambda: mk.grad(loss, module)())()


def fail_in_scan(row: Row, module: Any) -> None:
    def step(carry: Any, _: Any) -> Any:
        row.call(module)
        raise Stop

    mk.scan(step, None, length=2)


def fail_after_scan_in_jit(row: Row, module: Any) -> None:
    def run() -> None:
        mk.scan(lambda carry, _: (carry, row.call(module)), None, length=2)
        raise Stop

    mk.jit(run)()


def fail_in_while_loop(row: Row, module: Any) -> None:
    def body(i: Any) -> Any:
        row.call(module)
        raise Stop

    mk.while_loop(lambda i: i < 3, body, 0)


def fail_in_value_and_grad(row: Row, module: Any) -> None:
    def loss() -> Any:
        row.call(module)
        raise Stop

    mk.value_and_grad(loss, module)()


def fail_while_running(row: Row, module: Any) -> None:
    def shout(_: Any) -> Any:
        raise Stop

    def run() -> Any:
        output = row.call(module)
        return jax.pure_callback(shout, jax.ShapeDtypeStruct((), jnp.float32), output.sum())

    jax.block_until_ready(mk.jit(run)())


def fail_in_a_debug_callback(row: Row, module: Any) -> None:
    def shout(_: Any) -> None:
        raise Stop

    def run() -> Any:
        output = row.call(module)
        jax.debug.callback(shout, output.sum())
        return output

    jax.block_until_ready(mk.jit(run)())
    jax.effects_barrier()


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
