"""Metrics of classification against scikit-learn and the definitions, in float64."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

import modulekit as mk
from modulekit import metrics

SIZE, CLASSES = 200, 6
ALL = list(range(CLASSES))


def classified(seed: int = 0, classes: int = CLASSES) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns logits that often know the label, labels, and the probabilities in float64."""
    random = np.random.default_rng(seed)
    labels = random.integers(classes, size=SIZE).astype(np.int32)
    logits = (random.normal(size=(SIZE, classes)) + 2 * np.eye(classes)[labels]).astype(np.float32)
    return logits, labels, scipy.special.softmax(logits.astype(np.float64), axis=1)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_top_k_accuracy_is_scikit_learns(k: int) -> None:
    logits, labels, _ = classified()
    expected = sklearn.metrics.top_k_accuracy_score(labels, logits, k=k, labels=ALL)
    assert float(metrics.TopKAccuracy(k)(logits, labels)) == pytest.approx(expected, rel=1e-6)


def test_the_first_of_one_is_the_accuracy() -> None:
    logits, labels, _ = classified()
    assert float(metrics.TopKAccuracy(1)(logits, labels)) == float(metrics.Accuracy()(logits, labels))
    tied = np.zeros([2, 3], np.float32)  # of equal logits, the first is the largest
    assert (
        float(metrics.TopKAccuracy(1)(tied, np.array([0, 1])))
        == float(metrics.Accuracy()(tied, np.array([0, 1])))
        == 0.5
    )


def test_a_logit_that_is_no_number_hits_nothing() -> None:
    logits = np.array([[np.nan, np.nan, np.nan], [1.0, np.nan, 0.0]], np.float32)
    assert float(metrics.TopKAccuracy(2)(logits, np.array([0, 1]))) == 0.0


def test_nll_is_scikit_learns_log_loss() -> None:
    logits, labels, probabilities = classified()
    expected = sklearn.metrics.log_loss(labels, probabilities, labels=ALL)
    assert float(metrics.NegativeLogLikelihood()(logits, labels)) == pytest.approx(expected, rel=1e-6)


def test_nll_of_a_confident_error_is_finite() -> None:
    assert float(metrics.NegativeLogLikelihood()(np.array([[0.0, 1000.0]]), np.array([0]))) == 1000.0


def test_brier_score_is_scikit_learns_unhalved() -> None:
    logits, labels, probabilities = classified()
    expected = sklearn.metrics.brier_score_loss(labels, probabilities, labels=ALL, scale_by_half=False)
    assert float(metrics.BrierScore()(logits, labels)) == pytest.approx(expected, rel=1e-6)


def reference_curve(probabilities: np.ndarray, labels: np.ndarray, bins: int) -> list[tuple[int, float, float]]:
    """Returns (examples, confidence, accuracy) of each bin ((b - 1) / bins, b / bins], by the definition."""
    confidence, hits = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    rows = []
    for b in range(bins):
        inside = (confidence > b / bins) & (confidence <= (b + 1) / bins)
        if inside.any():
            rows.append((int(inside.sum()), confidence[inside].mean(), hits[inside].mean()))
        else:
            rows.append((0, np.nan, np.nan))
    return rows


@pytest.mark.parametrize("bins", [1, 4, 15])
def test_calibration_error_is_the_weighted_gap_of_its_curve(bins: int) -> None:
    logits, labels, probabilities = classified()
    rows = reference_curve(probabilities, labels, bins)
    error = metrics.CalibrationError(bins)
    expected = sum(n / SIZE * abs(accuracy - confidence) for n, confidence, accuracy in rows if n)
    assert float(error(logits, labels)) == pytest.approx(expected, abs=1e-6)
    np.testing.assert_allclose(np.array(error.curve(), np.float64).T, rows, rtol=1e-5)


def test_an_edge_belongs_to_the_bin_below_it() -> None:
    error = metrics.CalibrationError(2)
    error.update(np.array([[0.0, 0.0], [0.0, 100.0]]), np.array([0, 1]))  # confidences 1/2 and 1
    assert error.curve().examples.tolist() == [1, 1]


def test_a_confidence_that_is_no_number_shows() -> None:
    assert np.isnan(float(metrics.CalibrationError()(np.array([[0.0, np.nan]]), np.array([0]))))


def test_confusion_matrix_is_scikit_learns() -> None:
    logits, labels, probabilities = classified()
    predicted = probabilities.argmax(axis=1)
    expected = sklearn.metrics.confusion_matrix(labels, predicted, labels=ALL)
    assert metrics.ConfusionMatrix(CLASSES)(logits, labels).tolist() == expected.tolist()
    assert metrics.ConfusionMatrix(CLASSES)(predicted, labels).tolist() == expected.tolist()
    assert metrics.ConfusionMatrix(CLASSES)(logits, labels).dtype == jnp.int32


def test_the_class_table_is_scikit_learns_with_nothing_said_where_nothing_is_known() -> None:
    random = np.random.default_rng(1)
    labels, predicted = random.integers(0, 3, size=50), random.integers(1, 4, size=50)  # 3 not there, 0 not predicted
    confusion = metrics.ConfusionMatrix(5)  # and 4 neither
    confusion.update(predicted, labels)
    expected = sklearn.metrics.precision_recall_fscore_support(labels, predicted, labels=range(5), zero_division=np.nan)
    for found, wanted in zip(confusion.per_class(), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-12)
    table = confusion.per_class()
    assert np.isnan([table.precision[0], table.recall[3], table.f1[4]]).all()
    assert table.support.tolist()[3:] == [0, 0]


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_that_is_no_class_is_told_and_never_wrapped_around(label: int, compiled: bool) -> None:
    logits, labels = np.zeros([2, 3], np.float32), np.array([0, label])
    confusion, mask = metrics.ConfusionMatrix(3), np.array([True, False])
    update = mk.jit(confusion.update) if compiled else confusion.update
    update(logits, labels, mask)  # masked, it may be anything
    assert confusion.value.sum() == 1
    update(logits, labels)
    with pytest.raises(ValueError, match="outside of") as caught:
        _ = confusion.value
    assert str(caught.value).startswith("1 of 3 examples had a label or prediction outside of 0 .. 2")
    for metric in (metrics.NegativeLogLikelihood(), metrics.BrierScore(), metrics.TopKAccuracy(3)):
        (mk.jit(metric.update) if compiled else metric.update)(logits, labels, mask=mask)
        assert np.isfinite(float(metric.value))
        (mk.jit(metric.update) if compiled else metric.update)(logits, labels)
        assert np.isnan(float(metric.value)), metric


@pytest.mark.parametrize("seed", range(3))
def test_the_area_of_each_class_is_scikit_learns(seed: int) -> None:
    logits, labels, probabilities = classified(seed)
    area = metrics.AreaUnderROC()
    assert isinstance(area(logits, labels), float)
    assert area.value == pytest.approx(
        sklearn.metrics.roc_auc_score(labels, probabilities, multi_class="ovr", labels=ALL), abs=1e-12
    )
    for c, (false, true) in enumerate(area.curves()):
        expected = sklearn.metrics.roc_auc_score(labels == c, probabilities[:, c])
        assert area.per_class()[c] == pytest.approx(expected, abs=1e-12)
        assert np.trapezoid(true, false) == pytest.approx(expected, abs=1e-12)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=30))
def test_the_area_of_tied_scores_counts_pairs(rows: list[tuple[int, bool]]) -> None:
    scores, labels = np.array([s for s, _ in rows], np.float32), np.array([y for _, y in rows], np.int32)
    area = metrics.AreaUnderROC()
    found = area(scores, labels)
    pairs = [(a > b) + (a == b) / 2 for a in scores[labels == 1] for b in scores[labels == 0]]
    if not pairs:
        assert np.isnan(found)
        return
    assert found == pytest.approx(np.mean(pairs), abs=1e-12)
    ((false, true),) = area.curves()
    wanted = sklearn.metrics.roc_curve(labels, scores, drop_intermediate=False)
    np.testing.assert_allclose((false, true), wanted[:2], atol=1e-12)


def test_the_area_does_not_saturate_as_probabilities_do() -> None:
    logits = np.array([[0.0, 40.0], [0.0, 50.0], [0.0, 60.0]], np.float32)  # all of probability 1 in float32
    assert metrics.AreaUnderROC()(logits, np.array([0, 1, 1])) == 1.0


def test_classes_without_examples_have_no_area_and_the_mean_is_of_the_others() -> None:
    logits = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    area = metrics.AreaUnderROC()
    labels = np.arange(20) % 2
    area.update(logits, labels)
    areas = area.per_class()
    assert np.isnan(areas[2]) and np.isfinite(areas[:2]).all()
    assert area.value == pytest.approx(areas[:2].mean())
    assert np.isnan(area.curves()[2][1]).any()


def test_an_area_with_a_label_that_is_no_class_is_refused() -> None:
    area = metrics.AreaUnderROC()
    area.update(np.array([0.1, 0.2]), np.array([0, 2]))
    with pytest.raises(ValueError, match=r"label 2 is out of range: 2 classes are 0 \.\. 1; mask it"):
        _ = area.value


WRONG: list[tuple[Any, Any, str]] = [
    (np.ones([3, 4]), np.zeros([3, 1], int), "float64[3,4] and int64[3,1]"),
    (np.ones([3, 4]), np.zeros([2], int), "float64[3,4] and int64[2]"),
    (np.ones([3, 4]), np.zeros([3]), "float64[3,4] and float64[3]"),
    (np.ones([3, 4, 2]), np.zeros([3], int), "float64[3,4,2] and int64[3]"),
]


@pytest.mark.parametrize(("logits", "labels", "text"), WRONG, ids=[text for *_, text in WRONG])
def test_wrong_shapes_are_refused_by_name(logits: Any, labels: Any, text: str) -> None:
    kinds = [
        metrics.TopKAccuracy(2), metrics.NegativeLogLikelihood(), metrics.BrierScore(), metrics.CalibrationError(),
        metrics.ConfusionMatrix(4), metrics.AreaUnderROC(),
    ]  # fmt: skip
    narrow = text.replace("64", "32")
    for metric in kinds:
        with pytest.raises(ValueError, match="expect") as caught:
            metric.update(logits, labels)
        assert narrow in str(caught.value), metric


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: metrics.TopKAccuracy(0), "k=0: at least the largest logit must count"),
        (lambda: metrics.CalibrationError(0), "bins=0: confidences need at least one bin"),
        (lambda: metrics.ConfusionMatrix(0), "num_classes=0: expected at least one class"),
        (lambda: metrics.ConfusionMatrix(3).update(np.ones([2, 4]), np.zeros(2, int)), r"expects logits \[batch, 3\]"),
    ],
)
def test_settings_out_of_range_are_refused(make: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make()
