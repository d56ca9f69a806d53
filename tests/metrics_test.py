"""Metrics: exact, the same for any batching, and usable in compiled code."""

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import modulekit as mk
from modulekit import metrics

# The last two operations, adding the compensation and dividing by the count, round once each.
EXACT = 2.0**-23


def batched(values: np.ndarray, cuts: list[int]) -> list[np.ndarray]:
    """The pieces between cuts, none of them empty."""
    edges = [0, *sorted(set(cuts)), len(values)]
    return [values[low:high] for low, high in itertools.pairwise(edges) if high > low]


def exact_mean(values: np.ndarray) -> float:
    return math.fsum(values.astype(np.float64)) / len(values)


@st.composite
def losses_and_cuts(draw: st.DrawFn) -> tuple[np.ndarray, list[int]]:
    """Up to 32 values as a loss has them, of very different sizes, and where to cut them into batches."""
    values = draw(st.lists(st.floats(2**-10, 2**20, width=32), min_size=1, max_size=32))
    return np.array(values, np.float32), draw(st.lists(st.integers(1, len(values)), max_size=8))


@settings(deadline=None, max_examples=80)
@given(losses_and_cuts())
def test_example_mean_is_exact_for_any_batches(case: tuple[np.ndarray, list[int]]) -> None:
    values, cuts = case
    mean = metrics.ExampleMean()
    for batch in batched(values, cuts):
        mean.update(batch)
    assert int(mean.count) == len(values)
    assert float(mean.value) == pytest.approx(exact_mean(values), rel=EXACT)


@pytest.mark.parametrize("batch_size", [1, 7, 1000, 50_000])
def test_example_mean_of_many_examples_is_exact(batch_size: int) -> None:
    values = np.random.default_rng(0).exponential(size=50_000).astype(np.float32)[: 4000 * batch_size]
    mean = metrics.ExampleMean()
    update = mk.jit(mean.update)
    for start in range(0, len(values), batch_size):
        update(values[start : start + batch_size])
    assert float(mean.value) == pytest.approx(exact_mean(values), rel=EXACT)


def test_one_large_example_does_not_hide_the_small_ones_of_its_batch() -> None:
    values = np.array([2.0**25, *[1.0] * 31], np.float32)
    mean = metrics.ExampleMean()
    mean.update(values)
    assert float(mean.value) == pytest.approx(exact_mean(values), rel=EXACT)


def test_the_compensated_sum_beats_the_naive_one() -> None:
    batches = np.random.default_rng(1).uniform(0.09, 0.11, size=(40_000, 2)).astype(np.float32)
    mean = metrics.ExampleMean()

    def step(naive: jax.Array, batch: jax.Array) -> tuple[jax.Array, None]:
        mean.update(batch)
        return naive + batch.sum(), None

    naive, _ = mk.scan(step, jnp.zeros([]), batches)
    expected = exact_mean(batches.ravel())
    assert float(mean.value) == pytest.approx(expected, rel=EXACT)
    assert abs(float(naive) / batches.size - expected) > 10 * EXACT * expected


def test_cancellation_leaves_the_small_part() -> None:
    mean = metrics.ExampleMean()
    for value in (1e8, 1.0, -1e8, 1.0):
        mean.update(jnp.array([value]))
    assert float(mean.value) == 0.5


def test_masked_examples_do_not_count() -> None:
    values = np.array([1.0, np.nan, 3.0, np.inf], np.float32)
    for mask in (np.array([True, False, True, False]), np.array([1, 0, 1, 0]), np.array([1.0, 0.0, 1.0, 0.0])):
        mean = metrics.ExampleMean()
        mean.update(values, mask)
        mean.update(values, np.zeros_like(mask))
        assert float(mean.value) == 2.0
        assert int(mean.count) == 2


@pytest.mark.parametrize("mask", [np.array([True]), np.array(True), np.ones([2, 3], bool), np.ones([2], bool)])
def test_a_mask_has_one_entry_per_example(mask: np.ndarray) -> None:
    mean = metrics.ExampleMean()
    with pytest.raises((ValueError, TypeError)):
        mean.update(jnp.ones([3]), mask)
    assert int(mean.count) == 0
    assert float(mean.total.value) == 0.0


@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_the_mean_of_an_infinite_loss_is_infinite(value: float) -> None:
    mean = metrics.ExampleMean()
    for batch in ([1.0], [value], [1.0]):
        mean.update(jnp.array(batch))
    assert float(mean.value) == value


def test_a_loss_that_is_no_number_shows() -> None:
    mean = metrics.ExampleMean()
    mean.update(jnp.array([1.0, np.nan]))
    mean.update(jnp.array([1.0]))
    assert math.isnan(float(mean.value))
    mean.reset()
    assert float(mean(jnp.array([4.0]))) == 4.0


@pytest.mark.parametrize("shape", [(), (2, 3)])
def test_example_mean_wants_one_value_per_example(shape: tuple[int, ...]) -> None:
    text = f"ExampleMean() expects one value per example, [batch]; got float32[{','.join(map(str, shape))}]"
    with pytest.raises(ValueError, match="expects") as caught:
        metrics.ExampleMean().update(jnp.ones(shape))
    assert str(caught.value) == text


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.int32, jnp.bool_])
def test_example_mean_sums_any_dtype_in_float32(dtype: Any) -> None:
    mean = metrics.ExampleMean()
    for _ in range(3):
        mean.update(jnp.ones([1000], dtype))
    mean.update(jnp.zeros([1000], dtype))
    assert float(mean.value) == 0.75
    assert mean.value.dtype == jnp.float32


def test_nothing_has_no_mean() -> None:
    assert math.isnan(float(metrics.ExampleMean().value))
    assert math.isnan(float(metrics.Accuracy().value))


@settings(deadline=None, max_examples=40)
@given(data=st.data(), size=st.integers(1, 24))
def test_accuracy_is_the_share_for_any_batches(data: st.DataObject, size: int) -> None:
    generator = np.random.default_rng(size)
    logits = generator.normal(size=(size, 4)).astype(np.float32)
    labels = generator.integers(4, size=size).astype(np.int32)
    cuts = data.draw(st.lists(st.integers(1, size), max_size=5))
    accuracy = metrics.Accuracy()
    for some_logits, some_labels in zip(batched(logits, cuts), batched(labels, cuts), strict=True):
        accuracy.update(some_logits, some_labels)
    hits = int((logits.argmax(axis=1) == labels).sum())
    assert float(accuracy.value) == np.float32(np.float32(hits) / np.float32(size))
    accuracy.reset()
    assert math.isnan(float(accuracy.value))


def test_accuracy_refuses_shapes_that_would_broadcast() -> None:
    with pytest.raises(ValueError, match="expected") as caught:
        metrics.Accuracy().update(jnp.ones([3, 4]), jnp.zeros([3, 1], jnp.int32))
    assert str(caught.value) == ("expected logits [batch, classes] and labels [batch], got float32[3,4] and int32[3,1]")


def test_sum_is_element_wise() -> None:
    total = mk.Sum()
    assert total(jnp.array([1.0, 2.0])).tolist() == [1.0, 2.0]
    assert total(jnp.array([3.0, 4.0])).tolist() == [4.0, 6.0]
    assert [(v.name, v.trainable) for v in total.variables] == [("sum/sum", False)]
    total.reset()
    assert total.value.tolist() == [0.0, 0.0]


def test_mean_counts_calls_and_not_examples() -> None:
    mean = mk.Mean()
    assert mean(jnp.array([1.0, 5.0])).tolist() == [1.0, 5.0]
    assert mean(jnp.array([3.0, 7.0])).tolist() == [2.0, 6.0]
    assert sorted(v.name for v in mean.variables) == ["mean/count", "mean/sum"]
    assert not mean.trainable_variables
    mean.reset()
    assert mean(jnp.array([8.0, 8.0])).tolist() == [8.0, 8.0]


def test_sum_keeps_the_dtype_of_the_first_value() -> None:
    total = mk.Sum()
    total(jnp.array([1, 2]))
    assert total.value.dtype == jnp.int32
    with pytest.raises(ValueError, match=r"^Sum\(\) accumulates values of shape \[2\]"):
        total(jnp.array([1, 2, 3]))


@pytest.mark.parametrize("kind", [mk.Mean, mk.Sum])
@pytest.mark.parametrize("verb", ["value", "reset"])
def test_there_is_no_value_before_the_first(kind: Any, verb: str) -> None:
    metric = kind()
    with pytest.raises(ValueError, match="no value yet") as caught:
        metric.value if verb == "value" else metric.reset()
    assert str(caught.value) == f"{kind.__name__}() has no value yet: call it, or its update, first"


def test_metrics_are_abstract_or_final() -> None:
    with pytest.raises(TypeError, match="abstract"):
        mk.Metric()  # type: ignore[abstract]


def run_all(metric_update: Any, batches: np.ndarray, how: str) -> None:
    if how == "eager":
        for batch in batches:
            metric_update(batch)
    elif how == "jit":
        compiled = mk.jit(metric_update)
        for batch in batches:
            compiled(batch)
    elif how == "scan":
        mk.scan(lambda carry, batch: (carry, metric_update(batch)), None, batches)
    else:
        mk.jit(lambda xs: mk.scan(lambda carry, batch: (carry, metric_update(batch)), None, xs)[1])(batches)


@pytest.mark.parametrize("how", ["jit", "scan", "scan in jit"])
@pytest.mark.parametrize("kind", [mk.Mean, mk.Sum, metrics.ExampleMean])
def test_metrics_in_compiled_code_equal_eager_ones(kind: Any, how: str) -> None:
    batches = np.random.default_rng(2).normal(size=(5, 3)).astype(np.float32)
    eager, compiled = kind(), kind()
    run_all(eager.update, batches, "eager")
    run_all(compiled.update, batches, how)
    np.testing.assert_allclose(compiled.value, eager.value, rtol=1e-6)
    assert all(isinstance(v.value, jax.Array) and not isinstance(v.value, jax.core.Tracer) for v in compiled.variables)
    mk.jit(compiled.reset)()
    assert all((v.numpy() == 0).all() for v in compiled.variables)


@pytest.mark.parametrize("how", ["jit", "scan", "scan in jit"])
def test_accuracy_and_masks_in_compiled_code(how: str) -> None:
    generator = np.random.default_rng(3)
    logits = generator.normal(size=(5, 4, 3)).astype(np.float32)
    labels = generator.integers(3, size=(5, 4)).astype(np.int32)
    accuracy, masked = metrics.Accuracy(), metrics.ExampleMean()

    def update(packed: jax.Array) -> None:
        some_labels = packed[:, 3].astype(jnp.int32)
        accuracy.update(packed[:, :3], some_labels)
        masked.update(packed[:, 0], mask=some_labels > 0)

    run_all(update, np.concatenate([logits, labels[..., None]], axis=-1).astype(np.float32), how)
    assert float(accuracy.value) == pytest.approx((logits.argmax(-1) == labels).mean(), rel=EXACT)
    assert float(masked.value) == pytest.approx(logits[..., 0][labels > 0].astype(np.float64).mean(), rel=1e-6)


def test_a_call_inside_jit_returns_the_value_so_far() -> None:
    mean = metrics.ExampleMean()
    compiled = mk.jit(lambda x: mean(x))
    assert [float(compiled(jnp.array([v]))) for v in (1.0, 3.0, 8.0)] == [1.0, 2.0, 4.0]


@pytest.mark.parametrize("kind", [mk.Sum, mk.Mean])
@pytest.mark.parametrize("value", [1.0, [[1.0, 2.0]], [1.0]], ids=repr)
def test_a_value_that_would_broadcast_is_refused_and_not_counted(kind: Any, value: Any) -> None:
    metric = kind()
    metric(jnp.array([1.0, 2.0]))
    with pytest.raises(ValueError, match=r"accumulates values of shape \[2\], that of the first one, got float32\["):
        metric(jnp.array(value))
    assert metric.value.tolist() == [1.0, 2.0]
