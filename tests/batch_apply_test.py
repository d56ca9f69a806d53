"""`BatchApply` and what it merges and splits with."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from references import assert_transforms, exact, normal

import modulekit as mk


@pytest.fixture(autouse=True)
def _start() -> None:
    mk.seed(0)


@pytest.mark.parametrize(("num_dims", "expected"), [(1, (3, 2, 4)), (2, (6, 4)), (3, (24,)), (4, (3, 2, 4))])
def test_merging_makes_one_axis_of_the_leading_ones_and_splitting_undoes_it(
    num_dims: int, expected: tuple[int, ...]
) -> None:
    x = normal(3, 2, 4)
    merged = mk.merge_leading_dims(x, num_dims)
    np.testing.assert_array_equal(merged, x.reshape(expected), strict=True)
    if num_dims < 4:
        np.testing.assert_array_equal(mk.split_leading_dim(merged, x, num_dims), x, strict=True)


def test_splitting_takes_the_leading_axes_of_the_example_and_the_others_of_the_array() -> None:
    y = mk.split_leading_dim(jnp.ones([6, 7, 8]), example=jnp.ones([3, 2, 5]), num_dims=2)
    assert y.shape == (3, 2, 7, 8)
    assert mk.split_leading_dim(jnp.ones([0, 7]), jnp.ones([0, 2]), 2).shape == (0, 2, 7)


@pytest.mark.parametrize("value", ["text", None, 3, 2.5, (1, 2)], ids=str)
def test_what_is_no_array_stays(value: Any) -> None:
    assert mk.merge_leading_dims(value, 1) is value
    assert mk.split_leading_dim(value, jnp.ones([2]), 1) is value


def test_a_module_for_a_batch_is_applied_to_each_step() -> None:
    inner = mk.Linear(3)
    x = normal(4, 2, 5)
    y = mk.BatchApply(inner)(jnp.asarray(x))
    np.testing.assert_allclose(y, exact(x) @ exact(inner.w) + exact(inner.b), rtol=1e-5, atol=1e-5)
    deep = mk.BatchApply(inner, num_dims=3)(jnp.asarray(x.reshape(2, 2, 2, 5)))
    np.testing.assert_array_equal(deep, y.reshape(2, 2, 2, 3))
    assert [v.name for v in mk.BatchApply(inner).variables] == ["linear/b", "linear/w"]


def test_a_convolution_sees_images_of_its_own_rank() -> None:
    conv = mk.Conv2D(2, 3)
    x = jnp.asarray(normal(2, 3, 5, 4, 1))
    y = mk.BatchApply(conv)(x)
    np.testing.assert_allclose(y, jnp.stack([conv(step) for step in x]), rtol=1e-5, atol=1e-6)


def test_structures_are_merged_and_split_leaf_by_leaf() -> None:
    seen: list[Any] = []

    def function(pair: Any, *, table: Any, flag: bool, missing: Any) -> Any:
        seen.extend([pair[0].shape, pair[1].shape, table["t"].shape, flag, missing])
        return {"sum": pair[0] + table["t"], "flag": flag, "none": missing, "list": [pair[1]]}

    x, y, t = normal(2, 3, 4), normal(2, 3), normal(2, 3, 1)
    outputs = mk.BatchApply(function)((x, y), table={"t": t}, flag=True, missing=None)
    assert seen == [(6, 4), (6,), (6, 1), True, None]
    np.testing.assert_allclose(outputs["sum"], x + t)
    np.testing.assert_array_equal(outputs["list"][0], y)
    assert outputs["flag"] is True and outputs["none"] is None


def test_arrays_of_fewer_axes_are_handed_on_wherever_they_stand() -> None:
    x, two = normal(2, 3, 4), jnp.float32(2)
    product = mk.BatchApply(lambda a, b: a * b)
    np.testing.assert_allclose(product(two, x), 2 * x)
    np.testing.assert_allclose(product(x, two), 2 * x)
    assert float(mk.BatchApply(lambda s: s + 1)(jnp.float32(2))) == 3


def test_transforms_change_nothing() -> None:
    assert_transforms(lambda: mk.BatchApply(mk.Linear(3)), normal(4, 2, 5))


def test_gradients_pass_to_every_input() -> None:
    apply = mk.BatchApply(lambda x, y: x * y)
    x, y = jnp.asarray(normal(2, 3, 4)), jnp.asarray(normal(2, 3, 4, seed=1))
    gradients = jax.grad(lambda x, y: jnp.sum(apply(x, y)), (0, 1))(x, y)
    np.testing.assert_array_equal(gradients[0], y)
    np.testing.assert_array_equal(gradients[1], x)
    variable = mk.Variable(x, name="x")
    np.testing.assert_array_equal(mk.grad(lambda: jnp.sum(apply(variable, y)), [variable])()[0], y)
    assert mk.BatchApply(jnp.tanh).variables == ()


ERRORS: list[tuple[Callable[[], Any], str]] = [
    (lambda: mk.BatchApply(lambda: 0)(), "BatchApply requires at least one tensor input."),
    (lambda: mk.BatchApply(lambda x: x)(None), "BatchApply requires at least one tensor input."),
    (
        lambda: mk.split_leading_dim(jnp.ones([5, 2]), jnp.ones([3, 2]), 2),
        "the first axis of float32[5,2] cannot be split into [3, 2], the first 2 of float32[3,2]: expected 6 elements on it",
    ),
    (
        lambda: mk.BatchApply(jnp.sum)(jnp.ones([3, 2])),
        "the first axis of float32[] cannot be split into [3, 2], the first 2 of float32[3,2]: expected 6 elements on it",
    ),
]


@pytest.mark.parametrize(("call", "text"), ERRORS, ids=range(len(ERRORS)))
def test_errors(call: Callable[[], Any], text: str) -> None:
    with pytest.raises(ValueError) as caught:
        call()
    assert str(caught.value) == text
