"""Laws that every layer and network obeys: under transforms, in copies, in each dtype, after a failure.

The laws of `laws_test.py` go through every way to run a module; here every module goes through the ways that stand for them.
"""

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import attention_rows
import convolution_rows
import distribute_rows
import jax
import jax.numpy as jnp
import network_rows
import normalization_rows
import numpy as np
import pytest
import recurrent_rows
import structure_rows
from catalogue import ROWS as CATALOGUE
from catalogue import Row, assert_bitwise, assert_concrete, assert_near, name_of, state, variables_of
from metric_rows import METRICS
from ways import (
    Stop,
    by_jit_of_scan,
    copied,
    eager,
    fail_in_grad_in_jit,
    gradient_by_jax,
    gradient_by_jit,
    gradient_of_jit_of_scan,
    pickled,
)

import modulekit as mk

HERE = Path(__file__).parent
TABLES = (
    attention_rows, convolution_rows, distribute_rows, network_rows, normalization_rows, recurrent_rows, structure_rows,
)  # fmt: skip
ROWS: list[Row] = [row for table in TABLES for row in table.ROWS]
TRAINED = [row for row in ROWS if row.has_weights]
# What draws at random draws other numbers in each lane. A batch norm in a lane sees the lane's own examples.
RANDOM = ("recurrent_dropout", "transformer_with_dropout_and_remat")


def together(rows: list[Row]) -> list[Any]:
    """Returns rows as parameters of tests, where those of one row run in one process, which then knows its operations."""
    return [pytest.param(row, marks=pytest.mark.xdist_group(row.name)) for row in rows]


every_row = pytest.mark.parametrize("row", together(ROWS), ids=name_of)
every_trained_row = pytest.mark.parametrize("row", together(TRAINED), ids=name_of)


def test_each_row_has_a_name_of_its_own() -> None:
    names = [row.name for row in (*CATALOGUE, *ROWS)]
    assert len(set(names)) == len(names)


# Classes that are there to be derived from, or that are a row's class with other settings. The laws of metrics over examples
# are in metrics_laws_test.
WITHOUT_A_ROW = {
    "Module", "Metric", "ExampleMetric", "PerExample", "Collection", "Optimizer", "RNNCore", "UnrolledRNN",
    "ResNet50", "WeightAverage", *(type(row.make()).__name__ for row in METRICS if row.name != "mean"),
}  # fmt: skip


def test_every_public_module_class_has_a_row() -> None:
    tried = set()
    for row in (*CATALOGUE, *ROWS):
        module = row.fresh()
        tried |= {type(part).__name__ for part in (module, *module.submodules)}
    namespaces = (mk, mk.nets, mk.nets.resnet, mk.metrics, mk.distribute)
    public = {
        name
        for namespace in namespaces
        for name, value in vars(namespace).items()
        if isinstance(value, type) and issubclass(value, mk.Module) and not name.startswith("_")
    }
    assert public - tried == WITHOUT_A_ROW


@every_row
def test_calls_in_a_compiled_scan_equal_eager_calls_from_the_first_one(row: Row) -> None:
    module = row.fresh()
    expected = eager(row, module)
    expected_state = state(module)
    module = row.fresh()
    assert_near(by_jit_of_scan(row, module), expected)
    assert_near(state(module), expected_state)
    assert_concrete(variables_of(module))


@every_trained_row
def test_gradients_through_pairs_of_transforms_are_those_of_jax_grad_from_the_first_call(row: Row) -> None:
    module = row.fresh()
    expected = gradient_by_jax(row, module, compiled=True)
    weights = trained_values(module)
    assert any(np.abs(g).max() > 0 for g in expected)
    for way in (gradient_by_jit, gradient_of_jit_of_scan):
        module = row.fresh()
        close_to(list(way(row, module)), expected, 1e-4)
        assert_bitwise(trained_values(module), weights)


@pytest.mark.parametrize("row", together([row for row in ROWS if row.name not in RANDOM]), ids=name_of)
def test_vmap_and_remat_give_what_separate_calls_give(row: Row) -> None:
    module = row.fresh()
    mk.build(module, *row.inputs, **row.options)
    before = state(module)
    expected = []
    for inputs in zip(*row.steps(2), strict=True):
        expected.append(row.call(module, *inputs))
        for variable, value in zip(variables_of(module), before.values(), strict=True):
            variable.assign(value)
    written = {path for path, value in state(module).items() if not np.array_equal(value, before[path])}
    assert not written
    pure, values = mk.functionalize(lambda *inputs: row.call(module, *inputs), variables_of(module))
    lanes = mk.jit(lambda steps: jax.vmap(lambda inputs: pure(values, *inputs)[0])(steps))(row.steps(2))
    close_to(lanes, jnp.stack(expected), 1e-4)
    close_to(mk.remat(lambda *inputs: row.call(module, *inputs))(*row.inputs), expected[0], 1e-4)


@every_row
def test_a_build_makes_the_eager_first_weights_bitwise_and_tells_the_output(row: Row) -> None:
    module = row.fresh()
    output = row.call(module)
    expected = trained_values(module)
    names = {path: v.name for path, v in module.paths().items()}
    module = row.fresh()
    specification = mk.build(module, *row.inputs, **row.options)
    assert (specification.shape, specification.dtype) == (output.shape, output.dtype)
    assert_bitwise(trained_values(module), expected)
    assert {path: v.name for path, v in module.paths().items()} == names


@every_row
def test_a_copy_keeps_weights_names_and_sharing_and_computes_the_same(row: Row) -> None:
    module = row.fresh()
    row.call(module)
    for copies in (copied, pickled):
        twin = copies(module)
        assert_bitwise(state(twin), state(module))
        assert {path: (v.name, v.trainable) for path, v in twin.paths().items()} == {
            path: (v.name, v.trainable) for path, v in module.paths().items()
        }
        assert not set(map(id, twin.paths().values())) & set(map(id, module.paths().values()))
        mk.seed(99)
        expected = row.call(module)
        mk.seed(99)
        np.testing.assert_array_equal(row.call(twin), expected)


def test_pickles_of_every_layer_are_the_same_module_in_another_process(tmp_path: Path) -> None:
    expected = {}
    for row in ROWS:
        module = row.fresh()
        row.call(module)
        (tmp_path / f"{row.name}.pickle").write_bytes(pickle.dumps(module))
        values, names = (
            {path: v.numpy() for path, v in module.paths().items()},
            [v.name for v in module.paths().values()],
        )
        mk.seed(5)
        expected[row.name] = (values, names, np.asarray(row.call(module)))
    environment = {"PYTHONPATH": f"{HERE}:{HERE.parent}", "JAX_PLATFORMS": "cpu", "PATH": ""}
    script = HERE / "subprocesses" / "unpickle_rows.py"
    tables = [table.__name__ for table in TABLES]
    result = subprocess.run(
        [sys.executable, str(script), str(tmp_path), *tables],
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


@every_row
def test_after_a_failure_every_variable_is_as_before_and_usable(row: Row) -> None:
    module = row.fresh()
    row.call(module)
    before = state(module)
    with pytest.raises(Stop):
        fail_in_grad_in_jit(row, module)
    assert_bitwise(state(module), before)
    assert np.isfinite(row.call(module)).all()


# The dtype of a recurrent core, a codebook or a table is an argument of its constructor, and lengths are float32: their own
# tests have this law.
OTHERS = ("vector_quantizer", "vector_quantizer_ema", "encoder_decoder", "weight_norm")
BY_INPUT = [row for row in ROWS if row not in recurrent_rows.ROWS and row.name not in OTHERS]


HALVES = {"bfloat16": 0.06, "float16": 0.01}


@pytest.mark.parametrize("row", together(BY_INPUT), ids=name_of)
def test_in_half_precision_weights_and_outputs_are_of_that_dtype_and_near_the_float32_ones(row: Row) -> None:
    module = row.fresh()
    mk.build(module, *row.inputs, **row.options)
    values = {path: v.numpy() for path, v in module.paths().items()}
    mk.seed(0)
    expected = mk.jit(lambda: row.call(module))()
    for dtype, tolerance in HALVES.items():
        inputs = tuple(jnp.asarray(x, dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x for x in row.inputs)
        takes_floats = any(a is not b for a, b in zip(inputs, row.inputs, strict=True))
        half = row.fresh()
        mk.build(half, *inputs, **row.options)
        for path, variable in half.paths().items():
            if jnp.issubdtype(variable.dtype, jnp.floating):
                variable.assign(values[path].astype(variable.dtype))
                assert not takes_floats or not variable.trainable or variable.dtype == jnp.dtype(dtype), path
        mk.seed(0)
        output = mk.jit(lambda half=half, inputs=inputs: row.call(half, *inputs))()
        assert not takes_floats or output.dtype == jnp.dtype(dtype)
        close_to(output, expected, tolerance)


def trained_values(module: Any) -> dict[str, np.ndarray]:
    """Returns the values of the trainable variables by path."""
    return {path: v.numpy() for path, v in module.paths().items() if v.trainable}


def close_to(actual: Any, expected: Any, tolerance: float) -> None:
    """Asserts that two structures of arrays differ by at most `tolerance`, relative to the largest number in each array."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(1.0, float(np.abs(b).max(initial=0))))
