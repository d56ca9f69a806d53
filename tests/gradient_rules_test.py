"""Functions with a gradient of their own."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from references import HALF, normal

import modulekit as mk

every_dtype = pytest.mark.parametrize("dtype", [jnp.float32, *HALF], ids=lambda d: jnp.dtype(d).name)


@pytest.mark.parametrize("scale", [0.0, 0.5, -2.0, 3, True])
def test_scaling_changes_the_gradient_and_nothing_else(scale: float) -> None:
    x = jnp.asarray([1.5, -jnp.inf, jnp.nan, 0.0])
    np.testing.assert_array_equal(mk.scale_gradient(x, scale), x)
    x = jnp.asarray(normal(3, 4))
    gradient = jax.grad(lambda x: jnp.sum(jnp.sin(mk.scale_gradient(x, scale))))(x)
    np.testing.assert_allclose(gradient, scale * np.cos(x), rtol=1e-6)


def test_the_scale_may_be_an_array_and_gets_no_gradient() -> None:
    x, scale = jnp.asarray(normal(3, 4)), jnp.asarray(normal(3, 1))
    gradients = jax.grad(lambda x, s: jnp.sum(mk.scale_gradient(x, s) ** 2), (0, 1))(x, scale)
    np.testing.assert_allclose(gradients[0], 2 * x * scale, rtol=1e-6)
    np.testing.assert_array_equal(gradients[1], jnp.zeros([3, 1]))
    w, s = mk.Variable(x, name="w"), mk.Variable(0.5, name="s")
    np.testing.assert_allclose(mk.grad(lambda: jnp.sum(mk.scale_gradient(w, s)), [w])()[0], np.full([3, 4], 0.5))
    with pytest.raises(ValueError, match="broadcast"):
        jax.grad(lambda x: jnp.sum(mk.scale_gradient(x, jnp.ones([2]))))(x)


def test_scaling_in_forward_mode_and_twice() -> None:
    primal, tangent = jax.jvp(lambda x: mk.scale_gradient(x, 0.5) ** 2, (3.0,), (1.0,))
    assert (primal, tangent) == (9.0, 3.0)
    # The derivative of x^2 is 2x, once scaled; that of the scaled 2x is 2, scaled once more.
    assert jax.grad(jax.grad(lambda x: mk.scale_gradient(x, 0.5) ** 2))(3.0) == 0.5


def test_integers_pass_unscaled() -> None:
    assert mk.scale_gradient(jnp.arange(3), 0.5).tolist() == [0, 1, 2]


@every_dtype
def test_scaling_keeps_the_dtype(dtype: Any) -> None:
    x = jnp.ones([2], dtype)
    gradient = jax.grad(lambda x: jnp.sum(mk.scale_gradient(x, jnp.float32(0.5))))(x)
    assert mk.scale_gradient(x, 0.5).dtype == gradient.dtype == dtype
    assert gradient.tolist() == [0.5, 0.5]


X = np.array([-2.0, -1.0, 0.0, 1.0, 2.0], np.float32)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_clipping_stops_only_the_gradient_that_leads_further_away(sign: float) -> None:
    y, pull = jax.vjp(lambda x: mk.leaky_clip_by_value(x, -1.0, 1.0), jnp.asarray(X))
    np.testing.assert_array_equal(y, [-1, -1, 0, 1, 1])
    passes = [sign < 0, True, True, True, sign > 0]  # descent moves an element against its gradient
    np.testing.assert_array_equal(pull(jnp.full([5], sign))[0], sign * np.array(passes))
    np.testing.assert_array_equal(pull(jnp.zeros([5]))[0], np.zeros(5))


def test_descent_brings_clipped_elements_back() -> None:
    x, wanted = jnp.asarray([-3.0, 3.0, 0.5]), jnp.asarray([0.5, -0.5, 3.0])
    loss = lambda x: jnp.sum((mk.leaky_clip_by_value(x, -1.0, 1.0) - wanted) ** 2)  # noqa: E731
    for _ in range(200):
        x = x - 0.05 * jax.grad(loss)(x)
    np.testing.assert_allclose(x[:2], wanted[:2], atol=1e-3)
    assert 1.0 <= float(x[2]) < 1.2


def test_the_bounds_may_be_arrays_and_get_no_gradient() -> None:
    x, low, high = (jnp.asarray(a) for a in (normal(5, 4), -(normal(1, 4) ** 2), normal(5, 1) ** 2))
    y, pull = jax.vjp(mk.leaky_clip_by_value, x, low, high)
    np.testing.assert_array_equal(y, np.maximum(np.minimum(x, high), low))
    gradient = jnp.asarray(normal(5, 4, seed=1))
    stopped = ((x < low) & (gradient > 0)) | ((x > high) & (gradient < 0))
    assert stopped.any()
    for found, expected in zip(pull(gradient), (np.where(stopped, 0, gradient), 0 * low, 0 * high), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_the_lower_bound_wins_where_bounds_cross() -> None:
    assert mk.leaky_clip_by_value(jnp.asarray(0.0), 2.0, 1.0, name="any") == 2.0


@every_dtype
def test_clipping_keeps_the_dtype(dtype: Any) -> None:
    x = jnp.asarray(X, dtype)
    gradient = jax.grad(lambda x: jnp.sum(mk.leaky_clip_by_value(x, jnp.float32(-1), 1)))(x)
    assert mk.leaky_clip_by_value(x, -1, np.float32(1)).dtype == gradient.dtype == dtype


@pytest.mark.parametrize("rule", [lambda x: mk.scale_gradient(x, 0.3), lambda x: mk.leaky_clip_by_value(x, -1, 1)])
def test_transforms_change_nothing(rule: Any) -> None:
    w = mk.Variable(X, name="w")
    gradient = mk.grad(lambda: jnp.sum(rule(w) ** 3), [w])
    np.testing.assert_array_equal(mk.jit(gradient)()[0], gradient()[0])
    np.testing.assert_array_equal(mk.vmap(rule)(w.value), rule(w))
    each = jax.vmap(jax.grad(lambda x: rule(x) ** 3))(jnp.asarray(X))
    np.testing.assert_allclose(each, gradient()[0], rtol=1e-6)
    looped = mk.scan(lambda _, x: (None, jax.grad(lambda x: rule(x) ** 3)(x)), None, jnp.asarray(X))[1]
    np.testing.assert_allclose(looped, each, rtol=1e-6)


def test_a_bound_that_would_enlarge_the_array_is_refused() -> None:
    for bounds, which in ([(jnp.ones([2, 5]), 1.0), "clip_value_min"], [(0.0, jnp.ones([4])), "clip_value_max"]):
        with pytest.raises(ValueError) as caught:
            mk.leaky_clip_by_value(X, *bounds)
        shape = [2, 5] if which == "clip_value_min" else [4]
        assert str(caught.value) == (
            f"{which} of shape {shape} cannot be broadcast to float32[5]: give a number, or an array of its shape"
        )
