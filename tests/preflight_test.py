"""Preflight leaves everything as it was, and what it says of parts and data is so; `preflight_cost_test` has the rest."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from preflight_cases import QUIET, look, regression
from scenario_catalogue import ROW, ROWS, Case, ScenarioRow, assert_bitwise, linear_data, name_of, uninterrupted

import modulekit as mk
import scenarios
from modulekit.core import draws
from modulekit.core.randomness import default_stream
from modulekit.data import Arrays
from scenarios.base import coverage
from scenarios.base.inputs import findings
from scenarios.base.largest_batch import LargestBatch
from scenarios.base.overfitting import Overfitting
from scenarios.base.parts import made_state
from scenarios.base.run import Run
from scenarios.base.settings import Settings

# Nothing is changed.


@pytest.mark.parametrize("row", ROWS, ids=name_of)
def test_afterwards_all_first_values_and_streams_are_those_of_a_model_that_was_built(row: ScenarioRow) -> None:
    built = row.fresh()
    scenario = built.scenario(**built.settings)
    parts = {**built.parts, **made_state(scenario)}
    with Run(scenario, Settings(60, **QUIET), parts, built.data).prepared() as prepared:
        parameters = prepared.parameters
    drawn, keys = draws.snapshot(), stream_arrays()
    case = row.fresh()
    report = look(case, overfit=True, batch_size=Arrays(case.data).size)  # no larger one has to be compiled
    assert_bitwise(case.state(), built.state())
    assert draws.snapshot() == drawn
    assert stream_arrays() == keys
    assert json.loads(json.dumps(report.in_json(), allow_nan=False))["parameters"] == report.parameters == parameters
    assert f"{parameters:,} trainable numbers" in str(report)


def stream_arrays() -> list[bytes]:
    stream = default_stream()
    return [v.numpy().tobytes() for v in (stream.key, stream.counter)]


@pytest.mark.parametrize("name", ["classification_with_dropout", "only_update"])
def test_a_run_after_preflight_is_bitwise_the_run_without(name: str) -> None:
    row = ROW[name]
    result, state = uninterrupted(row)
    case = row.fresh()
    report = look(case, overfit=True)
    trained = case.run()
    assert_bitwise(case.state(), state)
    assert trained.history == result.history
    assert report.parameters == result.parameters


def test_a_model_with_other_weights_stays_as_it_is_and_no_directory_is_made(tmp_path: Path) -> None:
    case = ROW["classification_with_dropout"].fresh()
    mk.build(case.parts["model"], [1, 5], is_training=True)
    case.parts["model"].layers[0].w.assign_add(1.0)
    mk.next_key()
    before, keys = case.state(), stream_arrays()
    look(case, overfit=True, batch_size=44, ema_decay=0.9, save_dir=tmp_path / "run", save_interval=5)
    after = case.state()
    assert_bitwise({path: after[path] for path in before}, before)
    assert stream_arrays() == keys
    assert not (tmp_path / "run").exists()


def test_the_first_weights_of_what_is_made_next_are_those_after_a_build() -> None:
    def next_weights(prepare: Callable[[Case], Any]) -> np.ndarray:
        mk.seed(5)
        prepare(regression(mk.Linear(2)))
        later = mk.Linear(2)
        later(jnp.ones([1, 4]))
        return later.w.numpy()

    built = next_weights(lambda case: mk.build(case.parts["model"], [1, 4]))
    np.testing.assert_array_equal(next_weights(lambda case: look(case, overfit=True)), built)


def test_an_update_that_raises_does_so_now_and_changes_nothing() -> None:
    class Failing(scenarios.Scenario):
        def update(self, batch: Any, *, model: Any, optimizer: Any) -> Any:
            optimizer.minimize(lambda: model(batch).mean(), model)
            raise KeyError("no such thing")

    model = mk.Linear(2)
    model(jnp.ones([1, 4]))
    before = model.w.numpy()
    with pytest.raises(KeyError, match="no such thing"):
        Failing(5, **QUIET).preflight(model, mk.optimizers.SGD(0.1), data=linear_data(40, 3)[0])
    np.testing.assert_array_equal(model.w.numpy(), before)


def poisoned() -> tuple[np.ndarray, np.ndarray]:
    inputs, targets = linear_data(40, 3)
    inputs[:, 1] = np.nan
    return inputs, targets


def test_a_loss_that_is_not_finite_raises_as_in_the_run_and_is_noted_where_the_run_would_go_on() -> None:
    with pytest.raises(scenarios.NonFiniteError) as raised:
        look(regression(mk.Linear(2), data=poisoned()))
    with pytest.raises(scenarios.NonFiniteError) as expected:
        regression(mk.Linear(2), data=poisoned()).run()
    assert (raised.value.step, raised.value.samples) == (expected.value.step, expected.value.samples)
    assert str(raised.value).split("\n")[0] == str(expected.value).split("\n")[0]
    report = look(regression(mk.Linear(2), data=poisoned(), non_finite="skip"), overfit=True)
    assert report.warnings[0].startswith("an update is not finite, and is not applied: ")
    assert "data[0] has 20 values that are not finite in the first 2 batches" in report.warnings[1]
    assert report.in_json()["overfitting"]["first"] is None


# Variables without a gradient, modules that never run.


class Branches(mk.Module):
    """One branch is used, one is held and never called, one is called and behind a stop of the gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.live = mk.Linear(2)
        self.dead = mk.nets.MLP([3, 2])
        self.detached = mk.Linear(2)
        self.fixed = mk.Linear(2)
        self.fixed(jnp.ones([1, 4]))
        self.kept = mk.Linear(2)

    def __call__(self, x: Any) -> Any:
        return self.live(x) + jax.lax.stop_gradient(self.detached(x))


def test_variables_without_a_gradient_and_modules_that_never_run_are_named() -> None:
    model = Branches()
    mk.build(model.dead, [1, 4])
    report = look(regression(model, mk.optimizers.Adam(0.1), batch_size=40))
    dead = [f"model.dead.layers[{index}].{name}" for index in (0, 1) for name in "bw"]
    not_read = [*dead, "model.fixed.b", "model.fixed.w"]
    expected = dict.fromkeys(not_read, coverage.NOT_READ)
    expected.update(dict.fromkeys(["model.detached.b", "model.detached.w"], coverage.NOT_CHANGED))
    assert report.coverage.unchanged == expected
    assert report.coverage.never_ran == ("model.dead", "model.fixed", "model.kept")
    assert "model.kept never runs, in the update or the evaluation" in report.warnings
    detached = f"trainable, and without a gradient: model.detached.b, model.detached.w ({coverage.NOT_CHANGED})"
    assert detached in report.warnings
    assert detached in str(report)


def test_decay_does_not_hide_that_nothing_depends_on_a_variable() -> None:
    model = Branches()
    report = look(regression(model, mk.optimizers.Optax(optax.adamw(0.1, weight_decay=0.1)), batch_size=40))
    assert report.coverage.unchanged["model.fixed.w"] == coverage.NOT_READ


def test_a_variable_that_comes_back_to_its_first_value_has_changed() -> None:
    class Turning(scenarios.Scenario):
        def update(self, batch: Any, *, model: Any) -> Any:
            model.w.assign(-model.w)
            return {"loss": jnp.square(model(batch)).mean()}

    for steps_per_call in (1, None):  # an even number of updates in the end
        turning = Turning(10, batch_size=40, progress=False, steps_per_call=steps_per_call)
        report = turning.preflight(Product(), data=linear_data(40, 3)[0])
        assert report.coverage.unchanged == {}


class Product(mk.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = mk.Variable(jnp.ones([4, 2]), name="w")

    def __call__(self, x: Any) -> Any:
        return x @ self.w


GLOBAL = Product()


@jax.jit
def compiled_by_jax(x: Any) -> Any:
    return (x @ GLOBAL.w.value).mean()


def test_a_function_that_jax_compiles_and_that_reads_variables_runs_afterwards() -> None:
    class Mixed(scenarios.Scenario):
        def update(self, batch: Any, *, model: Any, optimizer: Any) -> Any:
            loss = lambda: jnp.square(model(batch)).mean() + compiled_by_jax(batch)  # noqa: E731
            return {"loss": optimizer.minimize(loss, model)}

    parts, data = (mk.Linear(2), mk.optimizers.SGD(0.1)), linear_data(40, 3)[0]
    mixed = Mixed(10, **QUIET)
    reports = [mixed.preflight(*parts, data=data) for _ in range(2)]
    assert [report.warnings for report in reports] == [[], []]
    assert mixed(*parts, data=data).step == 10


def test_a_teacher_is_read_and_nothing_changes_it() -> None:
    class Distillation(scenarios.Scenario):
        def update(self, batch: Any, *, student: Any, teacher: Any, optimizer: Any) -> Any:
            guide = mk.jit(lambda x: teacher(x))  # a program inside of the program
            return {"loss": optimizer.minimize(lambda: jnp.square(student(batch) - guide(batch)).mean(), student)}

    parts = (mk.Linear(2), mk.Linear(2), mk.optimizers.SGD(0.1))
    report = Distillation(10, **QUIET).preflight(*parts, data=linear_data(40, 3)[0])
    assert report.coverage.unchanged == dict.fromkeys(["teacher.b", "teacher.w"], coverage.NOT_WRITTEN)
    assert report.coverage.never_ran == ()
    parts[1].freeze()
    assert not Distillation(10, **QUIET).preflight(*parts, data=linear_data(40, 3)[0]).warnings


def test_a_module_that_only_the_evaluation_runs_does_run() -> None:
    class Probing(scenarios.Scenario):
        def update(self, batch: Any, *, model: Any, probe: Any, optimizer: Any) -> Any:
            return {"loss": optimizer.minimize(lambda: jnp.square(model(batch)).mean(), model)}

        def evaluate(self, batch: Any, *, model: Any, probe: Any, optimizer: Any) -> Any:
            return {"score": probe(batch).sum(axis=1)}

    parts = (mk.Linear(2), mk.Linear(2), mk.optimizers.SGD(0.1))
    data = linear_data(40, 3)[0]
    assert Probing(10, **QUIET).preflight(*parts, data=data, eval_data=data).coverage.never_ran == ()
    assert Probing(10, **QUIET).preflight(*parts, data=data).coverage.never_ran == ("probe",)


def test_the_average_of_weights_reads_all_and_hides_nothing() -> None:
    report = look(regression(Branches(), ema_decay=0.9, batch_size=40))
    assert report.coverage.unchanged["model.fixed.w"] == coverage.NOT_READ
    assert report.coverage.never_ran == ("model.dead", "model.fixed", "model.kept")
    assert report.saved.bytes > sum(part.bytes for part in report.parts)


# Overfitting one batch.


def test_a_model_that_learns_overfits_one_batch_and_one_at_rate_zero_does_not() -> None:
    learns = look(regression(mk.Linear(2), mk.optimizers.Adam(0.1)), overfit=True)
    assert learns.overfitting is not None
    assert learns.overfitting.succeeded
    assert learns.overfitting.last < 0.1 * learns.overfitting.first
    assert learns.warnings == []
    still = look(regression(mk.Linear(2), mk.optimizers.SGD(0.0)), overfit=True)
    assert still.overfitting is not None
    assert not still.overfitting.succeeded
    assert still.overfitting.updates < 200
    assert still.coverage.unchanged == dict.fromkeys(["model.b", "model.w"], coverage.NOT_CHANGED)
    assert still.warnings[-1] == (
        f"one batch was not overfitted: loss went from {still.overfitting.first:.3g} to {still.overfitting.first:.3g} in "
        f"{still.overfitting.updates} updates. It does not learn even that: look at the learning rate, and at what the "
        "loss is a function of"
    )


def test_the_losses_on_one_batch_are_those_of_training_on_it() -> None:
    case = regression(mk.Linear(2), data=linear_data(10, 3))
    mk.build(case.parts["model"], [1, 4])
    (x, y), w, b = case.data, case.parts["model"].w.numpy().astype(np.float64), np.zeros(2)
    found = look(case, overfit=True).overfitting
    assert found is not None
    losses = []
    for _ in range(found.updates):
        error = x @ w + b - y
        losses.append(np.square(error).mean())
        gradient = 2 * error / error.size
        w, b = w - 0.05 * x.T @ gradient, b - 0.05 * gradient.sum(axis=0)
    np.testing.assert_allclose([found.first, found.last], [losses[0], min(losses)], rtol=1e-4)


def test_what_is_said_of_overfitting_follows_the_losses() -> None:
    assert Overfitting("loss", 1.0, 0.5, 200, 1.0).warnings == []
    assert not Overfitting("loss", 1.0, 0.5, 200, 1.0).succeeded
    assert not Overfitting("score", -1.0, -2.0, 200, 1.0).succeeded
    assert Overfitting("loss", 0.0, 0.0, 50, 1.0).warnings == []
    assert Overfitting("loss", float("nan"), float("nan"), 0, 1.0).warnings
    assert look(regression(mk.Linear(2))).overfitting is None


# Data.


def test_values_that_are_not_finite_or_all_the_same_are_found() -> None:
    batch = {"x": np.array([[1.0, np.inf], [np.nan, 1.0]]), "mask": np.ones([2], bool), "y": np.array([3, 4])}
    assert findings([batch], "data") == [
        "data['x'] has 2 values that are not finite in the first batch",
        "data['mask'] is True everywhere in the first batch",
    ]
    other = {**batch, "mask": np.zeros([2], bool)}
    assert findings([batch, other], "data") == ["data['x'] has 4 values that are not finite in the first 2 batches"]


def test_constant_inputs_of_evaluation_are_found() -> None:
    inputs, targets = linear_data(15, 4)
    case = regression(mk.Linear(2)).replace(eval_data=(np.zeros_like(inputs), targets))
    assert look(case).warnings == ["eval_data[0] is 0.0 everywhere in the first batch"]


def test_batches_and_epochs_are_counted() -> None:
    report = look(regression(mk.Linear(2)))
    assert str(report.inputs) == "data: 40 examples, 4 batches of 10, 5 epochs; 15 examples of evaluation"


def test_a_pipeline_is_as_it_was_and_what_it_does_not_tell_is_said() -> None:
    batches = mk.data.pipeline(linear_data(40, 3)).shuffle(seed=0).batch(8)
    stream = mk.data.stream(batches)
    next(stream)
    before = stream.state()
    report = look(regression(mk.Linear(2), data=stream), overfit=True)
    assert stream.state() == before
    assert report.inputs.batch_size == 8
    assert report.inputs.epochs is None
    assert "an unknown number of them in an epoch" in str(report)
    assert report.largest_batch == LargestBatch(None, None, None, "the data makes its own batches")
    assert report.warnings == []
    expected, other = mk.data.stream(batches), next(stream)
    next(expected)
    np.testing.assert_array_equal(other[0], next(expected)[0])


def test_an_iterator_loses_what_was_tried_and_the_report_says_so() -> None:
    def forever() -> Iterator[Any]:
        while True:
            yield linear_data(10, 3)

    gone = "the data is an iterator that cannot go back: the batches that were tried here are gone from it"
    assert look(regression(mk.Linear(2), data=forever())).warnings == [gone]
    assert look(regression(mk.Linear(2), data=forever)).warnings == []


def test_a_stream_that_ends_at_once_leaves_the_time_unknown() -> None:
    report = look(regression(mk.Linear(2), data=iter([linear_data(10, 3)])))
    assert report.duration.total is None
    assert report.flops_per_second is None
    assert report.in_json()["seconds"] is None
    assert "time: not known, since the data was over after 1 updates" in str(report)
