"""A layer with a normalized weight computes what it would with that weight, and keeps its own."""

import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import modulekit as mk

X = np.random.default_rng(0).normal(size=(4, 6, 5, 3)).astype(np.float32)
LAYERS = {
    "linear": lambda: mk.Linear(4), "conv": lambda: mk.Conv2D(4, 3), "transpose": lambda: mk.Conv2DTranspose(4, 3, stride=2),
}  # fmt: skip
every_layer = pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)


def inputs_of(layer: Any) -> np.ndarray:
    return X[:, 0, 0] if isinstance(layer, mk.Linear) else X


@every_layer
def test_the_layer_computes_with_the_normalized_weight_and_keeps_its_own(make: Any) -> None:
    layer = make()
    norm = mk.NormalizedWeight(layer, mk.SpectralNorm(n_steps=50))
    x = inputs_of(layer)
    outputs = norm(x, is_training=True)
    w = layer.w.numpy()
    sigma = np.linalg.svd(w.reshape(-1, w.shape[-1]).astype(np.float64), compute_uv=False)[0]
    layer.w.assign((w / sigma).astype(np.float32))
    np.testing.assert_allclose(outputs, layer(x), rtol=2e-5, atol=2e-5)
    assert [v.name for v in layer.variables] == [v.name for v in _fresh(make).variables]


def _fresh(make: Any) -> Any:
    layer = make()
    layer(inputs_of(layer))
    return layer


def test_the_gradient_of_the_weight_is_that_of_the_equation() -> None:
    layer = mk.Linear(4, with_bias=False)
    norm = mk.NormalizedWeight(layer, mk.WeightNorm())
    x = X[:, 0, 0]
    norm(x)
    loss = lambda: jnp.sum(jnp.square(norm(x)))  # noqa: E731
    by_w, by_g = mk.grad(loss, [layer.w, norm.norm.g])()

    def by_hand(w: jax.Array, g: jax.Array) -> jax.Array:
        return jnp.sum(jnp.square(x @ (g * w / jnp.linalg.norm(w, axis=0))))

    wanted = jax.grad(by_hand, argnums=(0, 1))(layer.w.value, norm.norm.g.value)
    np.testing.assert_allclose(by_w, wanted[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(by_g, wanted[1], rtol=1e-5)
    compiled = mk.jit(lambda: mk.grad(loss, [layer.w, norm.norm.g])())()
    np.testing.assert_allclose(compiled[0], by_w, rtol=1e-4, atol=1e-5)


def test_a_tied_transpose_sees_the_weight_as_it_is() -> None:
    layer = mk.Linear(4)
    norm, back = mk.NormalizedWeight(layer, lambda w: 2 * w.value), layer.transpose()
    code = norm(X[:, 0, 0])
    np.testing.assert_allclose(back(code), code @ layer.w.numpy().T, rtol=1e-5)


@pytest.mark.parametrize("first", ["eager", "jit", "grad"])
def test_the_first_weights_are_those_of_the_layer_alone_however_it_is_called(first: str) -> None:
    mk.seed(1)
    alone = mk.Linear(4)
    alone(X[:, 0, 0])
    mk.seed(1)
    norm = mk.NormalizedWeight(mk.Linear(4), mk.SpectralNorm())
    run = lambda: norm(X[:, 0, 0], is_training=True).sum()  # noqa: E731
    {"eager": run, "jit": mk.jit(run), "grad": mk.grad(run, norm)}[first]()
    np.testing.assert_array_equal(norm.layer.w.value, alone.w.value)
    assert norm.layer.w.name == "linear/w"


def test_power_iteration_goes_on_in_training_only() -> None:
    norm = mk.NormalizedWeight(mk.Linear(4), mk.SpectralNorm())
    step = mk.jit(lambda is_training: norm(X[:, 0, 0], is_training=is_training))
    step(True)
    u = norm.norm.u.numpy()
    step(False)
    np.testing.assert_array_equal(norm.norm.u.value, u)
    step(True)
    assert not np.array_equal(norm.norm.u.value, u)


def test_a_copy_normalizes_its_own_weight() -> None:
    norm = mk.NormalizedWeight(mk.Linear(4), mk.WeightNorm())
    outputs = norm(X[:, 0, 0])
    twin = pickle.loads(pickle.dumps(norm))
    norm.layer.w.assign(jnp.zeros([3, 4]) + 1)
    np.testing.assert_array_equal(twin(X[:, 0, 0]), outputs)


def test_a_layer_without_that_weight_is_refused_by_name() -> None:
    norm = mk.NormalizedWeight(mk.Bias(), mk.WeightNorm())
    with pytest.raises(
        ValueError, match=r"expects Bias\(\) to hold a variable 'w', got None: say by `weight` which of its"
    ):
        norm(X)
    assert mk.NormalizedWeight(mk.Embed(4, 3), mk.WeightNorm(), weight="embeddings")(np.arange(3)).shape == (3, 3)
