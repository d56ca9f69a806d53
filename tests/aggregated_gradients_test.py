"""The scenario that aggregates the gradients of single samples, against gradients written out and other scenarios."""

import functools
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scenario_catalogue import Case, aggregated_data, linear_data, sample_loss

import modulekit as mk
import scenarios
from scenarios import aggregation

QUIET: dict[str, Any] = {"progress": False}


def fitted(data: Any, steps: int = 1, rate: float = 0.1, **settings: Any) -> tuple[np.ndarray, np.ndarray]:
    """Returns the weights of a linear model that starts at zero."""
    model = mk.Linear(2, w_init=mk.initializers.Zeros())
    run = scenarios.AggregatedGradients(steps, **QUIET, **settings)
    run(model, mk.optimizers.SGD(rate), sample_loss, data=data)
    return model.w.numpy(), model.b.numpy()


def gradients_at_zero(data: Any) -> dict[str, np.ndarray]:
    """Returns the gradients of each sample's mean squared error, in float64."""
    x, y = data["x"].astype(np.float64), data["y"].astype(np.float64)
    return {"w": -x[:, :, None] * y[:, None, :], "b": -y}  # d/dw mean_k (w_k x - y_k)^2, of two outputs


RULES: dict[str, tuple[dict[str, Any], Any]] = {
    "mean": ({}, aggregation.mean),
    "median": ({"aggregate": "median"}, aggregation.median),
    "trimmed": ({"aggregate": "trimmed", "share": 0.3}, functools.partial(aggregation.trimmed_mean, share=0.3)),
    "clipped": ({"aggregate": "clipped", "max_norm": 0.7}, functools.partial(aggregation.clipped_mean, max_norm=0.7)),
}


@pytest.mark.parametrize("weight", [None, "count"])
@pytest.mark.parametrize("rule", RULES)
def test_an_update_follows_the_aggregated_gradient(rule: str, weight: str | None) -> None:
    settings, reference = RULES[rule]
    data = aggregated_data(12, 3)
    weights = np.ones(12) if weight is None else data["count"].astype(np.float64)
    expected = reference(gradients_at_zero(data), weights)
    w, b = fitted(data, batch_size=12, weight=weight, **settings)
    np.testing.assert_allclose(w, -0.1 * expected["w"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(b, -0.1 * expected["b"], rtol=1e-5, atol=1e-6)


def test_the_mean_is_supervised_learning() -> None:
    inputs, targets = linear_data(60, 1)
    found = fitted({"x": inputs, "y": targets}, steps=50, batch_size=10)
    model = mk.Linear(2, w_init=mk.initializers.Zeros())
    run = scenarios.Supervised(50, batch_size=10, **QUIET)
    run(model, mk.optimizers.SGD(0.1), mk.losses.squared_error, data=(inputs, targets))
    np.testing.assert_allclose(found[0], model.w.numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found[1], model.b.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rule", ["mean", "trimmed"])
def test_gradients_may_be_computed_in_parts(rule: str) -> None:
    settings, _ = RULES[rule]
    data = aggregated_data(60, 1)
    at_once = fitted(data, steps=12, batch_size=10, weight="count", **settings)
    in_parts = fitted(data, steps=12, batch_size=5, samples_per_update=10, weight="count", **settings)
    for one, other in zip(at_once, in_parts, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_the_median_ignores_a_wrong_sample_and_the_mean_does_not() -> None:
    data = aggregated_data(20, 5)
    data["y"] = data["x"][:, :2].copy()
    data["y"][4] = 1e4
    right = np.eye(4)[:, :2]
    median, _ = fitted(data, steps=200, batch_size=20, aggregate="median")
    mean, _ = fitted(data, steps=200, batch_size=20)
    assert abs(median - right).max() < 0.2 < 100 < abs(mean - right).max()


def test_the_loss_is_the_weighted_mean_and_the_evaluation_one_value_for_each_sample() -> None:
    data = aggregated_data(12, 3)
    model = mk.Linear(2, w_init=mk.initializers.Zeros())
    run = scenarios.AggregatedGradients(1, batch_size=12, log_interval=1, weight="count", **QUIET)

    def measures(model: Any, sample: Any) -> dict[str, Any]:
        return {"right": model(sample["x"][None])[0, 0] > sample["y"][0]}

    parts = {"model": model, "optimizer": mk.optimizers.SGD(0.0), "loss": sample_loss, "measures": measures}
    result = run(data=data, eval_data=data, **parts)
    losses = np.mean(data["y"].astype(np.float64) ** 2, axis=1)
    assert result.history[0]["loss"] == pytest.approx(np.average(losses, weights=data["count"]), rel=1e-6)
    assert result.metrics["loss"] == pytest.approx(losses.mean(), rel=1e-6)
    assert result.metrics["right"] == np.mean(data["y"][:, 0] < 0)


def test_a_loss_that_asks_is_told_whether_it_trains() -> None:
    told: list[bool] = []

    def loss(model: Any, sample: Any, is_training: bool) -> Any:
        told.append(is_training)
        return sample_loss(model, sample)

    data = aggregated_data(6, 3)
    run = scenarios.AggregatedGradients(2, batch_size=6, **QUIET)
    run(mk.Linear(2), mk.optimizers.SGD(0.1), loss, data=data, eval_data=data)
    assert set(told) == {True, False}


def test_each_sample_has_random_numbers_of_its_own() -> None:
    def loss(model: Any, sample: Any) -> Any:
        return jnp.sum(model.w * jax.random.normal(mk.next_key(), [64]))

    class Vector(mk.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = mk.Variable(jnp.zeros([64]), name="w")

    model = Vector()
    run = scenarios.AggregatedGradients(1, batch_size=400, **QUIET)
    run(model, mk.optimizers.SGD(1.0), loss, data=np.zeros([400]))
    assert 0.5 / 20 < model.w.numpy().std() < 2 / 20  # the mean of 400 draws of deviation 1


WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "rule": ({"aggregate": "sum"}, ValueError, "aggregate='sum' is none of 'mean', 'median', 'trimmed', 'clipped'"),
    "no norm": (
        {"aggregate": "clipped"},
        ValueError,
        "aggregate='clipped' with max_norm=None: 'clipped' needs max_norm, and it alone does",
    ),
    "a norm too much": ({"max_norm": 1.0}, ValueError, "aggregate='mean' with max_norm=1.0: 'clipped' needs max_norm"),
    "norm": ({"aggregate": "clipped", "max_norm": 0}, ValueError, "max_norm=0: expected the largest norm"),
    "share": ({"aggregate": "trimmed", "share": 0.5}, ValueError, "share=0.5: expected what is cut off at each end"),
    "samples": ({"samples_per_update": 15}, ValueError, "samples_per_update=15 is no multiple of batch_size=10"),
    "samples 0": ({"samples_per_update": 0}, ValueError, "samples_per_update=0 is no multiple of batch_size=10"),
    "samples 2.5": ({"samples_per_update": 2.5}, TypeError, "samples_per_update=2.5: expected an integer"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_settings_are_named(case: str) -> None:
    settings, error, message = WRONG[case]
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        scenarios.AggregatedGradients(5, batch_size=10, **settings)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (aggregated_data(6, 3), "weight='size' names an array of data, which is a dict of 'count', 'x', 'y'"),
        (np.zeros([6, 2]), "weight='size' names an array of data, which is no dict"),
        ({"size": np.ones([6, 1])}, "data['size'] has shape [3, 1]: expected one weight for each sample"),
        ({"size": np.arange(6)}, "data['size'] holds 0.0 for sample 0: weights are positive numbers"),
    ],
)
def test_weights_that_are_none_are_named(data: Any, message: str) -> None:
    run = scenarios.AggregatedGradients(2, batch_size=3, weight="size", **QUIET)
    model = mk.Linear(1)
    mk.build(model, [1, 2])
    with pytest.raises(ValueError, match=re.escape(message)):
        run(model, mk.optimizers.SGD(0.1), lambda model, sample: jnp.square(model.b.value).sum(), data=data)


def test_the_rule_is_part_of_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = {"batch_size": 5, "steps": 2, "save_dir": tmp_path, **QUIET}
    parts = {"model": mk.Linear(2), "optimizer": mk.optimizers.SGD(0.1), "loss": sample_loss}
    case = Case(scenarios.AggregatedGradients, settings, parts, aggregated_data(20, 1))
    case.run()
    case.run(aggregate="median")
    assert "aggregate: saved 'mean', now 'median' (schedule-changing)" in capsys.readouterr().err
