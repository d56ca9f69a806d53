"""Regularizers against their equations in float64."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import modulekit as mk

SHAPES = [(5,), (3, 4), (2, 3, 4)]
REFERENCES: dict[str, Callable[[np.ndarray], float]] = {
    "L1": lambda t: sum(abs(x) for x in t.ravel()),
    "L2": lambda t: sum(x * x for x in t.ravel()),
    "OffDiagonalOrthogonal": lambda t: sum(
        float(t.reshape(-1, t.shape[-1])[:, i] @ t.reshape(-1, t.shape[-1])[:, j]) ** 2
        for i in range(t.shape[-1])
        for j in range(t.shape[-1])
        if i != j
    ),
}
every_regularizer = pytest.mark.parametrize("name", REFERENCES)


def arrays(name: str) -> list[np.ndarray]:
    shapes = [shape for shape in SHAPES if len(shape) > 1 or name != "OffDiagonalOrthogonal"]
    return [np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32) for shape in shapes]


def make(name: str, scale: Any = 0.3) -> mk.regularizers.Regularizer:
    return getattr(mk.regularizers, name)(scale)


@every_regularizer
def test_a_penalty_is_the_scaled_sum_of_its_equation_over_all_arrays(name: str) -> None:
    each = arrays(name)
    expected = 0.3 * sum(REFERENCES[name](t.astype(np.float64)) for t in each)
    actual = make(name)([jnp.asarray(t) for t in each])
    assert actual.shape == ()
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


@every_regularizer
def test_variables_are_taken_as_they_are_and_get_gradients(name: str) -> None:
    variables = [mk.Variable(t, name="t") for t in arrays(name)]
    gradients = mk.grad(lambda: make(name)(variables), variables)()
    for variable, gradient in zip(variables, gradients, strict=True):
        at = variable.numpy().astype(np.float64)
        for index in np.ndindex(at.shape):
            step = np.zeros_like(at)
            step[index] = 1e-5
            quotient = 0.3 * (REFERENCES[name](at + step) - REFERENCES[name](at - step)) / 2e-5
            np.testing.assert_allclose(gradient[index], quotient, rtol=1e-4, atol=1e-4)


@every_regularizer
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16], ids=lambda d: jnp.dtype(d).name)
def test_the_dtype_is_that_of_the_arrays(name: str, dtype: Any) -> None:
    t = jnp.asarray(arrays(name)[-1], dtype)
    penalty = make(name)([t, t])
    assert penalty.dtype == dtype
    expected = 0.6 * REFERENCES[name](np.asarray(t).astype(np.float64))
    np.testing.assert_allclose(float(penalty), expected, rtol=16 * float(jnp.finfo(dtype).eps))


@every_regularizer
def test_no_arrays_have_the_penalty_zero(name: str) -> None:
    penalty = make(name)([])
    assert (penalty.shape, penalty.dtype, float(penalty)) == ((), jnp.float32, 0.0)
    model = mk.Dropout(0.5)
    assert float(make(name)(model.variables)) == 0.0


@every_regularizer
def test_compiled_equals_eager(name: str) -> None:
    each = [jnp.asarray(t) for t in arrays(name)]
    np.testing.assert_allclose(jax.jit(lambda ts: make(name)(ts))(each), make(name)(each), rtol=1e-6)


@every_regularizer
def test_text_and_errors(name: str) -> None:
    assert repr(make(name, 0.25)) == f"{name}(scale=0.25)"
    assert float(make(name, 0)([jnp.ones([2, 2])])) == 0
    with pytest.raises(ValueError) as caught:
        make(name, -0.1)
    assert str(caught.value) == "scale must be >=0. Received: scale=-0.1"


def test_a_vector_has_no_columns() -> None:
    with pytest.raises(ValueError) as caught:
        mk.regularizers.OffDiagonalOrthogonal(0.5)([jnp.ones([3])])
    assert str(caught.value) == (
        "OffDiagonalOrthogonal(scale=0.5) expects arrays of shape [..., columns], rank >= 2, got float32[3]"
    )


def test_orthogonal_columns_of_any_length_cost_nothing() -> None:
    w = 3 * mk.initializers.Orthogonal(seed=0)([2, 3, 4], jnp.float32)
    assert float(mk.regularizers.OffDiagonalOrthogonal(1.0)([w])) < 1e-9
    assert float(mk.regularizers.OffDiagonalOrthogonal(1.0)([w + 1])) > 1


def test_a_regularizer_of_ones_own() -> None:
    class Largest(mk.regularizers.Regularizer):
        def __call__(self, tensors: Any) -> Any:
            return max(jnp.max(t) for t in tensors)

    assert float(Largest()([jnp.ones([2]), 3 * jnp.ones([1])])) == 3
    with pytest.raises(TypeError, match="abstract"):
        mk.regularizers.Regularizer()  # type: ignore[abstract]


@pytest.mark.parametrize("kind", [mk.regularizers.L1, mk.regularizers.L2])
def test_none_is_nothing_and_an_iterator_is_what_it_yields(kind: Any) -> None:
    assert float(kind(0.5)(None)) == 0
    assert float(kind(0.5)(iter([]))) == 0
    assert float(kind(0.5)(jnp.ones([2]) for _ in range(2))) == 2
