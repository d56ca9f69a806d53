"""Laws of clipping: optax's arithmetic, what counts in the norm, and what is not finite stays so."""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import modulekit as mk
from modulekit import optimizers

SHAPES = [(4, 3), (3,), (2, 4)]


class Keep(mk.Optimizer):
    """Keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.taken: list[Any] = []

    def apply(self, updates: Any, parameters: Any) -> None:
        self.taken = list(updates)


def arrays(seed: int, scale: float = 1.0, dtype: Any = np.float32) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [(scale * generator.normal(size=shape)).astype(dtype) for shape in SHAPES]


def clipped(updates: list[Any], *, frozen: int | None = None, **limits: Any) -> list[Any]:
    """Returns what an optimizer takes."""
    parameters = [mk.Variable(jnp.zeros_like(u) if u is not None else jnp.zeros([2]), name="p") for u in updates]
    if frozen is not None:
        parameters[frozen].freeze()
    keep = Keep()
    optimizers.Clipped(keep, **limits).apply([u if u is None else jnp.asarray(u) for u in updates], parameters)
    return [None if u is None else np.asarray(u) for u in keep.taken]


def norm_of(updates: list[np.ndarray]) -> float:
    return math.sqrt(sum(float((u.astype(np.float64) ** 2).sum()) for u in updates))


@pytest.mark.parametrize("scale", [1e-3, 0.2, 1.0, 1e6])
def test_clipping_is_its_equation_and_that_of_optax(scale: float) -> None:
    for seed in range(3):
        updates = arrays(seed, scale)
        expected, _ = optax.clip_by_global_norm(1.5).update(list(map(jnp.asarray, updates)), optax.EmptyState())
        by_norm = clipped(updates, max_norm=1.5)
        factor = min(1.0, 1.5 / norm_of(updates))
        for ours, theirs, update in zip(by_norm, expected, updates, strict=True):
            np.testing.assert_array_equal(ours, theirs)
            np.testing.assert_allclose(ours, update.astype(np.float64) * factor, rtol=1e-6)
        for ours, update in zip(clipped(updates, max_value=0.4), updates, strict=True):
            np.testing.assert_array_equal(ours, np.clip(update, np.float32(-0.4), np.float32(0.4)))
        both = clipped(updates, max_value=0.4, max_norm=0.5)
        for ours, then in zip(both, clipped(clipped(updates, max_value=0.4), max_norm=0.5), strict=True):
            np.testing.assert_array_equal(ours, then)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "jit"])
def test_training_with_clipping_is_that_of_optax(compiled: bool) -> None:
    ours, theirs = ([mk.Variable(a, name="p") for a in arrays(0)] for _ in range(2))
    chained = optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(0.1, momentum=0.9))
    first, second = optimizers.Clipped(optimizers.Momentum(0.1, 0.9), max_norm=0.5), optimizers.Optax(chained)
    steps = [lambda g: first.apply(g, ours), lambda g: second.apply(g, theirs)]
    for seed in range(1, 6):
        for step in map(mk.jit, steps) if compiled else steps:
            step(list(map(jnp.asarray, arrays(seed))))
    for left, right in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(left.numpy(), right.numpy(), rtol=2e-6, atol=1e-7)


@given(
    st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=6),
    st.floats(1e-3, 1e3),
    st.integers(-120, 120),
)
@settings(max_examples=60, deadline=None)
def test_the_norm_is_at_most_the_largest_and_the_direction_stays(
    values: list[float], largest: float, power: int
) -> None:
    update = np.array(values, np.float32)
    update = update * np.float32(2.0**power)
    (ours,) = clipped([update], max_norm=largest)
    exact = update.astype(np.float64)
    norm = math.sqrt(float((exact**2).sum()))
    assert norm_of([ours]) <= max(norm, largest) * (1 + 1e-5)
    if norm > largest * (1 + 1e-5):
        np.testing.assert_allclose(ours, exact * (largest / norm), rtol=1e-5, atol=1e-37)
    elif norm < largest * (1 - 1e-5):
        np.testing.assert_array_equal(ours, update)


def test_squares_that_would_overflow_are_clipped_all_the_same() -> None:
    for largest in (1e25, 3e38):
        (ours,) = clipped([np.array([largest, -largest], np.float32)], max_norm=1.0)
        np.testing.assert_allclose(ours, [math.sqrt(0.5), -math.sqrt(0.5)], rtol=1e-6)
    (half,) = clipped([np.full([4], 6e4, np.float16)], max_norm=1.0)
    assert half.dtype == np.float16
    np.testing.assert_allclose(half, np.full([4], 0.5), rtol=1e-3)


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("limits", [{"max_norm": 1.0}, {"max_value": 0.5}, {"max_norm": 1.0, "max_value": 0.5}])
def test_what_is_not_finite_stays_where_it_is(limits: dict[str, float], bad: float) -> None:
    updates = arrays(1)
    updates[1][2] = bad
    ours = clipped(updates, **limits)
    np.testing.assert_array_equal(ours[1][2], np.float32(bad))
    assert np.isfinite(ours[0]).all()
    assert ours[0].any()
    if "max_value" not in limits:
        for left, right in zip(ours, updates, strict=True):
            np.testing.assert_array_equal(left, right)


def test_none_and_frozen_parameters_are_not_in_the_norm() -> None:
    updates = arrays(2)
    alone = clipped([updates[0]], max_norm=0.5)
    with_none = clipped([updates[0], None], max_norm=0.5)
    assert with_none[1] is None
    np.testing.assert_array_equal(with_none[0], alone[0])
    with_frozen = clipped([updates[0], 1e3 * updates[1]], frozen=1, max_norm=0.5)
    np.testing.assert_array_equal(with_frozen[0], alone[0])
    all_frozen = clipped([updates[0]], frozen=0, max_norm=0.5)
    np.testing.assert_array_equal(all_frozen[0], updates[0])


def test_zeros_and_empty_arrays_stay_what_they_are() -> None:
    zeros, empty = clipped([np.zeros([3], np.float32), np.zeros([0, 2], np.float32)], max_norm=1.0)
    assert not zeros.any()
    assert empty.shape == (0, 2)


def test_a_limit_may_be_a_variable() -> None:
    limit = mk.Variable(1.0, trainable=False, name="limit")
    w, sgd = mk.Variable(jnp.zeros([2]), name="w"), optimizers.SGD(1.0)
    clipping = optimizers.Clipped(sgd, max_norm=limit)
    step = mk.jit(lambda: clipping.apply([jnp.array([3.0, 4.0])], [w]), max_traces=1)
    for value, expected in ((1.0, [-0.6, -0.8]), (2.0, [-1.8, -2.4])):
        limit.assign(value)
        step()
        np.testing.assert_allclose(w.numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("limits", "text"),
    [
        ({}, "^Clipped needs max_norm, max_value, or both: there is nothing to clip by$"),
        ({"max_norm": 0}, "^max_norm=0: expected a number above 0$"),
        ({"max_value": -1.0}, r"^max_value=-1\.0: expected a number above 0$"),
        ({"max_value": math.nan}, "^max_value=nan: expected a number above 0$"),
    ],
)
def test_limits_that_make_no_sense_are_refused(limits: dict[str, float], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        optimizers.Clipped(optimizers.SGD(0.1), **limits)
