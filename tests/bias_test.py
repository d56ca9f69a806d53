"""`Bias` against its equation."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from references import HALF, assert_gradients, assert_transforms, exact, normal

import modulekit as mk

SHAPE = (2, 3, 4, 5)
SHAPES: list[tuple[list[int] | None, tuple[int, ...]]] = [
    (None, (3, 4, 5)),
    ([], ()),
    ([-1], (5,)),
    ([1], (3, 1, 1)),
    ([2], (4, 1)),
    ([1, -1], (3, 1, 5)),
    ([3, 2], (4, 5)),
]
every_shape = pytest.mark.parametrize(("bias_dims", "shape"), SHAPES, ids=str)


@pytest.fixture(autouse=True)
def _start() -> None:
    mk.seed(0)


def make(bias_dims: Any = None, **settings: Any) -> mk.Bias:
    return mk.Bias(bias_dims=bias_dims, b_init=mk.initializers.RandomNormal(), **settings)


@every_shape
def test_b_has_the_axes_of_bias_dims_and_is_added(bias_dims: list[int] | None, shape: tuple[int, ...]) -> None:
    layer, x = make(bias_dims), normal(*SHAPE)
    y = layer(jnp.asarray(x))
    assert layer.b.shape == shape
    assert layer.input_size == (3, 4, 5)
    np.testing.assert_allclose(y, exact(x) + exact(layer.b), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(layer(x, multiplier=-0.5), exact(x) - 0.5 * exact(layer.b), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(layer(layer(x), multiplier=-1), x, rtol=1e-5, atol=1e-6)


def test_an_axis_of_size_1_is_dropped_where_it_leads() -> None:
    for shape, bias_dims, expected in [((2, 1, 5), None, (1, 5)), ((2, 1, 5), [1], ()), ((2, 1, 5), [1, 2], (5,))]:
        layer = mk.Bias(bias_dims=bias_dims)
        layer(jnp.ones(shape))
        assert layer.b.shape == expected


def test_the_multiplier_may_be_an_array_or_a_variable() -> None:
    layer, x = make(), jnp.asarray(normal(3, 4))
    scale = mk.Variable(normal(3, 1), name="scale")
    expected = exact(x) + exact(scale) * (exact(layer(x)) - exact(x))
    np.testing.assert_allclose(layer(x, scale), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(layer(x, scale.value), expected, rtol=1e-5, atol=1e-5)
    (gradient,) = mk.grad(lambda: jnp.sum(layer(x, scale)), [scale])()
    np.testing.assert_allclose(gradient, np.full([3, 1], exact(layer.b).sum()), rtol=1e-5)


@pytest.mark.parametrize("bias_dims", [None, [], [1]], ids=str)
def test_gradients_are_those_of_the_equation(bias_dims: Any) -> None:
    layer, x = make(bias_dims), normal(2, 3, 2)
    layer(jnp.asarray(x))
    assert_gradients(lambda x: layer(x, 3.0), x, [layer.b], lambda x, b: x + 3 * b)


def test_transforms_change_nothing() -> None:
    assert_transforms(lambda: make([-1]), normal(*SHAPE))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.int32, *HALF], ids=lambda d: jnp.dtype(d).name)
def test_b_has_the_dtype_of_the_first_inputs(dtype: Any) -> None:
    layer = mk.Bias(b_init=mk.initializers.Constant(2))
    y = layer(jnp.ones([2, 3], dtype))
    assert layer.b.dtype == y.dtype == dtype
    assert exact(y).tolist() == [[3.0] * 3] * 2


def test_name_and_text() -> None:
    layer = mk.Bias([4], name="shift")
    assert exact(layer(jnp.ones([3, 4]))).tolist() == [[1.0] * 4] * 3
    assert [v.name for v in layer.variables] == ["shift/b"]
    assert repr(layer) == "Bias(output_size=[4], name='shift')"
    assert mk.Bias(4)(jnp.ones([3, 4])).shape == mk.Bias((4,))(jnp.ones([3, 4])).shape == (3, 4)


def built(layer: mk.Bias, *shape: int) -> mk.Bias:
    layer(jnp.ones(shape))
    return layer


ERRORS: list[tuple[Callable[[], Any], str]] = [
    (
        lambda: mk.Bias()(jnp.ones([3])),
        "Bias(): inputs must have rank >= 2, [batch, ...], got float32[3]: add a batch axis, as in x[None]",
    ),
    (
        lambda: mk.Bias(bias_dims=[3])(jnp.ones([2, 3])),
        "Dimension 3 (bias_dims=(3,)) out of range for input of rank 2.",
    ),
    (
        lambda: mk.Bias(bias_dims=[-3])(jnp.ones([2, 3])),
        "Dimension -3 (bias_dims=(-3,)) out of range for input of rank 2.",
    ),
    *(
        (
            lambda dim=dim: mk.Bias(bias_dims=[1, dim])(jnp.ones([2, 3])),
            f"Cannot apply bias across the minibatch dimension. Received: bias_dims=(1, {dim}) for input of rank 2",
        )
        for dim in (0, -2)
    ),
    (
        lambda: mk.Bias(output_size=(5,))(jnp.ones([2, 3])),
        "Bias(output_size=(5,)) expects inputs of shape [batch, *output_size], got float32[2,3]",
    ),
    (
        lambda: built(mk.Bias(4), 2, 4)(jnp.ones([2, 1])),
        "Bias(output_size=4) expects inputs of shape [batch, *output_size], got float32[2,1]",
    ),
    (
        lambda: built(mk.Bias(), 2, 4)(jnp.ones([2, 1])),
        "Bias() has a b of shape [4], which does not fit float32[2,1]: its shape is fixed on the first call; use another "
        "layer for other inputs, or fewer bias_dims",
    ),
]


@pytest.mark.parametrize(("call", "text"), ERRORS, ids=[text[:40] for _, text in ERRORS])
def test_errors(call: Callable[[], Any], text: str) -> None:
    with pytest.raises(ValueError) as caught:
        call()
    assert str(caught.value) == text
