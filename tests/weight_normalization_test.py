"""`SpectralNorm` divides by the largest singular value, `WeightNorm` by the norm of each output's weights."""

import pickle
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from references import HALF, difference_quotient, exact, normal, op_count

import modulekit as mk

SHAPES = [(5, 3), (3, 5), (1, 4), (4, 1), (2, 2, 3, 4)]
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


@pytest.fixture(autouse=True)
def _start() -> None:
    mk.seed(0)


def singular_values(w: Any) -> np.ndarray:
    return np.linalg.svd(exact(w).reshape(-1, w.shape[-1]), compute_uv=False)


def apart(*shape: int) -> np.ndarray:
    """Returns a weight whose largest singular value stands apart, so that power iteration ends soon."""
    w = exact(normal(*shape)).reshape(-1, shape[-1])
    left, values, right = np.linalg.svd(w, full_matrices=False)
    values[0] = 3 * values[0]
    return ((left * values) @ right).reshape(shape).astype(np.float32)


@every_shape
def test_sigma_is_the_largest_singular_value(shape: tuple[int, ...]) -> None:
    w, norm = apart(*shape), mk.SpectralNorm(n_steps=12)
    normalized = norm(w, is_training=True)
    np.testing.assert_allclose(norm.sigma.value, singular_values(w)[0], rtol=1e-5)
    np.testing.assert_allclose(normalized, w / singular_values(w)[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(singular_values(normalized)[0], 1, rtol=1e-5)


def test_one_step_for_each_call_comes_as_near_as_many_in_one() -> None:
    w = apart(5, 3)
    slow, fast = mk.SpectralNorm(u_init=mk.initializers.Ones()), mk.SpectralNorm(6, u_init=mk.initializers.Ones())
    compiled = mk.jit(lambda: slow(w, is_training=True))
    for _ in range(6):
        outputs = compiled()
    np.testing.assert_allclose(outputs, fast(w, is_training=True), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(slow.u.value, fast.u.value, rtol=1e-5, atol=1e-6)


def test_evaluation_changes_nothing() -> None:
    w, norm = apart(5, 3), mk.SpectralNorm()
    norm(w, is_training=True)
    before = {path: variable.numpy() for path, variable in norm.paths().items()}
    first = norm(w, is_training=False)
    np.testing.assert_array_equal(first, norm(w, is_training=False))
    for path, variable in norm.paths().items():
        np.testing.assert_array_equal(variable.numpy(), before[path])
    assert [(v.name, v.shape, v.trainable) for v in norm.variables] == [
        ("spectral_norm/sigma", (), False), ("spectral_norm/u", (3,), False),
    ]  # fmt: skip


def test_the_gradient_of_a_converged_sigma_is_that_of_the_singular_value() -> None:
    w, norm, weight = mk.Variable(apart(4, 3), name="w"), mk.SpectralNorm(15), normal(4, 3, seed=1)
    (gradient,) = mk.grad(lambda: jnp.sum(norm(w, is_training=True) * weight), [w])()
    expected = difference_quotient(lambda w: float((w / singular_values(w)[0] * weight).sum()), exact(w))
    np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-4)


def test_the_gradient_does_not_go_through_the_iteration() -> None:
    w, norm, weight = mk.Variable(apart(4, 3), name="w"), mk.SpectralNorm(1), normal(4, 3, seed=1)
    norm(w, is_training=True)
    u = exact(norm.u)
    (gradient,) = mk.grad(lambda: jnp.sum(norm(w, is_training=False) * weight), [w])()
    value = exact(w)
    v = value @ u / np.linalg.norm(value @ u)
    u = value.T @ v / np.linalg.norm(value.T @ v)
    expected = difference_quotient(lambda w: float((w / (v @ w @ u) * weight).sum()), value)
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scale", [0.0, 1e-6])
def test_a_weight_of_no_length_stays_finite_and_can_recover(scale: float) -> None:
    w, norm = mk.Variable(scale * apart(4, 3), name="w"), mk.SpectralNorm(12)
    (gradient,) = mk.grad(lambda: jnp.sum(norm(w, is_training=True)), [w])()
    assert jnp.isfinite(gradient).all()
    np.testing.assert_allclose(norm(w, is_training=True), w.value / 1e-4, rtol=1e-6)
    w.assign(apart(4, 3))
    np.testing.assert_allclose(singular_values(norm(w, is_training=True))[0], 1, rtol=1e-5)


@pytest.mark.parametrize("dtype", HALF, ids=lambda d: jnp.dtype(d).name)
def test_half_precision_is_kept_and_its_norms_are_taken_in_float32(dtype: Any) -> None:
    w = jnp.asarray(apart(5, 3), dtype)
    spectral, weight = mk.SpectralNorm(12), mk.WeightNorm()
    normalized = spectral(w, is_training=True)
    assert normalized.dtype == weight(w).dtype == dtype
    assert spectral.u.dtype == spectral.sigma.dtype == weight.g.dtype == jnp.float32
    np.testing.assert_allclose(spectral.sigma.value, singular_values(w)[0], rtol=1e-5)
    np.testing.assert_allclose(exact(weight(w)), exact(w), rtol=float(jnp.finfo(dtype).eps))


# Weight normalization.


def weight_normalized(v: np.ndarray, g: np.ndarray) -> np.ndarray:
    w = np.zeros(v.shape)
    for output in range(v.shape[-1]):
        w[..., output] = g[output] * v[..., output] / np.sqrt((v[..., output] ** 2).sum())
    return w


@every_shape
def test_lengths_and_directions_are_apart(shape: tuple[int, ...]) -> None:
    v, norm = normal(*shape), mk.WeightNorm(mk.initializers.RandomNormal())
    np.testing.assert_allclose(norm(v), weight_normalized(exact(v), exact(norm.g)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(norm(7 * v), norm(v), rtol=1e-5)
    assert [(x.name, x.shape, x.trainable) for x in norm.variables] == [("weight_norm/g", shape[-1:], True)]


@every_shape
def test_without_an_initializer_the_weight_begins_as_it_is_also_in_compiled_code(shape: tuple[int, ...]) -> None:
    v = mk.Variable(normal(*shape), name="v")
    np.testing.assert_allclose(mk.WeightNorm()(v), v.value, rtol=1e-6)
    norm = mk.WeightNorm()
    np.testing.assert_allclose(mk.jit(lambda: norm(v))(), v.value, rtol=1e-6)
    with pytest.raises(TypeError, match="variable 'weight_norm/g' would be made from a traced value"):
        mk.jit(mk.WeightNorm())(v.value)


def test_gradients_are_those_of_the_equation() -> None:
    v, norm, weight = mk.Variable(normal(3, 2), name="v"), mk.WeightNorm(), normal(3, 2, seed=1)
    norm(v)
    found = mk.grad(lambda: jnp.sum(norm(v) * weight), [v, norm.g])()
    value, g = exact(v), exact(norm.g)
    for gradient, expected in (
        (found[0], difference_quotient(lambda v: float((weight_normalized(v, g) * weight).sum()), value)),
        (found[1], difference_quotient(lambda g: float((weight_normalized(value, g) * weight).sum()), g)),
    ):
        np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose((found[0] * value).sum(axis=0), 0, atol=1e-5)  # never along the direction itself


def test_an_output_without_weights_stays_zero_with_finite_gradients() -> None:
    v, norm = mk.Variable(np.array([[0.0, 1.0], [0.0, 2.0]], np.float32), name="v"), mk.WeightNorm()
    np.testing.assert_array_equal(norm(v)[:, 0], [0, 0])
    assert all(jnp.isfinite(gradient).all() for gradient in mk.grad(lambda: jnp.sum(norm(v)), [v, norm.g])())


# Both.


@pytest.mark.parametrize("make", [lambda: mk.SpectralNorm(2), mk.WeightNorm], ids=["spectral", "weight"])
def test_a_layer_with_a_normalized_weight_trains_and_is_copied(make: Any) -> None:
    w, norm, x = mk.Variable(normal(4, 3), name="w"), make(), normal(8, 4)
    options = {"is_training": True} if isinstance(norm, mk.SpectralNorm) else {}
    norm(w, **options)
    optimizer = mk.optimizers.SGD(0.1)

    @mk.jit
    def step() -> Any:
        def loss() -> Any:
            return jnp.mean((x @ norm(w, **options) - 0.1 * x[:, :3]) ** 2)

        return optimizer.minimize(loss, [w, *norm.trainable_variables])

    losses = [float(step()) for _ in range(20)]
    assert losses[-1] < losses[0]
    again = pickle.loads(pickle.dumps(norm))
    np.testing.assert_array_equal(again(w, **options), norm(w, **options))


def test_normalization_costs_what_the_equations_do() -> None:
    v, weight = mk.Variable(normal(4, 3), name="v"), mk.WeightNorm()
    spectral = mk.SpectralNorm()
    weight(v), spectral(v, is_training=True)
    assert op_count(mk.jit(lambda: weight(v))) <= 16
    assert op_count(mk.jit(lambda: spectral(v, is_training=False))) <= 40


@pytest.mark.parametrize("name", ["SpectralNorm", "WeightNorm"])
def test_errors(name: str) -> None:
    norm = getattr(mk, name)()
    call = (lambda w: norm(w, True)) if name == "SpectralNorm" else norm
    for bad, text in ((np.ones(3, np.float32), "float32[3]"), (np.ones([2, 3], np.int32), "int32[2,3]")):
        with pytest.raises(ValueError) as caught:
            call(bad)
        assert str(caught.value) == (
            f"{name}() expects a weight [..., inputs, outputs] of a floating-point dtype, got {text}: normalize weights "
            "only, and no biases"
        )
    call(normal(2, 3))
    with pytest.raises(ValueError) as caught:
        call(normal(2, 4))
    assert str(caught.value) == (
        f"{name}() expects a weight with 3 outputs, got float32[2,4]: use another module for another weight"
    )
    with pytest.raises(ValueError, match="n_steps=0 is below 1"):
        mk.SpectralNorm(0)
