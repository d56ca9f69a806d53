"""Laws of `Evaluate` and `Predict`: all examples, once each, whatever the batches and devices; and no variable changes."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import sklearn.metrics
from references import normal

import modulekit as mk
from modulekit import metrics
from modulekit.data import Arrays
from scenarios.evaluation import Evaluate, Predict

HERE = Path(__file__).parent
SIZE, CLASSES = 50, 4
X = normal(SIZE, 6)
LABELS = (np.arange(SIZE) * 7 % CLASSES).astype(np.int32)


def classifier() -> mk.Module:
    mk.seed(0)
    return mk.nets.MLP([8, CLASSES], mk.initializers.RandomNormal(stddev=1.0))


def logits_of(model: Any) -> np.ndarray:
    """Returns the classifier's outputs in float64."""
    first, last = model.layers
    hidden = np.maximum(X.astype(np.float64) @ first.w.numpy() + first.b.numpy(), 0)
    return hidden @ last.w.numpy() + last.b.numpy()


def assert_near(found: Any, expected: Any) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-6, atol=1e-6, err_msg=name)


def test_classification_is_measured_as_scikit_learn_measures_it() -> None:
    model = classifier()
    report = Evaluate(batch_size=7)(model, data=(X, LABELS))
    logits = logits_of(model)
    probabilities = scipy.special.softmax(logits, axis=1)
    expected = {
        "accuracy": sklearn.metrics.accuracy_score(LABELS, logits.argmax(axis=1)),
        "nll": sklearn.metrics.log_loss(LABELS, probabilities),
        "brier": sklearn.metrics.brier_score_loss(LABELS, probabilities, scale_by_half=False),
        "auroc": sklearn.metrics.roc_auc_score(LABELS, probabilities, multi_class="ovr"),
    }
    assert_near({name: report.metrics[name] for name in expected}, expected)
    assert set(report.metrics) == {*expected, "ece"}
    assert report.samples == SIZE and report.seconds > 0
    assert report.confusion is not None
    assert report.confusion.tolist() == sklearn.metrics.confusion_matrix(LABELS, logits.argmax(axis=1)).tolist()
    losses = -np.log(probabilities[np.arange(SIZE), LABELS])
    worst = np.argsort(-losses)[:16]
    assert [example.index for example in report.worst] == worst.tolist()
    np.testing.assert_allclose([example.score for example in report.worst], losses[worst], rtol=1e-5)
    assert [(e.target, e.prediction) for e in report.worst] == [(LABELS[i], logits[i].argmax()) for i in worst]


@pytest.mark.parametrize("targets", [LABELS, normal(SIZE, CLASSES, seed=3)], ids=["classes", "reals"])
def test_the_batch_size_changes_no_metric(targets: np.ndarray) -> None:
    model = classifier()
    expected = Evaluate()(model, data=(X, targets))
    for batch_size in (1, 7, 64):
        report = Evaluate(batch_size=batch_size)(model, data=(X, targets))
        assert report.samples == SIZE
        assert_near(report.metrics, expected.metrics)
        assert [e.index for e in report.worst] == [e.index for e in expected.worst]


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_predictions_are_the_models_outputs_in_order(batch_size: int) -> None:
    model = classifier()
    found = Predict(batch_size=batch_size)(model, data=X)
    assert isinstance(found, np.ndarray)
    np.testing.assert_allclose(found, logits_of(model), rtol=1e-5, atol=1e-6)


def test_predictions_keep_the_structure_of_inputs_and_outputs() -> None:
    data = {"left": X, "right": np.arange(SIZE)}
    found = Predict(batch_size=8)(lambda x: (x["left"].sum(axis=1), {"twice": 2 * x["right"]}), data=data)
    np.testing.assert_allclose(found[0], X.sum(axis=1), rtol=1e-5, atol=1e-5)
    assert found[1]["twice"].tolist() == (2 * np.arange(SIZE)).tolist()


def test_a_data_set_evaluates_as_its_arrays() -> None:
    model = classifier()
    assert Evaluate()(model, data=Arrays((X, LABELS))).metrics == Evaluate()(model, data=(X, LABELS)).metrics
    assert (Predict()(model, data=Arrays(X)) == Predict()(model, data=X)).all()


def test_one_program_serves_all_batches_and_all_calls() -> None:
    traced = []

    def model(x: jax.Array) -> jax.Array:
        traced.append(x.shape)
        return x[:, :CLASSES]

    evaluate = Evaluate(batch_size=8)
    for _ in range(3):
        evaluate(model, data=(X, LABELS))
    assert set(traced) == {(8, 6)}  # the last batch is filled up, not shorter
    before = len(traced)
    evaluate(model, data=(X, LABELS))
    evaluate(model, data=(X, LABELS))
    abstract_looks = 2  # one of each call: the shapes are checked before anything runs
    assert len(traced) - before == abstract_looks


def test_evaluating_twice_counts_once_and_keeps_the_given_metrics() -> None:
    accuracy = metrics.Accuracy()
    evaluate, model = Evaluate({"accuracy": accuracy}, batch_size=7), classifier()
    first, second = evaluate(model, data=(X, LABELS)), evaluate(model, data=(X, LABELS))
    assert first.metrics == second.metrics == {"accuracy": float(accuracy.value)}
    assert int(accuracy.mean.count) == SIZE


class Training(mk.Module):
    """Behaves otherwise in training, and writes on each call."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = mk.Variable(0, trainable=False, name="calls")
        self.dropout = mk.Dropout(0.5)

    def __call__(self, x: jax.Array, is_training: bool) -> jax.Array:
        self.calls.assign_add(1)
        return self.dropout(x[:, :CLASSES], is_training)


def test_a_model_is_told_that_it_does_not_train_and_no_variable_changes() -> None:
    model = Training()
    np.testing.assert_array_equal(Predict(batch_size=8)(model, data=X), X[:, :CLASSES])
    Evaluate(batch_size=8)(model, data=(X, LABELS))
    assert int(model.calls) == 0


def test_a_model_is_built_by_its_first_evaluation_and_seen_as_it_is_by_the_next() -> None:
    model = mk.Linear(CLASSES)
    predict = Predict(batch_size=8)
    first = predict(model, data=X)
    np.testing.assert_allclose(first, X @ model.w.numpy(), rtol=1e-5, atol=1e-6)
    model.w.assign(2 * model.w)
    np.testing.assert_allclose(predict(model, data=X), 2 * first, rtol=1e-5, atol=1e-6)


def test_inputs_alone_are_measured_against_themselves() -> None:
    images = np.random.default_rng(0).uniform(size=(9, 12, 12, 1)).astype(np.float32)
    report = Evaluate(batch_size=4)(lambda x: 0.9 * x, data=images)
    error = np.square(0.1 * images.astype(np.float64)).mean(axis=(1, 2, 3))
    assert report.metrics["mse"] == pytest.approx(error.mean(), rel=1e-5)
    assert report.metrics["psnr"] == pytest.approx((-10 * np.log10(error)).mean(), rel=1e-5)
    assert 0.9 < report.metrics["ssim"] < 1
    assert report.worst[0].index == error.argmax()
    np.testing.assert_array_equal(report.worst[0].image, images[error.argmax()])


def test_small_and_flat_images_have_the_metrics_that_fit() -> None:
    assert set(Evaluate()(lambda x: x, data=np.ones([3, 8, 8, 1])).metrics) == {"mse", "psnr"}
    assert set(Evaluate()(lambda x: x, data=np.ones([3, 64])).metrics) == {"mse"}
    assert Evaluate()(lambda x: x + 1, data=np.zeros([3, 8, 8, 1], np.uint8)).metrics["psnr"] == pytest.approx(
        20 * np.log10(255), rel=1e-6
    )


def test_intervals_are_covered() -> None:
    targets = normal(SIZE, 2, seed=4)
    report = Evaluate()(lambda x: (x[:, :2] - 1, x[:, :2] + 1), data=(X, targets))
    assert report.metrics == {"coverage": pytest.approx((abs(X[:, :2] - targets) <= 1).mean(), rel=1e-6)}
    assert report.worst == []


def test_a_loss_that_is_no_number_is_the_worst_and_shows() -> None:
    x = X.copy()
    x[31] = np.nan
    report = Evaluate(worst=2)(lambda v: v[:, :CLASSES], data=(x, LABELS))
    assert report.worst[0].index == 31 and np.isnan(report.metrics["nll"])


def test_two_padded_devices_give_what_one_gives() -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])}
    script = HERE / "subprocesses" / "evaluate_on_two_devices.py"
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == ["equal"]


def unrun(x: jax.Array) -> jax.Array:
    """Refuses to be computed; its shapes may be asked for."""
    jax.debug.callback(lambda: pytest.fail("the model ran"))
    return x[:, :CLASSES]


REFUSED = [
    ((X[:0], LABELS[:0]), ValueError, "at least one example"),
    ((X, LABELS[:-1]), ValueError, "data[0] has 50, data[1] has 49"),
    ((X, LABELS + 1), ValueError, "data[1]: label 4 at index 1 is out of range: 4 classes are 0 .. 3"),
    ((X, LABELS - 1), ValueError, "data[1]: label -1 at index 0 is out of range"),
    ((X, X), ValueError, "no metrics are known for outputs"),
    ((X, LABELS, LABELS), ValueError, "data must be a pair (inputs, targets) or one array, not a tuple of 3"),
]


@pytest.mark.parametrize(("data", "kind", "text"), REFUSED, ids=[text for *_, text in REFUSED])
def test_data_that_does_not_fit_is_refused_before_anything_runs(data: Any, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind) as caught:
        Evaluate()(unrun, data=data)
    assert text in str(caught.value)


def test_metrics_that_do_not_fit_are_refused_before_anything_runs() -> None:
    with pytest.raises(ValueError, match="expected predictions and targets") as caught:
        Evaluate({"mse": metrics.MeanSquaredError()})(unrun, data=(X, LABELS))
    assert "float32[50,4] and int32[50]" in str(caught.value)
    with pytest.raises(ValueError, match="integer labels") as caught:
        Evaluate({"area": metrics.AreaUnderROC()})(unrun, data=(X, X))
    assert "float32[50,4] and float32[50,6]" in str(caught.value)


def test_outputs_without_a_row_per_example_are_refused() -> None:
    with pytest.raises(ValueError, match="one row per example") as caught:
        Predict()(lambda x: {"mean": x.mean()}, data=X)
    assert "its output['mean'] has shape []" in str(caught.value)
    with pytest.raises(ValueError, match="it returned None"):
        Predict()(lambda x: None, data=X)


@pytest.mark.parametrize(
    ("make", "kind", "text"),
    [
        (lambda: Evaluate(batch_size=0), ValueError, "batch_size must be at least 1, got 0"),
        (lambda: Predict(batch_size=0), ValueError, "batch_size must be at least 1, got 0"),
        (lambda: Predict(devices=99), ValueError, "devices=99: expected 1 to"),
        (lambda: Evaluate(worst=-1), ValueError, "worst=-1: expected how many examples to show, 0 for none"),
        (lambda: Evaluate({}), ValueError, "metrics={} names none"),
        (lambda: Evaluate({"mean": mk.Mean()}), TypeError, "metrics['mean'] must be a modulekit.metrics.ExampleMetric"),
    ],
)
def test_settings_out_of_range_are_refused(make: Any, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind) as caught:
        make()
    assert text in str(caught.value)


def test_an_evaluation_inside_a_transform_is_refused() -> None:
    with pytest.raises(RuntimeError, match="called inside a transform"):
        mk.jit(lambda: Predict()(lambda x: x, data=X))()


def test_variables_are_as_before_after_a_failure() -> None:
    model = mk.Linear(CLASSES)
    mk.build(model, [1, 6])
    before = model.w.numpy()

    class Failing(metrics.PerExample):
        def per_example(self, *batch: Any) -> jax.Array:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Evaluate({"failing": Failing()})(model, data=(X, LABELS))
    np.testing.assert_array_equal(model.w.numpy(), before)
    assert jnp.isfinite(model.w.value).all()
