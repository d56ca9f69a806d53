"""Initializers draw what they say, in every dtype, and depend on nothing but seed, scope and count."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import modulekit as mk
from modulekit import initializers

DTYPES = [jnp.float32, jnp.bfloat16, jnp.float16]
DRAWS = 20_000
ERRORS = 5.0  # standard errors that a statistic may be off; a fair draw is so in one of two million cases
KOLMOGOROV = 2.7  # the distribution's distance times sqrt(n), exceeded in one of a million cases
CUT_DEVIATION = 0.87962566103423978

Cdf = Callable[[np.ndarray], np.ndarray]


@pytest.fixture(autouse=True)
def _start() -> None:
    mk.seed(0)


def draw(initializer: initializers.Initializer, shape: list[int], dtype: Any = jnp.float32) -> np.ndarray:
    """Draws, checks shape and dtype, and returns float64 values."""
    values = initializer(shape, dtype)
    assert isinstance(values, jax.Array)
    assert values.shape == tuple(shape)
    assert values.dtype == dtype
    return np.asarray(values).astype(np.float64)


def normal_cdf(mean: float, deviation: float) -> Cdf:
    phi = np.vectorize(lambda z: 0.5 * (1 + math.erf(z / math.sqrt(2))))
    return lambda x: phi((x - mean) / deviation)


def truncated_cdf(mean: float, deviation: float) -> Cdf:
    whole = normal_cdf(mean, deviation)
    low, high = whole(np.array([mean - 2 * deviation, mean + 2 * deviation]))
    return lambda x: np.clip((whole(x) - low) / (high - low), 0, 1)


def uniform_cdf(low: float, high: float) -> Cdf:
    return lambda x: np.clip((x - low) / (high - low), 0, 1)


def kolmogorov_distance(values: np.ndarray, cdf: Cdf) -> float:
    """The largest distance between the distribution function of the values and the analytic one."""
    values, expected = np.sort(values.ravel()), cdf(np.sort(values.ravel()))
    below = np.searchsorted(values, values, side="left") / values.size
    up_to = np.searchsorted(values, values, side="right") / values.size
    # Rounded values stand in steps: the analytic function has to pass through each step, within half of it.
    return float(np.abs(expected - (below + up_to) / 2).max())


LAWS = {
    "uniform": (initializers.RandomUniform(-1, 3), uniform_cdf(-1, 3), 1.0, 4 / math.sqrt(12)),
    "normal": (initializers.RandomNormal(0.5, 2.0), normal_cdf(0.5, 2.0), 0.5, 2.0),
    "truncated normal": (initializers.TruncatedNormal(0.5, 2.0), truncated_cdf(0.5, 2.0), 0.5, 2.0 * CUT_DEVIATION),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: jnp.dtype(d).name)
@pytest.mark.parametrize("law", LAWS)
def test_values_follow_the_distribution(law: str, dtype: Any) -> None:
    initializer, cdf, _, _ = LAWS[law]
    values = draw(initializer, [100, DRAWS // 100], dtype)
    assert kolmogorov_distance(values, cdf) < KOLMOGOROV / math.sqrt(DRAWS)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: jnp.dtype(d).name)
@pytest.mark.parametrize("law", LAWS)
def test_mean_and_deviation_are_those_asked_for(law: str, dtype: Any) -> None:
    initializer, _, mean, deviation = LAWS[law]
    values = draw(initializer, [10 * DRAWS], dtype)
    standard_error = deviation / math.sqrt(values.size)
    assert abs(values.mean() - mean) < ERRORS * standard_error
    # The error of a deviation is at most that of a normal distribution's: sigma / sqrt(2 n).
    assert abs(values.std() - deviation) < ERRORS * standard_error / math.sqrt(2)


@pytest.mark.parametrize("law", LAWS)
def test_quantiles(law: str) -> None:
    initializer, cdf, _, _ = LAWS[law]
    values = draw(initializer, [DRAWS])
    for share in np.linspace(0.05, 0.95, 19):
        error = math.sqrt(share * (1 - share) / DRAWS)
        assert abs(cdf(np.quantile(values, share)[None])[0] - share) < ERRORS * error


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: jnp.dtype(d).name)
def test_bounds_hold(dtype: Any) -> None:
    uniform = draw(initializers.RandomUniform(-1, 3), [DRAWS], dtype)
    assert uniform.min() >= -1
    assert uniform.max() < 3 if dtype == jnp.float32 else uniform.max() <= 3
    assert uniform.min() < -0.95 and uniform.max() > 2.95
    cut = draw(initializers.TruncatedNormal(0.0, 0.5), [DRAWS], dtype)
    assert np.abs(cut).max() <= 1.0


def test_neighbors_are_uncorrelated() -> None:
    values = draw(initializers.RandomNormal(), [100, DRAWS // 100])
    for left, right in ((values[1:], values[:-1]), (values[:, 1:], values[:, :-1])):
        assert abs(np.corrcoef(left.ravel(), right.ravel())[0, 1]) < ERRORS / math.sqrt(left.size)


def test_integers_are_uniform_below_the_upper_bound() -> None:
    values = draw(initializers.RandomUniform(-2, 3), [DRAWS], jnp.int32)
    found, counts = np.unique(values, return_counts=True)
    assert found.tolist() == [-2, -1, 0, 1, 2]
    assert np.abs(counts / DRAWS - 0.2).max() < ERRORS * math.sqrt(0.2 * 0.8 / DRAWS)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [([], (1, 1)), ([7], (7, 7)), ([3, 4], (3, 4)), ([5, 3, 8], (15, 40)), ([5, 5, 3, 8], (75, 200))],
)
def test_fans(shape: list[int], expected: tuple[int, int]) -> None:
    assert initializers.fans(shape) == expected


@pytest.mark.parametrize("distribution", ["truncated_normal", "normal", "uniform"])
@pytest.mark.parametrize("mode", ["fan_in", "fan_out", "fan_avg"])
@pytest.mark.parametrize("shape", [[50, 400], [3, 3, 20, 110]], ids=str)
def test_variance_scaling_has_the_variance_of_its_fan(shape: list[int], mode: str, distribution: str) -> None:
    fan_in, fan_out = math.prod(shape[:-1]), math.prod(shape[:-2]) * shape[-1]
    fan = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}[mode]
    deviation = math.sqrt(1.7 / fan)
    values = draw(initializers.VarianceScaling(1.7, mode, distribution), shape)
    assert abs(values.std() - deviation) < ERRORS * deviation / math.sqrt(2 * values.size)
    assert abs(values.mean()) < ERRORS * deviation / math.sqrt(values.size)
    cdf = {
        "truncated_normal": truncated_cdf(0.0, deviation / CUT_DEVIATION),
        "normal": normal_cdf(0.0, deviation),
        "uniform": uniform_cdf(-math.sqrt(3) * deviation, math.sqrt(3) * deviation),
    }[distribution]
    assert kolmogorov_distance(values, cdf) < KOLMOGOROV / math.sqrt(values.size)


@pytest.mark.parametrize("gain", [1.0, 2.5])
@pytest.mark.parametrize("shape", [[6, 6], [9, 4], [4, 9], [3, 3, 2, 5], [1, 1], [2, 1, 7]], ids=str)
def test_orthogonal(shape: list[int], gain: float) -> None:
    flat = draw(initializers.Orthogonal(gain), shape).reshape(-1, shape[-1])
    smaller = flat.T @ flat if flat.shape[0] >= flat.shape[1] else flat @ flat.T
    np.testing.assert_allclose(smaller, gain**2 * np.eye(len(smaller)), atol=1e-5 * gain**2)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=lambda d: jnp.dtype(d).name)
def test_orthogonal_in_half_precision(dtype: Any) -> None:
    values = draw(initializers.Orthogonal(), [8, 8], dtype)
    np.testing.assert_allclose(values.T @ values, np.eye(8), atol=8 * float(jnp.finfo(dtype).eps))


def test_orthogonal_is_uniform_over_rotations_and_reflections() -> None:
    matrices = np.stack([draw(initializers.Orthogonal(), [2, 2]) for _ in range(400)])
    angles = np.arctan2(matrices[:, 1, 0], matrices[:, 0, 0])
    assert kolmogorov_distance(angles, uniform_cdf(-math.pi, math.pi)) < KOLMOGOROV / math.sqrt(400)
    assert abs((np.linalg.det(matrices) > 0).mean() - 0.5) < ERRORS * 0.5 / math.sqrt(400)


@pytest.mark.parametrize("dtype", [*DTYPES, jnp.int32], ids=lambda d: jnp.dtype(d).name)
def test_constants(dtype: Any) -> None:
    assert (draw(initializers.Zeros(), [2, 3], dtype) == 0).all()
    assert (draw(initializers.Ones(), [2, 3], dtype) == 1).all()
    assert (draw(initializers.Constant(5), [2, 3], dtype) == 5).all()
    np.testing.assert_array_equal(draw(initializers.Identity(3), [2, 3], dtype), 3 * np.eye(2, 3))
    np.testing.assert_array_equal(draw(initializers.Identity(1), [4, 2, 2], dtype), np.stack([np.eye(2)] * 4))
    assert draw(initializers.Ones(), [], dtype).shape == ()


MATRIX_TEXT = "The tensor to initialize must be at least two-dimensional; it has shape [3]"
ERROR_CASES = [
    (lambda: initializers.Constant([1.0, 2.0]), TypeError, "Invalid type for value: <class 'list'> (expected scalar)."),
    (
        lambda: initializers.VarianceScaling(scale=0.0),
        ValueError,
        "`scale` must be positive float. Received: scale=0.0",
    ),
    (
        lambda: initializers.VarianceScaling(mode="fan"),
        ValueError,
        "Invalid `mode` argument: 'fan'; use 'fan_in', 'fan_out' or 'fan_avg'",
    ),
    (
        lambda: initializers.VarianceScaling(distribution="Gamma"),
        ValueError,
        "Invalid `distribution` argument: 'gamma'; use 'truncated_normal', 'normal' or 'uniform'",
    ),
    (lambda: initializers.Identity()([3], jnp.float32), ValueError, MATRIX_TEXT),
    (lambda: initializers.Orthogonal()([3], jnp.float32), ValueError, MATRIX_TEXT),
    (
        lambda: initializers.Zeros()([3], jnp.bool_),
        ValueError,
        "Expected integer or floating point type, got bool",
    ),
    *(
        (
            lambda make=make: make()([3, 3], jnp.int32),
            ValueError,
            "Expected floating point type, got int32",
        )
        for make in (
            initializers.RandomNormal,
            initializers.TruncatedNormal,
            initializers.Orthogonal,
            initializers.VarianceScaling,
        )
    ),
]


@pytest.mark.parametrize(("call", "kind", "text"), ERROR_CASES)
def test_errors_say_what_came(call: Callable[[], Any], kind: type[Exception], text: str) -> None:
    with pytest.raises(kind) as caught:
        call()
    assert str(caught.value) == text


def test_distribution_names_may_be_in_capitals() -> None:
    assert initializers.VarianceScaling(distribution="Uniform").distribution == "uniform"


def test_repr_shows_the_choices() -> None:
    assert repr(initializers.TruncatedNormal(stddev=0.5)) == "TruncatedNormal(mean=0.0, stddev=0.5)"
    assert repr(initializers.Zeros()) == "Zeros()"


RANDOM = {
    "uniform": initializers.RandomUniform(),
    "normal": initializers.RandomNormal(),
    "truncated": initializers.TruncatedNormal(),
    "orthogonal": initializers.Orthogonal(),
    "scaling": initializers.VarianceScaling(),
}
FIXED = {"zeros": initializers.Zeros(), "constant": initializers.Constant(2), "identity": initializers.Identity()}
TRACERS: dict[str, Callable[[Callable[[Any], Any]], Any]] = {
    "jax.jit": lambda f: jax.jit(f)(1.0),
    "jax.grad": lambda f: jax.grad(f)(1.0),
    "jax.vmap": lambda f: jax.vmap(f)(jnp.ones([3])),
    "jax.lax.scan": lambda f: jax.lax.scan(lambda c, x: (c, f(x)), 0, jnp.ones([3])),
    "jax.eval_shape": lambda f: jax.eval_shape(f, 1.0),
    "grad of jit": lambda f: jax.grad(jax.jit(f))(1.0),
    "mk.jit": lambda f: mk.jit(f)(1.0),
}


@pytest.mark.parametrize("name", [*RANDOM, *FIXED])
@pytest.mark.parametrize("transform", TRACERS)
def test_values_are_concrete_under_any_trace(transform: str, name: str) -> None:
    initializer = (RANDOM | FIXED)[name]
    expected = draw(initializer, [3, 2])
    mk.seed(0)
    kept: list[Any] = []

    def traced(x: Any) -> Any:
        kept.append(initializer([3, 2], jnp.float32))
        return 2.0 * x

    TRACERS[transform](traced)
    assert kept
    assert not any(isinstance(value, jax.core.Tracer) for value in kept)
    np.testing.assert_array_equal(np.asarray(kept[0]), expected.astype(np.float32))


scopes = st.lists(st.sampled_from(["a", "b", "a/c", ""]), min_size=1, max_size=8)


def first_weights(names: list[str], seed: int) -> dict[tuple[str, int], bytes]:
    """Draws in the given scopes in turn; returns each draw by scope and count."""
    mk.seed(seed)
    drawn: dict[tuple[str, int], bytes] = {}
    for name in names:
        count = sum(key[0] == name for key in drawn)
        if name:
            with mk.name_scope(name):
                value = initializers.RandomNormal()([4], jnp.float32)
        else:
            value = initializers.RandomNormal()([4], jnp.float32)
        drawn[name, count] = np.asarray(value).tobytes()
    return drawn


@settings(deadline=None, max_examples=25)
@given(names=scopes, seed=st.integers(0, 3), data=st.data())
def test_draws_depend_on_seed_scope_and_count_alone(names: list[str], seed: int, data: st.DataObject) -> None:
    drawn = first_weights(names, seed)
    assert len(set(drawn.values())) == len(drawn)
    assert first_weights(data.draw(st.permutations(names)), seed) == drawn
    assert not set(first_weights(names, seed + 1).values()) & set(drawn.values())


def test_another_layer_leaves_first_weights_as_they_are() -> None:
    def weights(names: list[str]) -> dict[str, np.ndarray]:
        mk.seed(3)
        layers = {name: mk.Linear(4, name=name) for name in names}
        for layer in layers.values():
            layer(jnp.ones([1, 5]))
        return {name: layer.w.numpy() for name, layer in layers.items()}

    few, many = weights(["first", "second"]), weights(["other", "second", "first"])
    for name, value in few.items():
        np.testing.assert_array_equal(many[name], value)
    assert (many["other"] != many["first"]).all()


def test_siblings_of_one_name_differ() -> None:
    layers = [mk.Linear(4) for _ in range(2)]
    for layer in layers:
        layer(jnp.ones([1, 5]))
    assert layers[0].w.name == layers[1].w.name
    assert (layers[0].w.numpy() != layers[1].w.numpy()).all()


def test_a_model_built_while_compiling_has_the_weights_of_one_built_eagerly() -> None:
    def weights(build: Callable[[mk.Module], Any]) -> list[np.ndarray]:
        mk.seed(5)
        model = mk.nets.MLP([4, 3])
        build(model)
        return [variable.numpy() for variable in model.variables]

    eager = weights(lambda model: model(jnp.ones([1, 5])))
    for build in (lambda m: mk.jit(m)(jnp.ones([1, 5])), lambda m: mk.build(m, [1, 5])):
        for ours, expected in zip(weights(build), eager, strict=True):
            np.testing.assert_array_equal(ours, expected)


def test_an_own_seed_stands_in_for_the_global_one() -> None:
    own = initializers.RandomNormal(seed=7)

    def pair() -> list[np.ndarray]:
        return [draw(own, [5]), draw(own, [5])]

    mk.seed(1)
    first = pair()
    mk.seed(2)
    second = pair()
    np.testing.assert_array_equal(first, second)
    assert (first[0] != first[1]).all()
    assert (draw(initializers.RandomNormal(seed=8), [5]) != first[0]).all()


ALL = (
    initializers.Zeros(),
    initializers.Ones(),
    initializers.Constant(2),
    initializers.RandomUniform(),
    initializers.RandomNormal(),
    initializers.TruncatedNormal(),
    initializers.VarianceScaling(),
)


@pytest.mark.parametrize("initializer", ALL, ids=repr)
@pytest.mark.parametrize("shape", [(2, 3), [2, 3], np.array([2, 3]), jnp.array([2, 3]), 6, np.int64(6)], ids=repr)
def test_a_shape_is_one_size_or_a_sequence_or_an_array_of_sizes(initializer: Any, shape: Any) -> None:
    assert initializer(shape, jnp.float32).shape == ((6,) if np.ndim(shape) == 0 else (2, 3))


@pytest.mark.parametrize(
    "initializer", [initializers.Constant(2.0), initializers.Constant(np.float32(2)), initializers.Identity()], ids=repr
)
def test_a_floating_point_number_is_not_cut_to_an_integer(initializer: Any) -> None:
    with pytest.raises(TypeError, match=r"a floating-point number, to int32: give an integer$"):
        initializer([2, 2], jnp.int32)
    assert initializer([2, 2], jnp.float16).dtype == jnp.float16
    assert initializers.Identity(2)([1, 1], jnp.int32).tolist() == [[2]]
