"""Properties of random trees of modules under random compositions of transforms."""

import copy
import dataclasses
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from catalogue import SEED, Row, assert_bitwise, assert_concrete, assert_near, state, variables_of
from composition import (
    RULES,
    TRANSFORMS,
    Setting,
    Transform,
    called,
    composed,
    composed_plainly,
    is_reversible,
    results,
)
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from module_trees import row_of, trees

import modulekit as mk

GRAD = next(transform for transform in TRANSFORMS if transform.name == "grad")
rows = st.builds(row_of, trees)
compositions = st.lists(st.sampled_from(TRANSFORMS), min_size=1, max_size=4).filter(
    lambda transforms: is_reversible(transforms) and transforms.count(GRAD) < 3  # third derivatives take long
)
options = st.fixed_dictionaries({"size": st.sampled_from([2, 2, 1]), "rule": st.sampled_from(RULES)})


def examples(count: int) -> Callable[[Any], Any]:
    """Settings of Hypothesis: the same examples in every run, for the time that compiling them takes."""
    return settings(max_examples=count, derandomize=True, deadline=None, database=None)


@examples(20)
@given(rows, compositions, options, st.booleans())
def test_any_composition_over_any_tree_equals_plain_python_from_the_first_call(
    row: Row, transforms: Sequence[Transform], options: dict[str, Any], is_built: bool
) -> None:
    reference = Setting.fresh(row, True, **options)
    expected = list(results([composed_plainly(transforms, reference)] * 2, reference.module, calls(row)))
    setting = Setting.fresh(row, is_built, **options)
    run = composed(transforms, setting)
    for inputs, (output, values) in zip(calls(row), expected, strict=True):
        assert_near(run(*inputs), output)
        assert_near(state(setting.module), values)
        assert_concrete(variables_of(setting.module))


def calls(row: Row) -> list[Any]:
    """Returns the arguments of two calls."""
    return list(zip(*row.steps(2), strict=True))


@examples(8)
@given(rows, st.lists(compositions, min_size=2, max_size=3), options)
def test_one_compiled_function_gives_the_same_wherever_it_is_called_in_turn(
    row: Row, sequence: list[Sequence[Transform]], options: dict[str, Any]
) -> None:
    steps = list(zip(*row.steps(len(sequence)), strict=True))
    reference = Setting.fresh(row, True, **options)
    functions = [composed_plainly(transforms, reference) for transforms in sequence]
    expected = list(results(functions, reference.module, steps))
    setting = Setting.fresh(row, False, **options)
    compiled = mk.jit(called(setting))
    for transforms, inputs, (output, values) in zip(sequence, steps, expected, strict=True):
        assert_near(composed(transforms, setting, compiled)(*inputs), output)
        assert_near(state(setting.module), values)


@examples(8)
@given(
    rows, compositions.filter(lambda transforms: is_reversible([GRAD, *transforms]) and GRAD not in transforms), options
)
def test_the_gradient_of_any_composition_is_that_of_jax_grad_over_the_pure_function(
    row: Row, transforms: Sequence[Transform], options: dict[str, Any]
) -> None:
    def loss_of(setting: Setting) -> Callable[[], Any]:
        run = composed(transforms, setting)
        return lambda: jnp.square(run(*row.inputs)).mean()

    reference = Setting.fresh(row, True, **options)
    trained = list(reference.module.trainable_variables)
    variables = [*trained, *(v for v in variables_of(reference.module) if v not in trained)]
    pure, values = mk.functionalize(loss_of(reference), variables)
    (loss, new), expected = jax.value_and_grad(lambda weights: pure([*weights, *values[len(trained) :]]), has_aux=True)(
        values[: len(trained)]
    )
    pure.commit(new)
    setting = Setting.fresh(row, False, **options)
    actual, gradients = mk.value_and_grad(loss_of(setting), setting.module)()
    assert_near(actual, loss)
    assert_near(gradients, expected)
    assert_near(state(setting.module), state(reference.module))


# Failures.


class Stop(Exception):
    """What the failing functions below raise."""


def raising(function: Callable[..., Any], _: Setting) -> Callable[..., Any]:
    """Raises after the function has run or been traced."""

    def run(*inputs: Any) -> Any:
        function(*inputs)
        raise Stop

    return run


def failing(function: Callable[..., Any], setting: Setting) -> Callable[..., Any]:
    """Raises after the function, where it runs, and not while it is traced."""

    def shout(_: Any) -> Any:
        raise Stop

    def run(*inputs: Any) -> Any:
        output = function(*inputs)
        seen = jax.lax.stop_gradient(output)
        return output + jax.pure_callback(shout, setting.output, seen, vmap_method="sequential")

    return run


@examples(12)
@given(rows, compositions, compositions, st.sampled_from([raising, failing]), st.booleans())
def test_an_exception_in_the_middle_of_a_composition_leaves_every_variable_bitwise_as_it_was(
    row: Row, outer: Sequence[Transform], inner: Sequence[Transform], fail: Any, is_built: bool
) -> None:
    assume(is_reversible([*outer[:2], *inner[:2]]))
    setting = Setting.fresh(row, is_built)
    module, before = setting.module, state(setting.module)
    middle = fail(composed(inner[:2], setting), setting)
    with pytest.raises((Stop, jax.errors.JaxRuntimeError)) as raised:
        composed(outer[:2], setting, middle)(*row.inputs)
    assert raised.type is Stop or "Stop" in str(raised.value)
    after = state(module)
    assert_bitwise({path: after[path] for path in before}, before)
    assert_concrete(variables_of(module))
    expected = row.call(row.fresh())
    mk.seed(SEED)
    np.testing.assert_array_equal(row.call(module), expected)


# Copies.


def pickled(module: Any) -> Any:
    return pickle.loads(pickle.dumps(module))


@examples(10)
@given(rows, compositions, st.sampled_from([copy.deepcopy, pickled]))
def test_a_copy_of_any_tree_has_the_same_ties_and_gives_the_same_under_any_composition(
    row: Row, transforms: Sequence[Transform], copies: Any
) -> None:
    original = Setting.fresh(row, is_built=True)
    row.call(original.module)
    twin = dataclasses.replace(original, module=copies(original.module))
    paths, paths_of_twin = original.module.paths(), twin.module.paths()
    assert list(paths_of_twin) == list(paths)  # a tie that broke would be another path
    assert not set(paths_of_twin.values()) & set(paths.values())
    before = {path: variable.numpy() for path, variable in paths.items()}
    mk.seed(SEED)
    output = composed(transforms, twin)(*row.inputs)
    assert_bitwise({path: variable.numpy() for path, variable in paths.items()}, before)
    after = state(twin.module)
    mk.seed(SEED)
    np.testing.assert_array_equal(output, composed(transforms, original)(*row.inputs), strict=True)
    assert_bitwise(state(original.module), after)
