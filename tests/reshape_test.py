"""`reshape`, `flatten`, `Reshape`, `Flatten` and `Identity`."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from references import normal

import modulekit as mk

CASES: list[tuple[tuple[int, ...], Any, int, tuple[int, ...]]] = [
    ((2, 3, 4), [12], 1, (2, 12)),
    ((2, 3, 4), 12, 1, (2, 12)),
    ((2, 3, 4), (2, -1, 3), 1, (2, 2, 2, 3)),
    ((2, 3, 4), [4, 3], 1, (2, 4, 3)),
    ((2, 3, 4), [-1, 2], 2, (2, 3, 2, 2)),
    ((2, 3, 4, 4), [-1, 2], 3, (2, 3, 4, 2, 2)),
    ((2, 3), [1, 3, 1], 1, (2, 1, 3, 1)),
    ((2,), [-1], 1, (2, 1)),
    ((2,), [], 1, (2,)),
    ((2, 1, 1), (), 1, (2,)),
    ((2, 0, 3), [-1, 3], 1, (2, 0, 3)),
    ((0, 2, 3), [-1], 1, (0, 6)),
]


@pytest.mark.parametrize(("shape", "output_shape", "preserve_dims", "expected"), CASES, ids=str)
def test_the_axes_behind_the_preserved_ones_are_reshaped_in_order(
    shape: tuple[int, ...], output_shape: Any, preserve_dims: int, expected: tuple[int, ...]
) -> None:
    x = normal(*shape)
    y = mk.reshape(x, output_shape, preserve_dims)
    np.testing.assert_array_equal(y, x.reshape(expected), strict=True)
    module = mk.Reshape(output_shape, preserve_dims)
    np.testing.assert_array_equal(module(jnp.asarray(x)), y, strict=True)
    np.testing.assert_array_equal(module.reversed()(y), x, strict=True)


@pytest.mark.parametrize(
    ("shape", "preserve_dims", "expected"),
    [((2, 3, 4), 1, (2, 12)), ((2, 3, 4), 2, (2, 3, 4)), ((2, 3, 4), 3, (2, 3, 4, 1)), ((2,), 1, (2, 1))],
    ids=str,
)
def test_flatten_makes_one_axis_of_the_rest(shape: tuple[int, ...], preserve_dims: int, expected: Any) -> None:
    x = normal(*shape)
    module = mk.Flatten(preserve_dims)
    np.testing.assert_array_equal(module(jnp.asarray(x)), x.reshape(expected), strict=True)
    np.testing.assert_array_equal(module.reversed()(module(x)), x, strict=True)
    np.testing.assert_array_equal(mk.flatten(x, name="any"), x.reshape(shape[0], -1), strict=True)


def test_other_inputs_are_reshaped_as_they_come_and_reversing_goes_back_to_the_first() -> None:
    module = mk.Flatten()
    module(jnp.ones([2, 3, 4]))
    assert module(jnp.ones([5, 7])).shape == (5, 7)
    back = module.reversed()
    assert back(jnp.ones([9, 12])).shape == (9, 3, 4)
    assert (back.name, module.reversed("back").name) == ("flatten_reversed", "back")
    assert back.scope_name == "flatten_reversed"


def test_a_refused_input_does_not_count_as_the_first() -> None:
    module = mk.Reshape([4])
    with pytest.raises(ValueError, match="does not hold"):
        module(jnp.ones([2, 3]))
    module(jnp.ones([2, 2, 2]))
    assert module.input_shape == (2, 2, 2)


@pytest.mark.parametrize("module", [mk.Reshape([4, 3]), mk.Flatten(), mk.Identity()], ids=lambda m: m.name)
def test_transforms_change_nothing_and_gradients_pass(module: Any) -> None:
    steps = jnp.asarray(normal(3, 2, 3, 4))
    expected = jnp.stack([module(step) for step in steps])
    np.testing.assert_array_equal(mk.jit(module)(steps[0]), expected[0])
    np.testing.assert_array_equal(mk.vmap(module)(steps), expected)
    np.testing.assert_array_equal(mk.scan(lambda _, step: (None, module(step)), None, steps)[1], expected)
    np.testing.assert_array_equal(jax.grad(lambda x: jnp.sum(module(x) ** 2))(steps[0]), 2 * steps[0])
    assert module.variables == ()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int8, bool], ids=lambda d: jnp.dtype(d).name)
def test_any_dtype_stays(dtype: Any) -> None:
    assert mk.flatten(jnp.ones([2, 3, 4], dtype)).dtype == mk.Reshape([3, 4])(jnp.ones([2, 12], dtype)).dtype == dtype


def test_a_variable_is_an_input() -> None:
    image = mk.Variable(normal(2, 3, 4), name="image")
    (gradient,) = mk.grad(lambda: jnp.sum(mk.flatten(image) ** 2), [image])()
    np.testing.assert_array_equal(gradient, 2 * image.numpy())


def test_the_identity_returns_the_very_same_and_ignores_the_rest() -> None:
    x = {"any": [object()]}
    assert mk.Identity(name="nothing")(x, True, is_training=False) is x


PRESERVE = "Argument preserve_dims should be >= 1. Received: preserve_dims=0"
ERRORS: list[tuple[Callable[[], Any], str]] = [
    (lambda: mk.Reshape([3], preserve_dims=0), PRESERVE),
    (lambda: mk.Flatten(0), PRESERVE),
    (lambda: mk.reshape(jnp.ones([2]), [1], 0), PRESERVE),
    (
        lambda: mk.Flatten(3)(jnp.ones([2, 3])),
        "Input tensor has 2 dimensions, should have at least as many as preserve_dims=3: got float32[2,3]",
    ),
    (
        lambda: mk.reshape(jnp.ones([2, 3]), [4]),
        "output_shape=[4] does not hold the 3 elements of [3], the axes of float32[2,3] after the first 1: give sizes whose "
        "product is 3, at most one -1",
    ),
    (
        lambda: mk.Reshape([-1, 2])(jnp.ones([2, 3])),
        "output_shape=[-1, 2] does not hold the 3 elements of [3], the axes of float32[2,3] after the first 1: give sizes "
        "whose product is 3, at most one -1",
    ),
    (
        lambda: mk.Reshape([-1, -1])(jnp.ones([2, 1])),
        "output_shape=[-1, -1] does not hold the 1 elements of [1], the axes of float32[2,1] after the first 1: give sizes "
        "whose product is 1, at most one -1",
    ),
    (
        lambda: mk.Reshape([-2, -2])(jnp.ones([2, 4])),
        "output_shape=[-2, -2] does not hold the 4 elements of [4], the axes of float32[2,4] after the first 1: give sizes "
        "whose product is 4, at most one -1",
    ),
    (
        lambda: mk.Flatten().reversed(),
        "Flatten() has not been called yet, and its input shape is unknown: call it, then reverse it",
    ),
]


@pytest.mark.parametrize(("call", "text"), ERRORS, ids=range(len(ERRORS)))
def test_errors(call: Callable[[], Any], text: str) -> None:
    with pytest.raises(ValueError) as caught:
        call()
    assert str(caught.value) == text


def test_flatten_is_a_reshape() -> None:
    layer = mk.Flatten(preserve_dims=2, name="flat")
    assert isinstance(layer, mk.Reshape) and layer.output_shape == [-1]
    assert layer(jnp.ones([2, 3, 4, 5])).shape == (2, 3, 20)
    assert layer.reversed()(jnp.ones([7, 3, 20])).shape == (7, 3, 4, 5) and layer.reversed().name == "flat_reversed"
