"""Laws of evaluation: exact means over all examples, whatever the batch size."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from scenario_catalogue import (
    EVALUATED,
    ROW,
    STEPS,
    Case,
    ScenarioRow,
    assert_bitwise,
    log_lines,
    name_of,
    uninterrupted,
)

import modulekit as mk
import scenarios
from modulekit.data import Arrays
from scenarios.base.evaluating import Evaluator

SMALL = 12  # steps: enough to be away from the first weights


SURE = [row for row in EVALUATED if row.name != "all_methods"]  # whose evaluation draws random numbers


@pytest.mark.parametrize("row", SURE, ids=name_of)
def test_the_batch_size_of_an_evaluation_changes_no_metric(row: ScenarioRow) -> None:
    case = row.fresh()
    expected = case.run(steps=SMALL, eval_batch_size=1000).metrics  # all at once
    trained = case.state()
    size = Arrays(case.eval_data).size
    for eval_batch_size in (1, 7, 64, size):
        metrics = case.run(steps=0, eval_batch_size=eval_batch_size).metrics
        assert metrics.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_allclose(metrics[name], value, rtol=1e-6, atol=1e-6, err_msg=name)
    assert_bitwise(case.state(), trained)


def weights(case: Case) -> dict[str, np.ndarray]:
    """Returns what was trained, in float64."""
    return {path: value.astype(np.float64) for path, value in case.state().items()}


def classification_losses(case: Case) -> np.ndarray:
    w, (x, labels) = weights(case), case.eval_data
    hidden = np.maximum(x.astype(np.float64) @ w["model.layers[0].w"] + w["model.layers[0].b"], 0)
    logits = hidden @ w["model.layers[1].w"] + w["model.layers[1].b"]
    return np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(x)), labels]


def regression_losses(case: Case) -> np.ndarray:
    w, (x, y) = weights(case), case.eval_data
    return np.square(x.astype(np.float64) @ w["model.w"] + w["model.b"] - y).mean(axis=1)


def autoencoder_losses(case: Case) -> np.ndarray:
    w, x = weights(case), case.eval_data.astype(np.float64)
    back = w["decoder.w"] if "decoder.w" in w and not case.settings["tied"] else w["encoder.w"].T
    logits = (x @ w["encoder.w"] + w["encoder.b"]) @ back + w["decoder.b"]
    return (x * np.log1p(np.exp(-logits)) + (1 - x) * np.log1p(np.exp(logits))).mean(axis=1)


def weighted_losses(case: Case) -> np.ndarray:
    data = case.eval_data
    return data["weight"] * regression_losses(case.replace(eval_data=(data["x"], data["y"])))


@pytest.mark.parametrize(
    ("name", "losses"),
    [
        ("classification_with_dropout", classification_losses),
        ("regression", regression_losses),
        ("tied_autoencoder", autoencoder_losses),
        ("untied_autoencoder", autoencoder_losses),
        ("uneven_sizes", weighted_losses),
    ],
)
def test_the_final_loss_is_the_mean_over_examples(name: str, losses: Any) -> None:
    case = ROW[name].fresh()
    result = case.run(eval_batch_size=7)
    np.testing.assert_allclose(result.metrics["loss"], losses(case).mean(), rtol=2e-6)
    assert result.history[-1]["eval_loss"] == result.metrics["loss"]


def test_accuracy_is_the_share_of_examples_whose_largest_output_is_theirs() -> None:
    case = ROW["classification_with_dropout"].fresh()
    result = case.run(eval_batch_size=4)
    w, (x, labels) = weights(case), case.eval_data
    hidden = np.maximum(x @ w["model.layers[0].w"] + w["model.layers[0].b"], 0)
    logits = hidden @ w["model.layers[1].w"] + w["model.layers[1].b"]
    assert result.metrics["accuracy"] == pytest.approx((logits.argmax(axis=1) == labels).mean(), abs=1e-12)


def test_only_classes_have_an_accuracy() -> None:
    assert set(uninterrupted(ROW["regression"])[0].metrics) == {"loss"}
    assert set(uninterrupted(ROW["classification_with_dropout"])[0].metrics) == {"accuracy", "loss"}


def test_an_evaluation_does_not_drop_out() -> None:
    case = ROW["classification_with_dropout"].fresh()
    assert case.run(steps=SMALL).metrics == case.run(steps=0).metrics


@pytest.mark.parametrize("row", EVALUATED, ids=name_of)
def test_evaluations_on_the_way_do_not_change_the_training(row: ScenarioRow) -> None:
    result, state = row.start(eval_interval=7)
    assert_bitwise(state, uninterrupted(row)[1])
    assert result.metrics == uninterrupted(row)[0].metrics
    first = next(iter(result.metrics))
    assert result.column(f"eval_{first}")[0] == [*range(7, STEPS + 1, 7), STEPS]


def test_an_evaluation_on_the_way_is_the_final_one_of_a_shorter_run() -> None:
    row = ROW["regression"]
    result, _ = row.start(eval_interval=20)
    for step, loss in zip(*result.column("eval_loss"), strict=True):
        assert row.start(steps=step)[0].metrics["loss"] == loss


def test_small_values_are_not_lost_among_many() -> None:
    values = np.concatenate([np.full(1, 2.0**24), np.ones(999)]).astype(np.float32)
    means = Evaluator(lambda batch: {"value": batch}, Arrays(values), batch_size=3).means()
    assert means == {"value": (2.0**24 + 999) / 1000}


class Reporting(scenarios.Scenario):
    """Reports numbers of all types per example."""

    def update(self, batch: Any, *, counter: Any) -> Mapping[str, Any]:
        counter.assign_add(1)
        return {"count": counter.value}

    def evaluate(self, batch: Any, *, counter: Any) -> Mapping[str, Any]:
        return {"true": batch > 2, "whole": batch.astype(jnp.int32), "half": batch.astype(jnp.bfloat16)}


def test_values_of_any_number_type_are_averaged() -> None:
    data = np.arange(5, dtype=np.float32)
    counter = mk.Variable(0, trainable=False, name="counter")
    report = Reporting(3, batch_size=2, progress=False)
    assert report(counter, data=data, eval_data=data).metrics == {"true": 0.4, "whole": 2.0, "half": 2.0}
    assert int(counter) == 3


def test_an_evaluation_that_is_not_finite_stands_in_the_result_and_as_null_in_the_log(tmp_path: Path) -> None:
    case = ROW["regression"].fresh()
    inputs, targets = case.eval_data
    spoiled = case.replace(eval_data=(np.where(np.arange(4) == 1, np.nan, inputs), targets))
    result = spoiled.run(steps=5, save_dir=tmp_path)
    assert np.isnan(result.metrics["loss"])
    assert [line["metrics"] for line in log_lines(tmp_path) if line["event"] == "evaluated"] == [{"loss": None}]
    again = spoiled.run(steps=5, save_dir=tmp_path)
    assert np.isnan(again.metrics["loss"])
