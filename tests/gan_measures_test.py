"""What generated examples are worth, against SciPy and plain loops; and a collapse is told from a bad fit."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st
from references import normal
from scenario_catalogue import Case

import modulekit as mk
import scenarios
from scenarios.gan import PrecisionRecall, RingOfGaussians, frechet_distance, precision_and_recall
from scenarios.gan.sample_quality import collapse_alarms

Array = np.ndarray


def cloud(size: int, features: int, seed: int, scale: float = 1.0) -> Array:
    generator = np.random.default_rng(seed)
    return scale * generator.normal(size=(size, features)) @ generator.normal(
        size=(features, features)
    ) + generator.normal(size=features)


def by_matrix_root(a: Array, b: Array) -> float:
    """The equation as it is written."""
    covariances = [np.cov(x, rowvar=False) for x in (a, b)]
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1])
    return float(np.square(a.mean(0) - b.mean(0)).sum() + np.trace(covariances[0] + covariances[1] - 2 * root.real))


@settings(deadline=None, max_examples=30)
@given(
    features=st.integers(2, 9), sizes=st.tuples(st.integers(20, 60), st.integers(20, 60)), seed=st.integers(0, 10**6),
    scale=st.floats(0.1, 10),
)  # fmt: skip
def test_the_distance_is_that_of_scipys_matrix_root(features: int, sizes: Any, seed: int, scale: float) -> None:
    a, b = cloud(sizes[0], features, seed), cloud(sizes[1], features, seed + 1, scale)
    np.testing.assert_allclose(frechet_distance(a, b), by_matrix_root(a, b), rtol=1e-8, atol=1e-8)


@settings(deadline=None, max_examples=20)
@given(features=st.integers(1, 12), size=st.integers(2, 20), seed=st.integers(0, 10**6))
def test_a_set_has_no_distance_to_itself_and_a_shift_that_of_its_length(features: int, size: int, seed: int) -> None:
    a, shift = cloud(size, features, seed), np.random.default_rng(seed).normal(size=features)
    assert frechet_distance(a, a) < 1e-10
    np.testing.assert_allclose(frechet_distance(a, a + shift), np.square(shift).sum(), rtol=1e-8)
    b = cloud(size + 3, features, seed + 1)
    np.testing.assert_allclose(frechet_distance(a, b), frechet_distance(b, a), rtol=1e-8)


def test_fewer_examples_than_features_are_no_difficulty() -> None:
    a, b = cloud(8, 30, 0), cloud(9, 30, 1)
    np.testing.assert_allclose(frechet_distance(a, b), by_matrix_root(a, b), rtol=1e-5)


def by_loops(real: Array, fake: Array, neighbors: int) -> PrecisionRecall:
    """The equations, one pair of examples at a time."""

    def distance(x: Array, y: Array) -> float:
        return float(np.sqrt(np.square(x - y).sum()))

    def covered(points: Array, examples: Array) -> float:
        radii = [
            sorted(distance(x, y) for other, y in enumerate(examples) if other != own)[neighbors - 1]
            for own, x in enumerate(examples)
        ]
        return float(np.mean([any(distance(p, x) <= r for x, r in zip(examples, radii, strict=True)) for p in points]))

    return PrecisionRecall(covered(fake, real), covered(real, fake))


@settings(deadline=None, max_examples=15)
@given(
    sizes=st.tuples(st.integers(5, 15), st.integers(5, 15)), neighbors=st.integers(1, 4), seed=st.integers(0, 10**6),
    far=st.sampled_from([0.0, 1e4]),
)  # fmt: skip
def test_precision_and_recall_are_the_papers(sizes: Any, neighbors: int, seed: int, far: float) -> None:
    real, fake = cloud(sizes[0], 2, seed) + far, cloud(sizes[1], 2, seed + 1) + far
    assert precision_and_recall(real, fake, neighbors) == by_loops(real, fake, neighbors)


def test_many_examples_are_compared_block_by_block() -> None:
    real, fake = normal(1300, 2, seed=0), normal(700, 2, seed=1) + 1
    squares = np.square(fake[:, None].astype(np.float64) - real).sum(axis=2)
    among = np.sqrt(np.square(real[:, None].astype(np.float64) - real).sum(axis=2))
    radii = np.sort(among, axis=1)[:, 3]  # the first is its own
    expected = (np.sqrt(squares) <= radii).any(axis=1).mean()
    assert precision_and_recall(real, fake).precision == expected


def test_precision_and_recall_tell_a_collapse_from_noise() -> None:
    real = cloud(300, 2, 0)
    collapsed, noise = np.repeat(real[:1], 300, axis=0) + 1e-6 * cloud(300, 2, 1), 100 * cloud(300, 2, 2)
    assert precision_and_recall(real, collapsed) > (0.9, 0) and precision_and_recall(real, collapsed).recall < 0.05
    assert precision_and_recall(real, noise).precision < 0.2


@pytest.mark.parametrize("measure", [frechet_distance, precision_and_recall])
def test_features_that_do_not_fit_are_refused(measure: Any) -> None:
    with pytest.raises(
        ValueError, match=r"^expected two sets of features \[examples, features\], got \[5, 2\] and \[5, 3\]: "
    ):
        measure(np.zeros([5, 2]), np.zeros([5, 3]))
    least = 2 if measure is frechet_distance else 4
    with pytest.raises(ValueError, match=rf"^expected {least} examples or more of each kind, got 1 and 5$"):
        measure(np.zeros([1, 2]), np.zeros([5, 2]))


def test_no_neighbor_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^neighbors=0 is below 1$"):
        precision_and_recall(np.zeros([5, 2]), np.zeros([5, 2]), neighbors=0)


# The ring.

RING = RingOfGaussians()


def test_points_of_the_ring_are_around_its_modes_with_its_deviation() -> None:
    points = RING.sample(40_000, seed=3)
    assert points.dtype == np.float32
    np.testing.assert_array_equal(points, RING.sample(40_000, seed=3))
    assert (points != RING.sample(40_000, seed=4)).any()
    np.testing.assert_allclose(np.linalg.norm(RING.centers, axis=1), 2.0)
    offsets = points[:, None] - RING.centers
    nearest = np.square(offsets).sum(axis=2).argmin(axis=1)
    np.testing.assert_allclose(np.bincount(nearest), 5000, rtol=0.06)
    around = offsets[np.arange(len(points)), nearest]
    np.testing.assert_allclose(around.std(axis=0), 0.02, rtol=0.02)
    coverage = RING.mode_coverage(points)
    assert (coverage.covered, coverage.visited) == (8, 8)
    assert abs(coverage.high_quality - (1 - np.exp(-4.5))) < 0.002  # of a normal distribution in the plane


@pytest.mark.parametrize("kept", [1, 3, 8])
def test_modes_are_counted_that_have_enough_points(kept: int) -> None:
    points = RING.centers[np.arange(800) % kept]
    assert RING.mode_coverage(points) == (kept, kept, 1.0)
    halfway = points * 0.5
    assert RING.mode_coverage(halfway) == (0, kept, 0.0)
    stray = np.concatenate([points, RING.centers[-1:].repeat(9, axis=0)])  # a tenth of a fair share is 10.1
    assert RING.mode_coverage(stray).covered == kept
    assert RING.mode_coverage(stray, least=0.05).covered == min(kept + 1, 8)


def test_what_is_no_ring_and_what_are_no_points_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"^RingOfGaussians\(modes=8, radius=2\.0, std=0\.0\): modes must be 1 or more, "
    ):
        RingOfGaussians(std=0.0)
    with pytest.raises(ValueError, match=re.escape("expected points [points, 2], got [5, 3]")):
        RING.mode_coverage(np.zeros([5, 3]))


# In a run.


class Fixed(mk.Module):
    """A generator whose examples are places on the ring: `reached` of them, by the angle of the latent vector."""

    def __init__(self, reached: int, radius: float = 2.0) -> None:
        super().__init__()
        self.reached, self.radius = reached, radius
        self.scale = mk.Variable(1.0, name="scale")

    def __call__(self, z: Any) -> Any:
        place = jnp.floor((jnp.arctan2(z[:, 0], z[:, 1]) / (2 * jnp.pi) + 0.5) * self.reached)
        angle = 2 * jnp.pi * place / 8
        return self.scale * self.radius * jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=1)


def on_the_ring(generator: Any, **settings: Any) -> Case:
    parts = {
        "generator": generator, "discriminator": mk.Linear(1),
        "optimizer_g": mk.optimizers.SGD(0.0), "optimizer_d": mk.optimizers.SGD(0.0),
    }  # fmt: skip
    common = {"steps": 0, "batch_size": 4, "latent_size": 2, "samples": 400, "ring": RING, "progress": False}
    return Case(scenarios.GAN, {**common, **settings}, parts, RING.sample(60), RING.sample(500, seed=1))


def test_a_generator_that_has_collapsed_raises_the_alarm_and_a_good_one_does_not() -> None:
    collapsed = on_the_ring(Fixed(3)).run()
    assert list(collapsed.alarms) == [(0, "the generator has collapsed: its points are around 3 of 8 modes")]
    assert collapsed.metrics["modes_covered"] == 3
    assert collapsed.metrics["high_quality"] == 1
    good = on_the_ring(Fixed(8)).run()
    assert (list(good.alarms), good.metrics["modes_covered"]) == ([], 8)
    aside = on_the_ring(Fixed(8, radius=1.0)).run()
    assert (list(aside.alarms), aside.metrics["modes_covered"], aside.metrics["modes_visited"]) == ([], 0, 8)


def test_without_a_ring_a_collapse_is_seen_by_the_spread() -> None:
    message = "the generator has collapsed: its examples spread by 0, those of the data by 2"
    ((_, found),) = on_the_ring(Fixed(1), ring=None).run().alarms
    assert found == message
    assert list(on_the_ring(Fixed(8), ring=None).run().alarms) == []


def test_the_averaged_generator_has_alarms_of_its_own() -> None:
    metrics = {"spread": 1.0, "real_spread": 1.0, "ema_spread": 0.01, "ema_real_spread": 1.0}
    (alarm,) = collapse_alarms(metrics, None)
    assert alarm.startswith("the averaged generator has collapsed: ")
    assert collapse_alarms({"samples": 5.0, "spread": 0.0}, None) == [], "without data nothing can be said"


class Features(mk.Module):
    """Features of points, of a model that must be told that it does not train."""

    def __call__(self, x: Any, is_training: bool) -> Any:
        assert not is_training
        return jnp.concatenate([x, x**2, x.prod(axis=1, keepdims=True)], axis=1)


def test_an_evaluation_compares_features_of_as_many_real_and_generated_examples() -> None:
    case = on_the_ring(mk.nets.MLP([6, 2]), features=Features(), feature_name="products", eval_batch_size=64, seed=3)
    result = case.run(ema_decay=0.5)
    chosen = case.eval_data[np.arange(400) * 500 // 400]
    key = jax.random.fold_in(jax.random.key(3), 2**31 - 1)
    fake = np.asarray(case.parts["generator"](jax.random.normal(key, (400, 2))))
    seen = [np.concatenate([x, x**2, x.prod(axis=1, keepdims=True)], axis=1) for x in (chosen, fake)]
    np.testing.assert_allclose(result.metrics["frechet_distance"], by_matrix_root(*map(np.float64, seen)), rtol=1e-3)
    expected = precision_and_recall(*seen)
    np.testing.assert_allclose([result.metrics["precision"], result.metrics["recall"]], expected, atol=0.01)
    assert result.metrics["samples"] == 400
    assert result.metrics.keys() >= {"ema_frechet_distance", "ema_precision", "ema_recall", "ema_modes_covered"}


def test_fewer_examples_than_samples_are_all_compared() -> None:
    case = on_the_ring(Fixed(8), samples=2000)
    assert case.run().metrics["samples"] == 500
    without = case.replace(eval_data=None).run()
    assert without.metrics["samples"] == 2000
    assert "real_spread" not in without.metrics
