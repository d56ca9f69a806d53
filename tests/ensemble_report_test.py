"""The report card of an ensemble, against float64 NumPy and scikit-learn."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import accuracy_score, log_loss

import modulekit as mk
from scenarios.ensemble import EnsembleModel
from scenarios.evaluation import EnsembleReport, ensemble_report

MEMBERS, EXAMPLES, CLASSES = 3, 57, 4


class Given(mk.Module):
    """A model whose outputs are its inputs times a matrix, without variables."""

    def __init__(self, seed: int, scale: float = 1.0) -> None:
        super().__init__()
        self.matrix = scale * np.random.default_rng(seed).normal(size=[5, CLASSES]).astype(np.float32)

    def __call__(self, x: Any) -> Any:
        return x @ self.matrix


X = np.random.default_rng(9).normal(size=[EXAMPLES, 5]).astype(np.float32)
Y = np.random.default_rng(8).integers(0, CLASSES, EXAMPLES).astype(np.int32)
MODELS = [Given(seed, scale) for seed, scale in ((0, 1.0), (1, 2.0), (2, 0.5))]


def probabilities() -> np.ndarray:
    """Returns `[members, examples, classes]` in float64."""
    logits = np.stack([X.astype(np.float64) @ model.matrix for model in MODELS])
    p = np.exp(logits - logits.max(axis=2, keepdims=True))
    return p / p.sum(axis=2, keepdims=True)


def ece(p: np.ndarray, bins: int = 15) -> float:
    confidence, hit = p.max(axis=1), p.argmax(axis=1) == Y
    place = np.clip(np.ceil(confidence * bins) - 1, 0, bins - 1)
    return sum(abs(hit[place == b].sum() - confidence[place == b].sum()) for b in range(bins)) / EXAMPLES


def risk(p: np.ndarray) -> np.ndarray:
    """The error among the most confident 1, 2, ... examples, counted one by one."""
    order = np.argsort(-p.max(axis=1), kind="stable")
    wrong = (p.argmax(axis=1) != Y)[order]
    return np.array([wrong[: count + 1].mean() for count in range(EXAMPLES)])


def scores(p: np.ndarray) -> dict[str, float]:
    return {
        "accuracy": accuracy_score(Y, p.argmax(axis=1)),
        "nll": log_loss(Y, p, labels=range(CLASSES)),
        "brier": np.square(p - np.eye(CLASSES)[Y]).sum(axis=1).mean(),
        "ece": ece(p),
        "aurc": risk(p).mean(),
    }


@pytest.fixture(scope="module")
def report() -> EnsembleReport:
    return ensemble_report(EnsembleModel(MODELS), (X, Y), batch_size=20)


def test_scores_are_those_of_numpy_and_scikit_learn(report: EnsembleReport) -> None:
    p = probabilities()
    expected = {**{f"member {k}": scores(p[k]) for k in range(MEMBERS)}, "average": scores(p.mean(axis=0))}
    assert report.scores.keys() == expected.keys()
    for name, row in expected.items():
        for score, value in row.items():
            np.testing.assert_allclose(
                report.scores[name][score], value, rtol=2e-6, atol=2e-7, err_msg=f"{name} {score}"
            )


def test_gains_are_over_the_best_member(report: EnsembleReport) -> None:
    p = probabilities()
    members, average = [scores(p[k]) for k in range(MEMBERS)], scores(p.mean(axis=0))
    np.testing.assert_allclose(report.gibbs, np.mean([row["nll"] for row in members]), rtol=2e-6)
    for score in average:
        best = (max if score == "accuracy" else min)(row[score] for row in members)
        gain = average[score] - best if score == "accuracy" else best - average[score]
        np.testing.assert_allclose(report.gains[score], gain, atol=2e-6)
    assert report.scores["average"]["nll"] <= report.gibbs  # by Jensen's inequality


def test_diversity_is_that_of_the_docstring(report: EnsembleReport) -> None:
    p = probabilities()
    predicted = p.argmax(axis=2)
    for i in range(MEMBERS):
        for j in range(MEMBERS):
            np.testing.assert_allclose(report.disagreement[i, j], np.mean(predicted[i] != predicted[j]), rtol=1e-6)
            divergence = (p[i] * (np.log(p[i]) - np.log(p[j]))).sum(axis=1).mean()
            np.testing.assert_allclose(report.divergence[i, j], divergence, rtol=5e-6, atol=2e-7)
    mean = p.mean(axis=0)
    entropy = lambda q: -(q * np.log(q)).sum(axis=-1)  # noqa: E731
    np.testing.assert_allclose(report.mutual_information, (entropy(mean) - entropy(p).mean(axis=0)).mean(), rtol=1e-5)
    pairs = [(i, j) for i in range(MEMBERS) for j in range(MEMBERS) if i != j]
    np.testing.assert_allclose(report.mean_disagreement, np.mean([report.disagreement[pair] for pair in pairs]))
    np.testing.assert_allclose(report.mean_divergence, np.mean([report.divergence[pair] for pair in pairs]))


def test_the_curve_is_the_risk_of_the_average(report: EnsembleReport) -> None:
    np.testing.assert_allclose(report.risk, risk(probabilities().mean(axis=0)), atol=1e-7)
    np.testing.assert_allclose(report.coverage, np.arange(1, EXAMPLES + 1) / EXAMPLES)
    np.testing.assert_allclose(report.risk[-1], 1 - report.scores["average"]["accuracy"], rtol=1e-6)


def test_examples_of_the_same_confidence_count_as_their_mean() -> None:
    sure = lambda x: 100.0 * x  # noqa: E731
    x = np.eye(2, dtype=np.float32)[[0, 0, 0, 0]]
    for labels in ([0, 0, 1, 1], [1, 1, 0, 0]):
        found = ensemble_report([sure], (x, np.array(labels)))
        np.testing.assert_allclose(found.risk, 0.5)
        assert found.scores["average"]["aurc"] == 0.5


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_the_batch_size_changes_no_number(batch_size: int, report: EnsembleReport) -> None:
    other = ensemble_report(MODELS, (X, Y), batch_size=batch_size)
    for name, row in report.scores.items():
        assert other.scores[name] == pytest.approx(row, rel=1e-6, abs=1e-7)
    np.testing.assert_allclose(other.divergence, report.divergence, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(other.risk, report.risk, atol=1e-7)


def test_equal_members_have_no_diversity() -> None:
    found = ensemble_report([MODELS[0], Given(0)], (X, Y))
    assert found.mean_disagreement == 0
    assert abs(found.mean_divergence) < 1e-6 and abs(found.mutual_information) < 1e-6
    assert found.gains == pytest.approx(dict.fromkeys(found.gains, 0.0), abs=1e-6)


def test_a_class_that_is_impossible_makes_no_nan() -> None:
    without = lambda x: x[:, :2] + np.array([0.0, -np.inf], np.float32)  # noqa: E731
    found = ensemble_report([without, lambda x: x[:, :2]], (X, np.zeros(EXAMPLES, np.int32)))
    assert found.scores["member 0"]["nll"] == 0
    assert np.isfinite(found.mutual_information) and np.isfinite(found.divergence[0, 1])


def test_no_variable_changes_and_dropout_is_off() -> None:
    mk.seed(0)
    models = [mk.nets.MLP([6, CLASSES], dropout_rate=0.5) for _ in range(2)]
    first, again = (ensemble_report(EnsembleModel(models), (X, Y)) for _ in range(2))
    assert first.scores == again.scores


def test_a_report_is_saved_and_shown(report: EnsembleReport, tmp_path: Path) -> None:
    path = report.save(tmp_path)
    text = path.read_text(encoding="utf-8")
    assert path.name == "ensemble.md" and "![Accuracies" in text
    assert "| gain over the best member |" in str(report) and str(report).splitlines()[2] in text
    content = json.loads((tmp_path / "ensemble.json").read_text())
    assert content["scores"]["average"]["nll"] == report.scores["average"]["nll"]
    assert content["mean_disagreement"] == report.mean_disagreement and len(content["risk"]) == EXAMPLES
    assert np.asarray(Image.open(tmp_path / "ensemble.png").convert("L")).std() > 10
    without = report.save(tmp_path / "plain", plots=False)
    assert sorted(file.name for file in without.parent.iterdir()) == ["ensemble.json", "ensemble.md"]


def test_a_report_on_one_member_has_no_pairs() -> None:
    found = ensemble_report(MODELS[:1], (X, Y))
    assert np.isnan(found.mean_disagreement)
    assert "| mean_disagreement   | -" in str(found)
    assert json.loads(json.dumps(found.in_json(), allow_nan=False))["mean_disagreement"] is None


@pytest.mark.parametrize(
    ("models", "data", "text"),
    [
        ([], (X, Y), r"^there are no members to report on: give at least one model$"),
        (MODELS, X, r"^data must be a pair \(inputs, labels\), not ndarray$"),
        (MODELS, (X, X), r"needs logits \[batch, classes\] and integer labels .*; member 0 gives \[57, 4\], and the "),
        ([lambda x: x[:, 0]], (X, Y), r"; member 0 gives \[57\], and the labels are int32\[57\]$"),
        ([MODELS[0], lambda x: x], (X, Y), r"^member 1 gives \[57, 5\], and member 0 \[57, 4\]$"),
        (MODELS, (X, Y + 2), r"^label [45] at index"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(models: Any, data: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        ensemble_report(models, data)
