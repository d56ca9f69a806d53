"""What scenarios say: wrong settings, parts, data and directories; and values that are not finite."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scenario_catalogue import ROW, Case, Tally, assert_bitwise, exactly, linear_data

import modulekit as mk
import scenarios
from modulekit.checkpoints import CheckpointStore
from modulekit.data import batch_indices
from scenarios import NonFiniteError

REGRESSION, CLASSIFICATION = ROW["regression"], ROW["classification_with_dropout"]


# Settings.


@pytest.mark.parametrize(
    ("settings", "kind", "message"),
    [
        ({"steps": -1}, ValueError, "steps=-1 is below 0"),
        ({"steps": 10.0}, TypeError, "steps=10.0 is a float: expected an integer of at least 0"),
        ({"steps": True}, TypeError, "steps=True is a bool: expected an integer of at least 0"),
        ({"steps": None}, TypeError, "steps=None is a NoneType: expected an integer of at least 0"),
        ({"batch_size": 0}, ValueError, "batch_size=0 is below 1"),
        ({"seed": -1}, ValueError, "seed=-1 is below 0"),
        ({"log_interval": 0}, ValueError, "log_interval=0 is below 1"),
        ({"eval_interval": 0}, ValueError, "eval_interval=0 is below 1"),
        ({"eval_batch_size": 2.5}, TypeError, "eval_batch_size=2.5 is a float: expected an integer of at least 1"),
        ({"steps_per_call": 0}, ValueError, "steps_per_call=0 is below 1"),
        ({"save_interval": -5, "save_dir": "runs"}, ValueError, "save_interval=-5 is below 1"),
        ({"save_interval": 5}, ValueError, "save_interval=5 needs a save_dir: give the run a directory to save in"),
        ({"save_dir": 3}, TypeError, "save_dir=3 is a int: expected the path of a directory"),
        ({"cache_dir": b"runs"}, TypeError, "cache_dir=b'runs' is a bytes: expected the path of a directory"),
        ({"best_metric": None}, TypeError, "best_metric=None is a NoneType: expected the name of a metric"),
        ({"batchsize": 5}, TypeError, "Supervised has no setting 'batchsize': did you mean 'batch_size'?"),
    ],
)
def test_a_wrong_setting_is_named_when_it_is_given(settings: dict[str, Any], kind: Any, message: str) -> None:
    with pytest.raises(kind, match=exactly(message)):
        scenarios.Supervised(**{"steps": 10, **settings})


def test_auto_is_another_word_for_measuring() -> None:
    assert scenarios.Settings(10, steps_per_call="auto") == scenarios.Settings(10)


# Parts and data.

FORM = "Supervised(...)(model, optimizer, loss, data=...)"


@pytest.mark.parametrize(
    ("args", "parts", "message"),
    [
        (1, {}, f"{FORM} needs optimizer, loss"),
        (0, {"model": 1, "loss": 2}, f"{FORM} needs optimizer"),
        (4, {}, f"{FORM} takes 3 parts, got 4"),
        (3, {"teacher": 1}, f"{FORM} has no part 'teacher'"),
        (3, {"model": 1}, f"{FORM} got 'model' twice"),
    ],
)
def test_a_missing_superfluous_or_repeated_part_is_named(args: int, parts: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=exactly(message)):
        scenarios.Supervised(10, batch_size=4)(*[mk.Linear(1)] * args, data=linear_data(8, 0), **parts)


def test_a_setting_like_no_other_is_answered_with_all_that_there_are() -> None:
    with pytest.raises(
        TypeError, match=r"^Supervised has no setting 'zzz': there are steps, batch_size, seed, .*, progress$"
    ):
        scenarios.Supervised(10, zzz=1)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"model": mk.Linear}, f"{FORM}: model is the class Linear; give an object of it, as in Linear(...)"),
        ({"optimizer": mk.optimizers.SGD}, f"{FORM}: optimizer is the class SGD; give an object of it, as in SGD(...)"),
        ({"optimizer": 0.1}, f"{FORM}: optimizer must be an Optimizer, not 0.1"),
    ],
)
def test_a_part_of_the_wrong_kind_is_named(parts: dict[str, Any], message: str) -> None:
    right = {"model": mk.Linear(1), "optimizer": mk.optimizers.SGD(0.1), "loss": mk.losses.squared_error}
    with pytest.raises(TypeError, match=exactly(message)):
        scenarios.Supervised(10, batch_size=4)(data=linear_data(8, 0), **{**right, **parts})


def test_a_transformation_of_optax_in_the_place_of_the_optimizer_is_told_where_to_go() -> None:
    parts = (mk.Linear(1), optax.sgd(0.1), mk.losses.squared_error)
    message = r"must be an Optimizer, not Gradient.*: optax's transformations go into mk\.optimizers\.Optax\(\.\.\.\)$"
    with pytest.raises(TypeError, match=message):
        scenarios.Supervised(10, batch_size=4)(*parts, data=linear_data(8, 0))


def test_a_model_in_the_place_of_the_optimizer_is_named() -> None:
    with pytest.raises(TypeError, match=r"optimizer must be an Optimizer, not Linear\(output_size=1\)$"):
        parts = (mk.optimizers.SGD(0.1), mk.Linear(1), mk.losses.squared_error)
        scenarios.Supervised(10, batch_size=4)(*parts, data=linear_data(8, 0))


def misled(event: Any) -> Any:
    return "stop"


@pytest.mark.parametrize(
    ("hooks", "message"),
    [
        (misled, r"^hooks must be a list of functions of an event, not <function misled at .*>: write hooks=\[...\]$"),
        ([3], r"^a hook must be a function of an event, or another callable, not 3$"),
        ([misled], r"^the hook misled returned 'stop'; expected None, or scenarios.Stop\(reason\) to end the run$"),
    ],
)
def test_what_is_no_hook_is_named(hooks: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        REGRESSION.start(hooks)


X, Y = linear_data(20, 0)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((X[:7], Y[:7]),
         "batch_size=10 is larger than the data's 7 examples; choose a batch_size of at most 7, or give more data"),
        ((X[:0], Y[:0]), "data must hold at least one example, got data[0] of shape (0, 4); pass more data"),
        ((X, Y[:19]),
         "all arrays must have one number of examples (first axis), but data[0] has 20, data[1] has 19; cut or "
         "complete them"),
        (X, "data must be a pair (inputs, targets), not one array"),
        ((X, Y, Y), "data must be a pair (inputs, targets), not a tuple of 3"),
        ({"x": X, "y": Y}, "data must be a pair (inputs, targets), not a dict of 2"),
    ],
)  # fmt: skip
def test_data_that_does_not_fit_is_described(data: Any, message: str) -> None:
    with pytest.raises(ValueError, match=exactly(message)):
        REGRESSION.fresh().replace(data=data).run()


class Walk(scenarios.Scenario):
    """Needs no examples."""

    def update(self, batch: Any, *, place: mk.Linear) -> Any:
        place.b.assign_add(jax.random.normal(mk.next_key(), place.b.shape))
        return {"loss": place.b.value.sum()}


def test_an_update_that_needs_no_examples_is_told_what_to_give_and_runs_with_it() -> None:
    place = mk.Linear(1)
    mk.build(place, [1, 1])
    message = "data is None: where updates need no examples, give data=np.zeros([1]) and batch_size=1"
    with pytest.raises(TypeError, match=exactly(message)):
        Walk(10, progress=False)(place, data=None)
    assert Walk(10, batch_size=1, progress=False)(place, data=np.zeros([1])).step == 10


@pytest.mark.parametrize(
    ("label", "index", "which"), [(3, 17, "data"), (-1, 0, "data"), (9, 43, "eval_data"), (2**31 - 1, 5, "eval_data")]
)
def test_a_label_out_of_range_is_named_before_any_step(label: int, index: int, which: str) -> None:
    case = CLASSIFICATION.fresh()
    inputs, labels = case.data
    wrong = labels.copy()
    wrong[index] = label
    case.run(steps=0)
    before = case.state()
    message = f"{which}[1]: label {label} at index {index} is out of range: 3 classes are 0 .. 2"
    with pytest.raises(ValueError, match=exactly(message)):
        case.replace(**{which: (inputs, wrong)}).run()
    assert_bitwise(case.state(), before)


def test_evaluation_data_need_a_method_that_evaluates() -> None:
    case = ROW["only_update"].fresh()
    message = "Counting was given eval_data, and has no method evaluate(batch, **parts)"
    with pytest.raises(TypeError, match=exactly(message)):
        case.replace(eval_data=case.data).run()


def test_a_scenario_inside_a_transform_says_so() -> None:
    message = exactly("Supervised was called inside a transform: a scenario compiles its own steps")
    case = REGRESSION.fresh()
    with pytest.raises(RuntimeError, match=message):
        mk.jit(lambda: case.run().step)()
    with pytest.raises(RuntimeError, match=message):
        jax.jit(lambda: case.run().step)()


# What update and evaluate return.


class Returning(scenarios.Scenario):
    """Returns whatever it is given."""

    def update(self, batch: Any, *, make: Any) -> Any:
        return make(batch)

    def evaluate(self, batch: Any, *, make: Any) -> Any:
        return make(batch)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda batch: None, "update must return a dict of scalar metrics, such as {'loss': loss}; it returned None"),
        (lambda batch: {}, "update must return a dict of scalar metrics, such as {'loss': loss}; it returned {}"),
        (
            lambda batch: {"fine": batch.mean(), "loss": batch.mean(axis=1)},
            "update must return scalar metrics, and 'loss' has shape [5]: take its .mean()",
        ),
    ],
)
def test_an_update_must_return_scalars_by_name(make: Any, message: str) -> None:
    with pytest.raises(TypeError, match=exactly(message)):
        Returning(3, batch_size=5, progress=False)(make, data=X)


def test_an_update_that_returns_its_loss_alone_is_told_the_form() -> None:
    message = r"^update must return a dict of scalar metrics, such as \{'loss': loss\}; it returned .*float32\[\]"
    with pytest.raises(TypeError, match=message):
        Returning(3, batch_size=5, progress=False)(lambda batch: batch.mean(), data=X)


def test_scalar_metrics_of_any_number_type_are_taken() -> None:
    count = mk.Variable(2, trainable=False, name="count")
    make = lambda batch: {"int": 1, "bool": True, "float": 0.5, "array": jnp.int32(3), "variable": count}  # noqa: E731
    result = Returning(2, batch_size=5, log_interval=1, progress=False)(make, data=X)
    assert result.metrics == {"int": 1.0, "bool": 1.0, "float": 0.5, "array": 3.0, "variable": 2.0}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda batch: {"loss": batch.mean()},
            "evaluate must return one value per example, and 'loss' has shape [] for a batch of 20: leave the mean over "
            "the batch to the scenario, so that it is exact for any batch size",
        ),
        (
            lambda batch: None,
            "evaluate must return a dict of arrays [batch], one value per example; it returned None",
        ),
    ],
)
def test_an_evaluation_must_return_one_value_per_example(make: Any, message: str) -> None:
    class Evaluated(Returning):
        def update(self, batch: Any, *, make: Any) -> Any:
            return {"loss": batch.mean()}

    with pytest.raises(TypeError, match=exactly(message)):
        Evaluated(1, batch_size=5, progress=False)(make, data=X, eval_data=X)


# Directories.


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    directory = tmp_path / "file" / "run"
    with pytest.raises(OSError, match=exactly(f"cannot write to save_dir '{directory}': Not a directory")):
        REGRESSION.start(save_dir=tmp_path / "file" / "run")


OUTSIDE = mk.Variable(0.0, trainable=False, name="updates")


class Leaking(scenarios.Scenario):
    """Counts in a variable that no part holds."""

    def update(self, batch: Any, *, model: Any, optimizer: Any) -> Mapping[str, Any]:
        OUTSIDE.assign_add(1.0)
        return {"loss": optimizer.minimize(lambda: jnp.square(model(batch) - OUTSIDE * 0).mean(), model)}


def leaking(data: Any = X) -> Case:
    OUTSIDE.assign(0.0)
    settings = {"steps": 12, "batch_size": 5, "progress": False}
    return Case(Leaking, settings, {"model": mk.Linear(1), "optimizer": mk.optimizers.SGD(0.1)}, data)


def test_a_changed_variable_that_no_part_holds_cannot_be_saved(tmp_path: Path) -> None:
    message = (
        r"^Leaking\.update changes variable 'updates' \(made at .*scenario_errors_test\.py:\d+\), which no part holds, so "
        r"that it could not be saved: pass the module that holds it as a part$"
    )
    with pytest.raises(ValueError, match=message):
        leaking().run(save_dir=tmp_path)
    assert not (tmp_path / "states").exists()
    leaking().run()  # where nothing is to be saved, it may
    assert float(OUTSIDE) == 12


# Values that are not finite.


def poisoned(case: Case, sample: int) -> Case:
    inputs, targets = case.data
    inputs = inputs.copy()
    inputs[sample, 1] = np.nan
    return case.replace(data=(inputs, targets))


@pytest.mark.parametrize("steps_per_call", [1, 7, 50])
def test_a_sample_that_is_not_finite_stops_the_run_before_its_update(steps_per_call: int, tmp_path: Path) -> None:
    size, settings = 200, REGRESSION.fresh().settings
    order = batch_indices(size, settings["batch_size"], settings["seed"], 0, 40)
    (steps,) = np.nonzero((order == 123).any(axis=1))
    before = int(steps[0])
    assert before > 7  # neither the first update nor the first of a program
    message = (
        f"update {before + 1}: loss is nan; the data of sample 123 is not finite; it would make model.b, model.w, "
        "optimizer.m[0], optimizer.m[1], optimizer.v[0], optimizer.v[1] non-finite. The update was not applied: all "
        "variables are as after the update before"
    )
    case = poisoned(REGRESSION.fresh(), 123).replace(eval_data=None)
    with pytest.raises(NonFiniteError) as error:
        case.run(steps_per_call=steps_per_call, save_dir=tmp_path)
    assert sorted(re.split(r"[ ,]+", str(error.value))) == sorted(re.split(r"[ ,]+", message))
    assert (error.value.step, error.value.samples) == (before + 1, [123])
    assert {"model.w", "model.b"} <= set(error.value.variables)
    _, expected = REGRESSION.start(steps=before)
    assert_bitwise(case.state(), expected)
    assert all(np.isfinite(value).all() for value in expected.values())
    store = CheckpointStore(tmp_path / "states")
    assert store.latest() == before
    arrays, _ = store.restore(before)
    store.close()
    assert_bitwise(arrays, expected)


def test_the_same_call_meets_the_same_error_again(tmp_path: Path) -> None:
    messages = []
    for _ in range(2):
        with pytest.raises(NonFiniteError) as error:
            poisoned(REGRESSION.fresh(), 123).replace(eval_data=None).run(save_dir=tmp_path)
        messages.append(str(error.value))
    assert messages[0] == messages[1]


def test_a_first_update_that_is_not_finite_leaves_the_first_weights(tmp_path: Path) -> None:
    case = REGRESSION.fresh()
    case.run(steps=0)
    before = case.state()
    inputs, targets = case.data
    with pytest.raises(
        NonFiniteError, match=r"^update 1: loss is nan; the data of sample (\d+, ){9}\d+ is not finite; "
    ):
        case.replace(data=(inputs * np.nan, targets)).run(save_dir=tmp_path)
    assert_bitwise(case.state(), before)


@pytest.mark.parametrize("steps_per_call", [1, 50])
def test_a_loss_that_overflows_names_its_samples(steps_per_call: int) -> None:
    case = REGRESSION.fresh()
    parts = {**case.parts, "optimizer": mk.optimizers.SGD(1e4)}
    with pytest.raises(NonFiniteError) as error:
        case.replace(parts=parts).run(steps_per_call=steps_per_call)
    step = error.value.step
    state = case.state()
    again = REGRESSION.fresh()
    again = again.replace(parts={**again.parts, "optimizer": mk.optimizers.SGD(1e4)})
    again.run(steps=step - 1)
    assert_bitwise({path: state[path] for path in again.state()}, again.state())
    indices = batch_indices(200, 10, case.settings["seed"], step - 1, 1)[0]
    assert 1 < step < 20
    assert error.value.samples
    assert set(error.value.samples) <= set(indices.tolist())
    assert f"update {step}: loss is inf; the loss of sample " in str(error.value)
    assert all(np.isfinite(value).all() for value in again.state().values())


class Root(scenarios.Scenario):
    """Its loss is finite, and the gradient is not from the first update on."""

    def update(self, batch: Any, *, model: Any, optimizer: Any) -> Mapping[str, Any]:
        return {"loss": optimizer.minimize(lambda: jnp.sqrt(jnp.sum(0.0 * model(batch))), model)}


def test_a_gradient_that_is_not_finite_stops_at_its_own_update_though_the_loss_is_finite() -> None:
    parts = {"model": mk.Linear(1), "optimizer": mk.optimizers.SGD(0.1)}
    case = Case(Root, {"steps": 5, "batch_size": 20, "progress": False}, parts, X)
    message = (
        "update 1: its metrics are finite, the new weights or slots are not; its samples are "
        r"(\d+, ){9}\d+ and 10 more; it would make model\.b, model\.w non-finite\. "
    )
    with pytest.raises(NonFiniteError, match=f"^{message}"):
        case.run()
    assert all(np.isfinite(value).all() for value in case.state().values())


def test_a_variable_that_no_part_holds_does_not_hide_a_value_that_is_not_finite() -> None:
    data = X.copy()
    data[11] = np.inf
    with pytest.raises(NonFiniteError) as error:
        leaking(data).run()
    assert error.value.samples == [11]
    assert float(OUTSIDE) == error.value.step - 1


class Student(scenarios.Scenario):
    """Learns from a teacher that does not change."""

    def update(self, batch: Any, *, student: Any, teacher: Any, optimizer: Any) -> Mapping[str, Any]:
        return {"loss": optimizer.minimize(lambda: jnp.square(student(batch) - teacher(batch)).mean(), student)}


def test_a_part_that_does_not_change_is_not_blamed() -> None:
    data = X.copy()
    data[3, 0] = -np.inf
    parts = {"student": mk.Linear(1), "teacher": mk.Linear(1), "optimizer": mk.optimizers.SGD(0.1)}
    with pytest.raises(NonFiniteError) as error:
        Case(Student, {"steps": 5, "batch_size": 5, "progress": False}, parts, data).run()
    assert error.value.samples == [3]
    assert error.value.variables
    assert all(path.startswith("student.") for path in error.value.variables)


def test_nothing_trainable_is_checked_by_its_metrics_alone() -> None:
    case = ROW["only_update"].fresh()
    data = case.data.copy()
    data[7] = np.nan
    with pytest.raises(
        NonFiniteError, match=r"distance is nan; the data of sample 7 is not finite; it would make tally\.mean"
    ):
        case.replace(data=data, parts={"tally": Tally()}).run()
