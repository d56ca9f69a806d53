"""Laws that every scenario of the catalogue obeys: how a run is cut into programs changes no number."""

import functools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scenario_catalogue import (
    ROW,
    ROWS,
    STEPS,
    ScenarioRow,
    State,
    assert_bitwise,
    eagerly,
    log_lines,
    name_of,
    uninterrupted,
)

import modulekit as mk
import scenarios
from modulekit.checkpoints import CheckpointStore
from modulekit.core.randomness import default_stream
from modulekit.data import batch_indices
from scenarios import events
from scenarios.base.calling import needs_is_training

every_row = pytest.mark.parametrize("row", ROWS, ids=name_of)


@pytest.mark.parametrize("steps_per_call", [1, 50, None, 10**7])
@every_row
def test_steps_per_call_changes_no_bit(row: ScenarioRow, steps_per_call: int | None) -> None:
    expected, expected_state = uninterrupted(row)  # in calls of 7
    result, state = row.start(steps_per_call=steps_per_call)
    assert_bitwise(state, expected_state)
    assert result == expected
    assert result.step == STEPS


class Regression(scenarios.Scenario):
    """Fits a model by least squares."""

    def update(self, batch: Any, *, model: Any, optimizer: Any) -> Any:
        x, y = batch
        return {"loss": optimizer.minimize(lambda: ((model(x) - y) ** 2).mean(), model)}


def convolutions() -> mk.Module:
    """Two of them, which XLA computes by other means on its own than in a loop, on CPU."""
    return mk.Sequential([mk.Conv2D(4, 3), jnp.tanh, mk.Conv2D(1, 3)])


@pytest.mark.parametrize("spoilt", [False, True], ids=["", "with a step that is not finite"])
@pytest.mark.parametrize(
    ("model", "shape"), [(functools.partial(mk.Linear, 1), (1,)), (convolutions, (6, 6, 1))], ids=["linear", "conv"]
)
def test_steps_per_call_changes_no_bit_where_xla_rounds_a_step_on_its_own_in_another_way(
    model: Callable[[], mk.Module], shape: tuple[int, ...], spoilt: bool
) -> None:
    x = np.random.default_rng(3).normal(size=(40, *shape)).astype(np.float32)
    y = 5 * x
    y[11] = np.nan if spoilt else y[11]
    states = {}
    for steps_per_call in (1, 2, 7, 50):
        mk.seed(5)
        parts = {"model": model(), "optimizer": mk.optimizers.Adam(0.1)}
        fit = Regression(20, batch_size=8, seed=2, steps_per_call=steps_per_call, non_finite="skip", progress=False)
        result = fit(**parts, data=(x, y))
        assert len(result.skipped) == (4 if spoilt else 0)
        states[steps_per_call] = [np.asarray(v.value) for part in parts.values() for v in part.variables]
    for state in states.values():
        assert [a.tobytes() for a in state] == [a.tobytes() for a in states[1]]


class Backwards(scenarios.Scenario):
    """Returns metrics in an order that is not the alphabet's."""

    def update(self, batch: Any, *, total: Any) -> Any:
        total.w.assign_add(batch.sum())
        return {"z": total.w.value, "a": -total.w.value}


@pytest.mark.parametrize("steps_per_call", [1, 4])
def test_metrics_keep_the_order_of_the_update(steps_per_call: int, tmp_path: Path) -> None:
    total = mk.Module()
    total.w = mk.Variable(0.0, name="w")
    fit = Backwards(8, batch_size=2, log_interval=4, steps_per_call=steps_per_call, save_dir=tmp_path, progress=False)
    result = fit(total, data=np.ones([8], np.float32))
    assert [list(row) for row in result.history] == [["step", "z", "a"]] * 2
    store = CheckpointStore(tmp_path / "states")
    assert store.record(8)["progress"]["losses"] == [2.0 * step for step in range(1, 9)]  # those of the first metric
    store.close()


@every_row
def test_a_run_equals_a_plain_loop_over_eager_updates(row: ScenarioRow) -> None:
    steps, interval = 14, 7
    case = row.fresh()
    expected = eagerly(case, steps)
    result, state = row.start(steps=steps)
    for path, value in case.state().items():
        np.testing.assert_allclose(state[path], value, rtol=2e-5, atol=2e-6, err_msg=path)
    for name in expected[0]:
        means = np.mean([metrics[name] for metrics in expected], axis=0, keepdims=True)
        logged = np.array(result.column(name)[1])
        np.testing.assert_allclose(logged.mean(keepdims=True), means, rtol=2e-5)
        assert result.column(name)[0] == list(range(interval, steps + 1, interval))


def trained_by_hand(
    row: ScenarioRow, weights: list[str], transformation: Any, loss: Callable[[list[Any], Any], Any], steps: int = 50
) -> tuple[State, State]:
    """Trains the row's first weights with nothing but JAX and optax; returns them by path, and the scenario's."""
    case = row.fresh()
    case.run(steps=0)
    first = case.state()
    values = [jnp.asarray(first[path]) for path in weights]

    @jax.jit
    def step(values: Any, slots: Any, batch: Any) -> Any:
        updates, slots = transformation.update(jax.grad(loss)(values, batch), slots)
        return optax.apply_updates(values, updates), slots

    slots = transformation.init(values)
    size = len(jax.tree.leaves(case.data)[0])
    for indices in batch_indices(size, case.settings["batch_size"], case.settings["seed"], 0, steps):
        values, slots = step(values, slots, jax.tree.map(lambda array, rows=indices: array[rows], case.data))
    by_hand = {path: np.asarray(value) for path, value in zip(weights, values, strict=True)}
    _, state = row.start(steps=steps)
    return by_hand, state


def assert_trained_by_hand(by_hand: State, state: State) -> None:
    for path, value in by_hand.items():
        np.testing.assert_allclose(state[path], value, rtol=1e-5, atol=1e-5, err_msg=path)


def test_supervised_regression_equals_handwritten_jax() -> None:
    def loss(values: list[Any], batch: Any) -> Any:
        w, b = values
        x, y = batch
        return jnp.mean((x @ w + b - y) ** 2)

    assert_trained_by_hand(*trained_by_hand(ROW["regression"], ["model.w", "model.b"], optax.adam(0.05), loss))


@pytest.mark.parametrize("tied", [True, False])
def test_an_autoencoder_equals_handwritten_jax(tied: bool) -> None:
    def loss(values: list[Any], x: Any) -> Any:
        w, b, c, *v = values
        logits = (x @ w + b) @ (w.T if tied else v[0]) + c
        return -jnp.mean(x * jax.nn.log_sigmoid(logits) + (1 - x) * jax.nn.log_sigmoid(-logits))

    weights = ["encoder.w", "encoder.b", "decoder.b", *([] if tied else ["decoder.w"])]
    row = ROW["tied_autoencoder" if tied else "untied_autoencoder"]
    assert_trained_by_hand(*trained_by_hand(row, weights, optax.sgd(0.5, 0.9), loss))


@every_row
def test_a_run_leaves_the_default_stream_and_numpys_global_state_untouched(row: ScenarioRow) -> None:
    case = row.fresh()
    case.run(steps=0)
    mk.next_key()
    before, numpy_before = [v.numpy() for v in default_stream().variables], np.random.get_state()[1].tolist()
    case.run(steps=8)
    assert [v.numpy().tolist() for v in default_stream().variables] == [v.tolist() for v in before]
    assert np.random.get_state()[1].tolist() == numpy_before


def test_a_run_does_not_depend_on_the_default_stream() -> None:
    row = ROW["classification_with_dropout"]
    case = row.fresh()
    mk.build(case.parts["model"], [1, 5], is_training=False)
    mk.next_key()
    case.run()
    assert_bitwise(case.state(), uninterrupted(row)[1])


@every_row
def test_no_update_at_all_changes_nothing(row: ScenarioRow, tmp_path: Path) -> None:
    case = row.fresh()
    result = case.run(steps=0, save_dir=tmp_path)
    built = case.state()
    again = case.run(steps=0, save_dir=tmp_path)
    assert_bitwise(case.state(), built)
    assert result.step == again.step == 0
    assert again == result
    assert result.history == (
        [{"step": 0} | {f"eval_{k}": v for k, v in result.metrics.items()}] if result.metrics else []
    )


@pytest.mark.parametrize("steps_per_call", [1, 7, 50])
def test_logs_evaluations_and_saves_keep_their_exact_steps(steps_per_call: int, tmp_path: Path) -> None:
    told: list[tuple[str, int]] = []
    intervals = {"log_interval": 8, "eval_interval": 9, "save_interval": 25}
    result, _ = ROW["regression"].start(
        [lambda event: told.append((type(event).__name__, event.step))],
        steps_per_call=steps_per_call, save_dir=tmp_path, **intervals,
    )  # fmt: skip
    steps = {name: [step for kind, step in told if kind == name] for name in ("Logged", "Evaluated", "Saved")}
    assert steps == {
        "Logged": list(range(8, STEPS + 1, 8)),
        "Evaluated": [*range(9, STEPS + 1, 9), STEPS],
        "Saved": [25, 50, STEPS],
    }
    assert result.column("loss")[0] == steps["Logged"]
    assert result.column("eval_loss")[0] == steps["Evaluated"]


@every_row
def test_the_log_is_json_and_agrees_with_the_history(row: ScenarioRow, tmp_path: Path) -> None:
    result, _ = row.start(save_dir=tmp_path, eval_interval=20)
    lines = log_lines(tmp_path)
    logged = {line["step"]: line["metrics"] for line in lines if line["event"] == "logged"}
    evaluated = {line["step"]: line["metrics"] for line in lines if line["event"] == "evaluated"}
    for row_of_history in result.history:
        step = row_of_history["step"]
        expected = dict(logged.get(step, {})) | {f"eval_{k}": v for k, v in evaluated.get(step, {}).items()}
        assert {"step": step} | expected == row_of_history
    assert sorted(logged | evaluated) == [row_of_history["step"] for row_of_history in result.history]


def test_history_rows_are_the_means_of_the_updates_since_the_row_before() -> None:
    row = ROW["regression"]
    each = row.start(log_interval=1)[0].column("loss")[1]
    result, _ = row.start(log_interval=25)
    steps, means = result.column("loss")
    assert steps == [25, 50]
    np.testing.assert_allclose(means, [np.mean(each[:25]), np.mean(each[25:50])], rtol=1e-12)


def test_without_evaluation_data_the_metrics_are_the_last_row() -> None:
    result, _ = ROW["only_update"].start()
    assert {"step": 56, **result.metrics} == result.history[-1]
    short, _ = ROW["only_update"].start(steps=3)
    assert short.history == []
    assert short.metrics["count"] == 2.0


def test_parameters_count_each_shared_weight_once() -> None:
    counts = {row.name: uninterrupted(row)[0].parameters for row in ROWS}
    assert counts == {
        "classification_with_dropout": 5 * 6 + 6 + 6 * 3 + 3,
        "regression": 4 * 2 + 2,
        "tied_autoencoder": 6 * 3 + 3 + 6,
        "untied_autoencoder": 6 * 3 + 3 + 3 * 6 + 6,
        "two_optimizers": 2 * 3 + 3 + 3 * 1 + 1,
        "only_update": 0,
        "uneven_sizes": 4 * 2 + 2,
        "wrapped_optimizers": 4 * 2 + 2,
        "all_methods": 3 * 3 + 3,
    }


def test_a_run_reports_on_all_updates_of_a_program() -> None:
    told: list[events.Event] = []
    ROW["only_update"].start([told.append], steps=20, steps_per_call=6)
    assert [event.step for event in told if isinstance(event, events.Progressed)] == [6, 12, 18, 20]
    assert [event.metrics["count"] for event in told if isinstance(event, events.Progressed)] == [6, 12, 18, 20]


is_training_models = {
    "is asked by a model that says so": (mk.nets.MLP([1], dropout_rate=0.5), True),
    "is not asked by a model that says no": (mk.nets.MLP([1]), False),
    "is asked by an argument without default": (lambda x, is_training: x, True),
    "is asked by a default of its own": (lambda x, is_training=True: x, True),
    "is not asked by a default of None": (lambda x, is_training=None: x, False),
    "is not asked by a function without it": (lambda x: x, False),
}


@pytest.mark.parametrize("name", is_training_models)
def test_is_training(name: str) -> None:
    model, expected = is_training_models[name]
    assert needs_is_training(model) is expected


class Told(mk.Module):
    """A model that notes in a variable which way it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = mk.Linear(2)
        self.trained = mk.Variable(0, trainable=False, name="trained")

    def __call__(self, x: Any, is_training: bool) -> Any:
        assert isinstance(is_training, bool)
        if is_training:
            self.trained.assign_add(1)
        return self.linear(x)


def test_updates_train_and_evaluations_do_not() -> None:
    case = ROW["regression"].fresh()
    model = Told()
    case.replace(parts={**case.parts, "model": model}).run(steps=9, eval_interval=2)
    assert int(model.trained) == 9


def test_a_run_in_a_thread_is_the_same() -> None:
    row = ROW["regression"]
    outcome: list[State] = []
    thread = threading.Thread(target=lambda: outcome.append(row.start()[1]))
    thread.start()
    thread.join()
    assert_bitwise(outcome[0], uninterrupted(row)[1])
