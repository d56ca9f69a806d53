"""Laws of every metric: no batching, padding, order, device or merge changes it; sums and counts are exact."""

import copy
import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from metric_rows import METRICS, MetricRow, of, padded, part, value

import modulekit as mk
from modulekit import metrics
from modulekit.metrics import ExampleMetric

SIZE = 15
every_metric = pytest.mark.parametrize("row", METRICS, ids=lambda row: row.name)
compiled_metric = pytest.mark.parametrize(
    "row", [row for row in METRICS if not row.make().collects], ids=lambda row: row.name
)


def examples(row: MetricRow, size: int = SIZE, seed: int = 0) -> tuple[Any, ...]:
    return row.examples(size, np.random.default_rng(seed))


def assert_same(metric: ExampleMetric, expected: ExampleMetric) -> None:
    np.testing.assert_allclose(value(metric), value(expected), rtol=1e-6, atol=1e-7)


def masked(row: MetricRow, arrays: tuple[Any, ...], mask: Any) -> ExampleMetric:
    metric = row.make()
    metric.update(*arrays, mask=mask)
    return metric


@every_metric
def test_batches_change_nothing(row: MetricRow) -> None:
    arrays = examples(row)
    expected = of(row, arrays, [0, SIZE])
    for batch_size in (1, 7):
        assert_same(of(row, arrays, [*range(0, SIZE, batch_size), SIZE]), expected)


@pytest.mark.parametrize("row", [row for row in METRICS if row.name in ("nll", "mse", "coverage", "roc of classes")])
def test_an_empty_batch_changes_nothing(row: MetricRow) -> None:
    arrays = examples(row)
    assert_same(of(row, arrays, [0, 0, SIZE]), of(row, arrays, [0, SIZE]))


@every_metric
@settings(deadline=None, max_examples=15)
@given(first=st.lists(st.booleans(), min_size=SIZE, max_size=SIZE), seed=st.integers(0, 3))
def test_parts_merge_into_the_whole(row: MetricRow, first: list[bool], seed: int) -> None:
    arrays, mask = examples(row, seed=seed), np.array(first)
    one, other = masked(row, arrays, mask), masked(row, arrays, ~mask)
    one.merge(other)
    assert_same(one, masked(row, arrays, np.ones(SIZE, bool)))
    assert_same(other, masked(row, arrays, ~mask))  # and the other part stays what it was


@every_metric
def test_the_order_of_merging_changes_nothing(row: MetricRow) -> None:
    arrays, place = examples(row), np.arange(SIZE) % 3
    merged = masked(row, arrays, place == 2)
    for which in (0, 1):
        merged.merge(masked(row, arrays, place == which))
    assert_same(merged, masked(row, arrays, np.ones(SIZE, bool)))


@every_metric
@pytest.mark.parametrize("filling", [0.0, np.nan, np.inf])
def test_what_only_fills_up_reaches_no_statistic(row: MetricRow, filling: float) -> None:
    arrays, mask = examples(row), np.arange(SIZE) < 10
    metric = masked(row, padded(part(arrays, 0, 10), SIZE, filling), mask)
    metric.update(*arrays, mask=np.zeros(SIZE, bool))
    assert_same(metric, masked(row, arrays, mask))


@every_metric
@pytest.mark.parametrize("kind", [bool, np.int32, np.float32])
def test_a_mask_may_lie_anywhere_and_be_of_any_kind(row: MetricRow, kind: type) -> None:
    arrays = examples(row)
    mask = np.arange(SIZE) % 3 > 0
    chosen = jax.tree.map(lambda array: array[mask], arrays)
    metric = row.make()
    metric.update(*arrays, mask=mask.astype(kind))
    assert_same(metric, of(row, chosen, [0, int(mask.sum())]))


@every_metric
def test_a_mask_of_another_size_is_refused_and_nothing_counted(row: MetricRow) -> None:
    metric = row.make()
    with pytest.raises(ValueError, match="mask") as caught:
        metric.update(*examples(row), mask=np.ones(3, bool))
    assert "3" in str(caught.value) and str(SIZE) in str(caught.value)
    assert not np.nansum(value(metric))


@every_metric
def test_nothing_seen_is_no_number_and_a_reset_metric_has_seen_nothing(row: MetricRow) -> None:
    metric = of(row, examples(row), [0, SIZE])
    expected = value(row.make())
    assert np.isnan(expected).all() or not expected.any()  # a confusion matrix has counts of 0
    metric.reset()
    np.testing.assert_array_equal(value(metric), expected)
    metric.update(*examples(row, seed=1))
    assert_same(metric, of(row, examples(row, seed=1), [0, SIZE]))


@compiled_metric
def test_compiled_updates_equal_eager_ones(row: MetricRow) -> None:
    arrays = examples(row)
    batches = jax.tree.map(lambda array: array.reshape(3, 5, *array.shape[1:]), arrays)
    compiled, scanned = row.make(), row.make()
    update = mk.jit(lambda batch, mask: compiled.update(*batch, mask=mask))
    for index in range(3):
        update(jax.tree.map(lambda array, i=index: array[i], batches), np.ones(5, bool))
    mk.jit(lambda all_of_them: mk.scan(lambda carry, b: (carry, scanned.update(*b)), None, all_of_them)[1])(batches)
    expected = of(row, arrays, [0, SIZE])
    for metric in (compiled, scanned):
        assert_same(metric, expected)
    np.testing.assert_allclose(mk.jit(lambda: compiled.value)(), value(expected), rtol=1e-6)


@every_metric
def test_copies_and_pickles_hold_what_was_seen_and_go_their_own_way(row: MetricRow) -> None:
    metric = of(row, examples(row), [0, SIZE])
    expected = value(metric)
    for twin in (copy.deepcopy(metric), pickle.loads(pickle.dumps(metric))):
        np.testing.assert_array_equal(value(twin), expected)
        twin.update(*examples(row, seed=5))
        again = of(row, examples(row), [0, SIZE])
        again.update(*examples(row, seed=5))
        assert_same(twin, again)
        np.testing.assert_array_equal(value(metric), expected)


@every_metric
def test_a_call_adds_and_tells(row: MetricRow) -> None:
    metric = row.make()
    told = metric(*examples(row), mask=np.ones(SIZE, bool))
    np.testing.assert_array_equal(np.asarray(told, np.float64), value(metric))


@every_metric
def test_no_metric_trains_or_touches_another_one(row: MetricRow) -> None:
    first, second = row.make(), row.make()
    first.update(*examples(row))
    assert not first.trainable_variables
    assert_same(second, row.make())


def test_only_metrics_of_one_kind_and_settings_merge() -> None:
    with pytest.raises(TypeError, match="same kind and settings") as caught:
        metrics.TopKAccuracy(3).merge(metrics.TopKAccuracy(2))
    assert str(caught.value) == (
        "TopKAccuracy(k=3) merges with a metric of the same kind and settings, not with TopKAccuracy(k=2)"
    )
    with pytest.raises(TypeError, match="not with BrierScore"):
        metrics.Accuracy().merge(metrics.BrierScore())


BEYOND_FLOAT32 = 2**24 + 3
CHUNK = 2**20


def test_more_examples_than_float32_can_count_are_counted_exactly() -> None:
    assert int(np.float32(BEYOND_FLOAT32)) != BEYOND_FLOAT32
    mean, confusion, calibration = metrics.ExampleMean(), metrics.ConfusionMatrix(2), metrics.CalibrationError(2)
    labels, logits = np.ones(CHUNK, np.int32), np.broadcast_to(np.array([0.0, 200.0], np.float32), (CHUNK, 2))

    @mk.jit
    def update(logits: jax.Array, labels: jax.Array, mask: jax.Array) -> None:
        mean.update(labels, mask)
        confusion.update(labels, labels, mask)
        calibration.update(logits, labels, mask)

    for start in range(0, BEYOND_FLOAT32, CHUNK):
        update(logits, labels, np.arange(CHUNK) < BEYOND_FLOAT32 - start)
    assert int(mean.count) == BEYOND_FLOAT32
    total = mean.total
    assert total.compensation is not None
    assert int(total.sum.numpy()) + int(total.compensation.numpy()) == BEYOND_FLOAT32
    assert confusion.value.tolist() == [[0, 0], [0, BEYOND_FLOAT32]]
    assert confusion.per_class().support.tolist() == [0, BEYOND_FLOAT32]
    assert calibration.curve().examples.tolist() == [0, BEYOND_FLOAT32]
    assert (float(mean.value), float(calibration.value)) == (1.0, 0.0)


def test_merging_counts_exactly_beyond_float32() -> None:
    first, second = metrics.Total([]), metrics.Total([])
    first.add(jnp.array([2.0**24]))
    second.add(jnp.array([3.0]))
    first.merge(second)
    first.merge(second)
    assert first.compensation is not None
    assert int(first.sum.numpy()) + int(first.compensation.numpy()) == 2**24 + 6


@settings(deadline=None, max_examples=40)
@given(st.lists(st.lists(st.floats(-(2.0**20), 2.0**20, width=32), min_size=2, max_size=2), min_size=1, max_size=20))
def test_a_total_is_the_exact_sum_rounded(rows: list[list[float]]) -> None:
    values = np.array(rows, np.float32)
    total = metrics.Total([2])
    for row in values:
        total.add(row[None])
    exact = values.astype(np.float64).sum(axis=0)
    scale = np.abs(values.astype(np.float64)).sum(axis=0)
    error = np.abs(np.asarray(total.value, np.float64) - exact)
    np.testing.assert_array_less(error, 2.0**-23 * np.abs(exact) + 2.0**-40 * scale + 1e-40)


@pytest.mark.parametrize("values", [np.ones([3]), np.ones([3, 4]), np.float32(1)], ids=lambda v: str(np.shape(v)))
def test_a_total_wants_its_shape(values: Any) -> None:
    with pytest.raises(ValueError, match="one array per example") as caught:
        metrics.Total([2]).add(values)
    assert str(caught.value).startswith("a total expects one array per example, [batch, 2]; got ")


def test_a_collection_keeps_rows_exactly_and_in_order() -> None:
    rows = metrics.Collection()
    assert rows.columns() == ()
    source = np.arange(3.0)
    rows.add(source, np.array([1, 2, 3]))
    source[:] = 0  # what the caller does with its arrays later changes nothing
    rows.add(np.array([7.0]), np.array([9]))
    assert [column.tolist() for column in rows.columns()] == [[0.0, 1.0, 2.0, 7.0], [1, 2, 3, 9]]


@pytest.mark.parametrize(
    ("columns", "mask", "text"),
    [
        ((np.ones(2), np.ones(3)), None, "one row per example, got (float64[2], float64[3])"),
        ((np.ones(2),), np.ones(3), "one row per example, got (float64[2],) and the mask float64[3]"),
        ((np.float64(1),), None, "one row per example"),
        ((np.ones([2, 5]),), None, "rows like the first ones, (float64[1,2],); got (float64[2,5],)"),
    ],
    ids=["other length", "other mask", "no axis", "other rows"],
)
def test_a_collection_refuses_what_is_no_row_per_example(columns: Any, mask: Any, text: str) -> None:
    rows = metrics.Collection()
    rows.add(np.ones([1, 2])) if "first" in text else None
    with pytest.raises(ValueError, match="collection expects") as caught:
        rows.add(*columns, mask=mask)
    assert text in str(caught.value)


def test_a_collection_inside_compiled_code_says_where_to_update() -> None:
    area = metrics.AreaUnderROC()
    with pytest.raises(TypeError, match=r"outside of mk\.jit") as caught:
        mk.jit(area.update)(jnp.ones(2), jnp.zeros(2, jnp.int32))
    assert "compiled code has none yet; got (float32[2], int32[2])" in str(caught.value)
    assert np.isnan(area.value)
