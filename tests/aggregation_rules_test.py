"""Laws of the rules by which several gradients become one, against their definitions in float64 NumPy."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scenarios.aggregation import clipped_mean, mean, median, trimmed_mean

Gradients = dict[str, np.ndarray]

RULES: dict[str, Callable[..., Any]] = {
    "mean": mean,
    "median": median,
    "trimmed": functools.partial(trimmed_mean, share=0.2),
    "clipped": functools.partial(clipped_mean, max_norm=1.5),
}
every_rule = pytest.mark.parametrize("rule", RULES)
sizes = st.lists(st.integers(1, 5), min_size=1, max_size=7)


def drawn(count: int, seed: int = 0) -> Gradients:
    rng = np.random.default_rng(seed)
    return {"w": rng.normal(size=[count, 3, 2]), "b": rng.normal(size=[count]), "none": np.zeros([count, 0])}


def repeated(gradients: Gradients, counts: list[int]) -> Gradients:
    """Returns each contribution as often as its weight says."""
    return {path: np.repeat(g, counts, axis=0) for path, g in gradients.items()}


def reference(rule: str, gradients: Gradients) -> Gradients:
    """Returns what a rule makes of contributions that count alike, sample by sample and number by number."""
    count = len(gradients["b"])
    if rule == "clipped":
        norms = [np.sqrt(sum(np.sum(g[i] ** 2) for g in gradients.values())) for i in range(count)]
        gradients = {p: np.stack([g[i] * min(1, 1.5 / norms[i]) for i in range(count)]) for p, g in gradients.items()}
    if rule in ("mean", "clipped"):
        return {path: sum(g[i] for i in range(count)) / count for path, g in gradients.items()}
    of_one = np.median if rule == "median" else functools.partial(cut_mean, share=0.2)
    return {path: np.apply_along_axis(of_one, 0, g) if g.size else g[0] for path, g in gradients.items()}


def cut_mean(values: np.ndarray, share: float) -> float:
    """Returns the integral of the quantile function from `share` to `1 - share`, over its length."""
    ranked, count, total = np.sort(values), len(values), 0.0
    for place, value in enumerate(ranked):
        total += value * max(0.0, min((place + 1) / count, 1 - share) - max(place / count, share))
    return total / (1 - 2 * share)


@every_rule
@settings(deadline=None, max_examples=40)
@given(counts=sizes, seed=st.integers(0, 1000))
def test_a_weight_counts_as_so_many_equal_contributions(rule: str, counts: list[int], seed: int) -> None:
    gradients = drawn(len(counts), seed)
    found = RULES[rule](gradients, np.array(counts, np.float64))
    expected = reference(rule, repeated(gradients, counts))
    for path, value in expected.items():
        np.testing.assert_allclose(found[path], value, rtol=1e-12, atol=1e-12, err_msg=path)
        assert found[path].shape == gradients[path].shape[1:]


@every_rule
@pytest.mark.parametrize("counts", [[1], [3, 3], [4, 1, 2, 3, 7]], ids=len)
def test_a_rule_gives_the_same_in_a_compiled_program(rule: str, counts: list[int]) -> None:
    gradients = drawn(len(counts))
    weights = np.array(counts, np.float64)
    narrow = jax.tree.map(lambda g: jnp.asarray(g, jnp.float32), gradients)
    found = jax.jit(RULES[rule])(narrow, jnp.asarray(weights, jnp.float32))
    expected = RULES[rule](jax.tree.map(lambda g: np.asarray(g, np.float64), narrow), weights)
    for path, value in expected.items():
        np.testing.assert_allclose(found[path], value, rtol=1e-5, atol=1e-6, err_msg=path)
        assert found[path].dtype == jnp.float32


@every_rule
@pytest.mark.parametrize("factor", [0.25, 8.0])
def test_only_the_ratios_of_weights_count(rule: str, factor: float) -> None:
    gradients, weights = drawn(5), np.array([4.0, 1.0, 2.0, 3.0, 7.0])
    found, scaled = (RULES[rule](gradients, w) for w in (weights, factor * weights))
    for path, value in found.items():
        np.testing.assert_array_equal(scaled[path], value, err_msg=path)


def test_the_median_is_numpys_where_all_count_alike() -> None:
    for count in range(1, 8):
        gradients = drawn(count, count)
        for path, value in median(gradients, np.full(count, 0.1)).items():
            np.testing.assert_array_equal(value, np.median(gradients[path], axis=0))


def test_nothing_cut_off_is_the_mean_and_nearly_all_of_it_the_median() -> None:
    gradients, weights = drawn(7), np.array([4.0, 1.0, 2.0, 3.0, 7.0, 1.0, 1.0])
    for path, value in mean(gradients, weights).items():
        np.testing.assert_allclose(trimmed_mean(gradients, weights, share=0.0)[path], value, rtol=1e-13)
    for path, value in median(gradients, weights).items():
        np.testing.assert_allclose(trimmed_mean(gradients, weights, share=0.4999)[path], value, rtol=1e-9)


@pytest.mark.parametrize("rule", ["median", "trimmed"])
def test_an_outlier_moves_no_coordinate_out_of_the_range_of_the_others(rule: str) -> None:
    gradients = drawn(6)
    for value in (1e9, -1e30):
        wrong = {path: np.concatenate([g, np.full([1, *g.shape[1:]], value)]) for path, g in gradients.items()}
        for path, found in RULES[rule](wrong, np.ones(7)).items():
            assert (found >= gradients[path].min(axis=0)).all() and (found <= gradients[path].max(axis=0)).all()


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_norms_neither_over_nor_underflow(size: float) -> None:
    gradients = {"w": np.array([[3.0, 4.0], [0.0, 0.0]], np.float32) * np.float32(size)}
    found = clipped_mean(gradients, np.ones(2, np.float32), max_norm=2.5 * size)["w"]
    np.testing.assert_allclose(found / size, [0.75, 1.0], rtol=1e-6)


def test_a_value_that_is_not_finite_is_not_hidden_by_clipping() -> None:
    for value in (np.inf, np.nan):
        gradients = {"w": np.array([[value, 1.0], [1.0, 1.0]])}
        with np.errstate(invalid="ignore"):
            assert not np.isfinite(clipped_mean(gradients, np.ones(2), max_norm=1.0)["w"]).all()


@pytest.mark.parametrize("share", [-0.1, 0.5, float("nan"), True, "0.1"])
def test_a_share_that_cannot_be_cut_off_is_refused(share: Any) -> None:
    with pytest.raises(ValueError, match=r"^share=.*: expected what is cut off at each end, a number in \[0, 0\.5\)$"):
        trimmed_mean(drawn(3), np.ones(3), share=share)


@pytest.mark.parametrize("max_norm", [0.0, -1, float("inf"), float("nan"), None])
def test_a_norm_that_is_none_is_refused(max_norm: Any) -> None:
    with pytest.raises(
        ValueError, match=r"^max_norm=.*: expected the largest norm of a contribution, a positive number"
    ):
        clipped_mean(drawn(3), np.ones(3), max_norm=max_norm)
