"""Laws of plans for weights: every array is accounted for, and a plan changes everything that it says, or nothing."""

import logging
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from weights_test import bits, holding, network, refused

import modulekit as mk
from modulekit.errors import CheckpointError


def arrays_of(module: Any) -> dict[str, Any]:
    return {path: variable.numpy() + 1 for path, variable in module.paths().items()}


# What is printed.


def test_a_plan_prints_what_becomes_of_every_array() -> None:
    encode = mk.Linear(2, name="encode")
    model = mk.Module()
    model.encode, model.again = encode, encode
    model.small, model.lone = mk.Variable(jnp.zeros([2], jnp.float16)), mk.Variable(0.0)
    mk.build(encode, [2, 3])
    arrays = {
        "encode.w": np.array([[np.nan, 1], [1, 1], [1, np.inf]], np.float32), "encode.b": np.zeros([3], np.float32),
        "again.b": np.ones([2], np.float32), "small": np.ones([2], np.float32), "other/x": np.ones([4], np.int8),
    }  # fmt: skip
    plan = mk.weights.plan(arrays, model)
    assert (
        str(plan)
        == """\
| Variable | Checkpoint | Spec     | Result                                                                      |
|----------+------------+----------+-----------------------------------------------------------------------------|
| again.w  | encode.w   | f32[3,2] | matched, 2 values not finite                                                |
| small    | small      | f16[2]   | dtype float32 in the checkpoint                                             |
| again.b  | encode.b   | f32[2]   | tie conflict: one variable here, and encode.b and again.b in the checkpoint |
| lone     |            | f32[]    | missing                                                                     |
|          | other/x    | i8[4]    | unexpected                                                                  |
1 matched, 2 wrong, 1 missing, 1 unexpected"""
    )


def test_a_plan_in_which_nothing_fits_says_what_the_names_are() -> None:
    plan = mk.weights.plan({"net.0.weight": np.ones([5, 4], np.float32)}, network())
    hint = (
        "Nothing fits: the checkpoint has names such as 'net.0.weight', the module paths such as 'layers[0].b'. Give "
        "`rename`, or the module that was saved."
    )
    assert str(plan).endswith(f"0 matched, 0 wrong, 4 missing, 1 unexpected\n{hint}")
    assert hint in refused(CheckpointError, plan.apply)
    assert str(mk.weights.plan({}, network())).endswith("\nThe checkpoint is empty.")


# All or nothing.

PROBLEMS = {
    "a shape": ({"layers[1].w": np.zeros([4, 2], np.float32)}, "shape [4, 2] in the checkpoint"),
    "a rank": ({"layers[1].b": np.zeros([3, 1], np.float32)}, "shape [3, 1] in the checkpoint"),
    "a dtype": ({"layers[1].w": np.zeros([4, 3], np.float64)}, "dtype float64 in the checkpoint"),
    "integers": ({"layers[1].w": np.zeros([4, 3], np.int32)}, "dtype int32 in the checkpoint"),
    "booleans": ({"layers[1].w": np.zeros([4, 3], bool)}, "dtype bool in the checkpoint"),
    "complex": ({"layers[1].w": np.zeros([4, 3], np.complex64)}, "dtype complex64 in the checkpoint"),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_one_array_that_does_not_fit_leaves_all_as_it_was(name: str) -> None:
    (wrong, result), model = PROBLEMS[name], network()
    before, plan = bits(model), mk.weights.plan(arrays_of(model) | wrong, model)
    assert [line.result for line in plan.wrong] == [result]
    for convert in (False, name != "a dtype"):
        message = refused(CheckpointError, lambda: plan.apply(allow_missing=True, convert=convert))  # noqa: B023
        assert message.startswith(
            "the checkpoint does not fit: 3 matched, 1 wrong, 0 missing, 0 unexpected. Nothing has changed.\n"
        )
        assert result in message
        assert ("apply(convert=True) rounds to the variable's dtype." in message) == (name == "a dtype")
        assert bits(model) == before


def test_what_is_missing_keeps_its_value_only_if_allowed() -> None:
    model = network()
    before, arrays = bits(model), arrays_of(model)
    del arrays["layers[0].w"]
    plan = mk.weights.plan(arrays, model)
    assert "apply(allow_missing=True) lets what is missing keep its value." in refused(CheckpointError, plan.apply)
    assert bits(model) == before
    plan.apply(allow_missing=True)
    assert {path for path in before if bits(model)[path] != before[path]} == set(arrays)


def test_a_tensor_that_cannot_be_read_leaves_all_as_it_was(tmp_path: Path) -> None:
    model = network()
    mk.weights.save(tmp_path / "x", model)
    before, plan = bits(model), mk.weights.plan(tmp_path / "x", model)
    (tmp_path / "x").write_bytes(b"")
    assert "has changed since it was opened" in refused(CheckpointError, plan.apply)
    assert bits(model) == before


def test_load_is_a_plan_that_is_applied_and_logs_what_it_leaves(caplog: pytest.LogCaptureFixture) -> None:
    model = network()
    arrays = arrays_of(model)
    with caplog.at_level(logging.WARNING, "modulekit"):
        mk.weights.load(arrays, model)
        assert not caplog.records
        plan = mk.weights.load(arrays | {"extra": np.ones([2])}, model)
    assert repr(plan) == "Plan(4 matched, 0 wrong, 0 missing, 1 unexpected)"
    assert "arrays that no variable takes were left aside:\n" in caplog.text and "extra" in caplog.text
    for path, variable in model.paths().items():
        np.testing.assert_array_equal(variable.numpy(), arrays[path])
    before = bits(model)
    refused(CheckpointError, lambda: mk.weights.load({"layers[0].w": np.ones([2])}, model, allow_missing=True))
    assert bits(model) == before


# Values.


def test_values_that_are_not_finite_are_noted_and_taken() -> None:
    module = holding(x=jnp.zeros(3), n=0)
    plan = mk.weights.plan({"x": np.array([np.nan, 1, -np.inf], np.float32), "n": np.int32(3)}, module)
    assert {line.path: line.note for line in plan.matched} == {"n": "", "x": "2 values not finite"}
    plan.apply()
    np.testing.assert_array_equal(module.x.numpy(), [np.nan, 1, -np.inf])


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, np.float64])
def test_floats_are_rounded_on_request_only(dtype: Any) -> None:
    module, given = holding(x=jnp.zeros(3)), np.array([1.5, np.nan, -2.0]).astype(dtype)
    plan = mk.weights.plan({"x": given}, module)
    before = bits(module)
    refused(CheckpointError, plan.apply)
    assert bits(module) == before
    plan.apply(convert=True)
    assert module.x.dtype == jnp.float32
    np.testing.assert_array_equal(module.x.numpy(), given.astype(np.float32))


def test_floats_that_overflow_are_refused_even_then() -> None:
    module = holding(a=jnp.zeros(1), x=jnp.zeros([2], jnp.float16))
    before = bits(module)
    plan = mk.weights.plan({"a": np.ones(1, np.float32), "x": np.array([1, 1e6], np.float32)}, module)
    assert refused(CheckpointError, lambda: plan.apply(convert=True)) == (
        "x is float16, and SavedArray('x', f32[2]) has 1 values of 2 that are too large for it: make the variable of a "
        "wider dtype. Nothing has changed"
    )
    assert bits(module) == before


@hypothesis.given(numbers=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=3))
@hypothesis.settings(max_examples=50, deadline=None, derandomize=True)
def test_integers_fit_exactly_or_are_refused(numbers: list[int]) -> None:
    module = holding(a=0.0, x=jnp.zeros([len(numbers)], jnp.int32))
    before, plan = bits(module), mk.weights.plan({"a": np.float32(1), "x": np.array(numbers)}, module)
    if all(-(2**31) <= number < 2**31 for number in numbers):
        plan.apply()
        assert module.x.numpy().tolist() == numbers
    else:
        assert "which do not fit" in refused(CheckpointError, plan.apply)
        assert bits(module) == before


def test_an_array_that_changes_after_loading_changes_no_variable() -> None:
    module, given = holding(x=jnp.zeros([64])), np.ones([64], np.float32)
    mk.weights.load({"x": given}, module)
    given[:] = 5
    assert module.x.numpy().tolist() == [1.0] * 64


def test_frozen_variables_take_their_values_wherever_loading_is_asked_for() -> None:
    class Loading(mk.Module):
        def __init__(self) -> None:
            super().__init__()
            self.x = mk.Variable(0.0)

        def load(self, value: float) -> None:
            mk.weights.load({"x": np.float32(value)}, self)

    module = Loading()
    module.freeze()
    mk.weights.load({"x": np.float32(2)}, module)
    assert float(module.x) == 2 and module.x.frozen
    module.load(3)
    assert float(module.x) == 3


def test_a_variable_stays_on_the_device_on_which_it_was_put() -> None:
    module = holding(x=jax.device_put(jnp.zeros(3), jax.devices()[0]), y=jnp.zeros(3))
    placed = {name: getattr(module, name).current().committed for name in "xy"}
    mk.weights.load({"x": np.ones(3, np.float32), "y": np.ones(3, np.float32)}, module)
    assert {name: getattr(module, name).current().committed for name in "xy"} == placed
    assert placed["x"] and not placed["y"]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            {"x": jax.random.key(0)},
            "'x' holds random keys: give jax.random.key_data(key), which is what variables hold",
        ),
        ({"x": {"y": 1}}, "'x' is no array of numbers, but dict: give arrays by name, not nested"),
        ({"x": "text"}, "'x' is no array of numbers, but str: give arrays by name, not nested"),
        (3, "int is neither a path nor arrays by name: 3"),
    ],
    ids=["keys", "nested", "text", "number"],
)
def test_what_is_no_array_is_refused(arrays: Any, message: str) -> None:
    assert refused(TypeError, lambda: mk.weights.plan(arrays, holding(x=1.0))) == message


def test_a_module_that_is_not_built_is_told_to_be_built(tmp_path: Path) -> None:
    mk.weights.save(tmp_path / "x", network())
    message = refused(ValueError, lambda: mk.weights.load(tmp_path / "x", mk.nets.MLP([4, 3])))
    assert message.partition(" has")[2] == (
        " no variables yet, so that nothing of the checkpoint could find its place: build it first, as in "
        "mk.build(module, [batch, features]), or mk.build(step, x, y) for an optimizer's slots"
    )


# Ties.


def pair(is_tied: bool) -> Any:
    module = mk.Module()
    module.first = mk.Variable(jnp.arange(3.0))
    module.second = module.first if is_tied else mk.Variable(jnp.arange(3.0) + 5)
    return module


def test_what_is_tied_in_the_file_is_tied_in_the_module_or_refused(tmp_path: Path) -> None:
    saved, tied, untied = pair(True), pair(True), pair(False)
    mk.weights.save(tmp_path / "x", saved)
    mk.weights.load(tmp_path / "x", tied)
    assert bits(tied) == bits(saved)
    before, plan = bits(untied), mk.weights.plan(tmp_path / "x", untied)
    assert [line.result for line in plan.wrong] == ["tie conflict: one with first in the checkpoint, and not here"]
    refused(CheckpointError, lambda: plan.apply(allow_missing=True))
    assert bits(untied) == before
    only_second = holding(second=jnp.zeros(3))  # the name that is not the first one is enough
    mk.weights.load(tmp_path / "x", only_second)
    assert bits(only_second)["second"] == bits(saved)["first"]


def test_what_is_apart_in_the_file_becomes_one_variable_only_if_it_is_equal() -> None:
    module, a, b = pair(True), np.ones(3, np.float32), np.zeros(3, np.float32)
    mk.weights.load({"first": a, "second": a.copy()}, module)
    assert module.first.numpy().tolist() == [1, 1, 1]
    mk.weights.load({"second": b}, module)
    assert module.first.numpy().tolist() == [0, 0, 0]
    (wrong,) = mk.weights.plan({"first": a, "second": b}, module).wrong
    assert wrong.result == "tie conflict: one variable here, and first and second in the checkpoint"
    (wrong,) = mk.weights.plan({"first": a, "second": a.astype(np.float16)}, module).wrong
    assert wrong.result.startswith("tie conflict")


# Some of it.


@pytest.mark.parametrize("only", ["layers/0", ["layers[0].w", "layers[0].b"], "layers.0.*"], ids=str)
def test_only_some_variables_take_values(only: Any) -> None:
    model = network()
    before, arrays = bits(model), arrays_of(model) | {"layers.0.extra": np.ones(1), "head": np.ones(1)}
    plan = mk.weights.plan(arrays, model, only=only)
    assert len(plan.matched) == 2 and not plan.missing
    assert {line.tensor.path for line in plan.unexpected if line.tensor} <= {"layers.0.extra"}
    plan.apply()
    assert {path for path in before if bits(model)[path] != before[path]} == {"layers[0].b", "layers[0].w"}


def test_a_pattern_that_chooses_nothing_is_refused() -> None:
    message = refused(ValueError, lambda: mk.weights.plan({}, network(), only=["layers/0", "layer/1"]))
    assert message == (
        "no path of MLP(output_sizes=[4, 3]) fits the pattern 'layer/1'. There are: layers[0].b, layers[0].w, layers[1].b, "
        "layers[1].w"
    )
