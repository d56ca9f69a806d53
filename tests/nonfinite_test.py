"""Laws of values that are not finite: which step, which samples, and what the weights are afterwards."""

import functools
import itertools
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from interrupted_runs import BATCH, Memory, Regression, State, states_of
from scenario_catalogue import assert_bitwise, log_lines

import modulekit as mk
import scenarios
from modulekit.checkpoints import CheckpointStore
from modulekit.core.randomness import default_stream
from modulekit.data import batch_indices
from scenarios import NonFiniteError, Stop, events
from scenarios.base.saving import Progress

SIZE, SAMPLE, STEP, STEPS = 2000, 1234, 77, 100
INTERVAL = 20


@functools.cache
def seed() -> int:
    """Returns the first seed whose order brings the sample first in the batch of the step."""
    orders = ((seed, batch_indices(SIZE, BATCH, seed, 0, STEP)) for seed in itertools.count())
    return next(seed for seed, order in orders if SAMPLE in order[-1] and SAMPLE not in order[:-1])


@functools.cache
def order() -> np.ndarray:
    """Returns the samples of each step, `[steps, batch]`."""
    return batch_indices(SIZE, BATCH, seed(), 0, STEPS)


@functools.cache
def sound_data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    return rng.normal(size=[SIZE, 5]).astype(np.float32), rng.normal(size=[SIZE]).astype(np.float32)


def data(*samples: int, value: float = np.nan) -> tuple[np.ndarray, np.ndarray]:
    """Returns the data with the inputs of some samples spoiled."""
    inputs, targets = sound_data()
    inputs = inputs.copy()
    inputs[list(samples)] = value
    return inputs, targets


def start(*samples: int, memory: Memory | None = None, hooks: Any = (), **settings: Any) -> tuple[Any, State]:
    """Runs with some samples spoiled; returns the result and the final state."""
    memory = Memory() if memory is None else memory
    common = {"steps": STEPS, "batch_size": BATCH, "seed": seed(), "log_interval": 1, "progress": False}
    result = Regression(**{**common, "steps_per_call": 50, **settings})(memory, data=data(*samples), hooks=hooks)
    return result, states_of(memory)


def by_hand(steps: int, bad: Collection[int] = (), interval: int | None = None) -> State:
    """Trains in a plain loop, without the updates of bad steps; with an interval these go back to its last multiple."""
    inputs, targets = sound_data()
    memory, stream = Memory(), default_stream()
    update = mk.jit(functools.partial(Regression(steps).update, memory=memory))
    anchor = (memory.m.value, memory.w.value)
    for step in range(1, steps + 1):
        if step in bad:
            if interval is not None:
                memory.m.assign(anchor[0])
                memory.w.assign(anchor[1])
        else:
            rows = order()[step - 1]
            stream.restart(jax.random.fold_in(jax.random.key(seed()), step - 1))
            update((jnp.asarray(inputs[rows]), jnp.asarray(targets[rows])))
        if interval is not None and step % interval == 0:
            anchor = (memory.m.value, memory.w.value)
    return states_of(memory)


def stopped(**settings: Any) -> tuple[NonFiniteError, State]:
    memory = Memory()
    with pytest.raises(NonFiniteError) as error:
        start(SAMPLE, memory=memory, **settings)
    return error.value, states_of(memory)


def newest(folder: Path) -> tuple[int | None, State, dict[str, Any]]:
    store = CheckpointStore(folder / "states")
    step = store.latest()
    assert step is not None
    arrays, record = store.restore(step)
    store.close()
    return step, arrays, record


@pytest.mark.parametrize("steps_per_call", [1, 50])
@pytest.mark.parametrize("on_device", [True, False])
def test_a_sample_poisoned_at_step_77_is_named_and_the_saved_weights_are_those_of_76_steps(
    steps_per_call: int, on_device: bool, tmp_path: Path
) -> None:
    error, state = stopped(save_dir=tmp_path, steps_per_call=steps_per_call, data_on_device=on_device)
    assert (error.step, error.samples, error.variables) == (STEP, [SAMPLE], ["memory.m", "memory.w"])
    assert f"update {STEP}: loss is nan; the data of sample {SAMPLE} is not finite; it would make" in str(error)
    step, arrays, record = newest(tmp_path)
    assert step == STEP - 1
    assert all(np.isfinite(array).all() for array in arrays.values())
    _, expected = start(steps=STEP - 1)
    for found in (state, arrays):
        assert_bitwise(found, expected)
    assert_bitwise(expected, by_hand(STEP - 1))
    assert record["progress"]["skipped"] == []


def test_the_losses_of_the_last_50_updates_are_kept(tmp_path: Path) -> None:
    error, _ = stopped(save_dir=tmp_path)
    losses = start(steps=STEP - 1)[0].column("loss")[1]
    assert error.losses[:-1] == losses[-50:]
    assert np.isnan(error.losses[-1])


def test_the_report_is_strict_json_and_the_batch_is_numpys(tmp_path: Path) -> None:
    error, state = stopped(save_dir=tmp_path)
    folder = tmp_path / "nonfinite" / f"step_{STEP}"
    assert error.__notes__ == [f"its examples and the losses before it are in {folder}"]
    report = json.loads((folder / "report.json").read_text(), parse_constant=pytest.fail)
    assert report == {
        "step": STEP, "message": str(error), "samples": [SAMPLE], "variables": error.variables,
        "metrics": {"loss": "nan"}, "losses": [*error.losses[:-1], "nan"],
    }  # fmt: skip
    with np.load(folder / "batch.npz", allow_pickle=False) as batch:
        assert sorted(batch) == ["batch[0]", "batch[1]", "indices"]
        inputs, targets, indices = (batch[name] for name in ("batch[0]", "batch[1]", "indices"))
    assert indices.tolist() == order()[STEP - 1].tolist()
    for found, expected in zip((inputs, targets), data(SAMPLE), strict=True):
        assert found.tobytes() == expected[indices].tobytes()
    memory = Memory()
    for path, variable in memory.paths().items():
        variable.assign(state[f"memory.{path}"])
    default_stream().restart(jax.random.fold_in(jax.random.key(seed()), STEP - 1))
    batch = (jnp.asarray(inputs), jnp.asarray(targets))
    assert np.isnan(mk.jit(functools.partial(Regression(1).update, memory=memory))(batch)["loss"])


def test_a_run_without_a_directory_writes_nothing_and_says_the_same(tmp_path: Path) -> None:
    error, state = stopped()
    saved, saved_state = stopped(save_dir=tmp_path)
    assert str(error) == str(saved)
    assert_bitwise(state, saved_state)
    assert not hasattr(error, "__notes__")


@pytest.mark.parametrize("steps_per_call", [1, 50])
@pytest.mark.parametrize("on_device", [True, False])
def test_a_skipped_update_is_one_that_never_was(steps_per_call: int, on_device: bool, tmp_path: Path) -> None:
    told: list[events.Event] = []
    result, state = start(
        SAMPLE, hooks=[told.append], non_finite="skip", steps_per_call=steps_per_call, save_dir=tmp_path,
        data_on_device=on_device,
    )  # fmt: skip
    assert_bitwise(state, by_hand(STEPS, {STEP}))
    assert (result.step, list(result.skipped), result.reason) == (STEPS, [STEP], "done")
    steps, losses = result.column("loss")
    assert steps == [step for step in range(1, STEPS + 1) if step != STEP]
    assert np.isfinite(losses).all()
    skipped = [event for event in told if isinstance(event, events.Skipped)]
    assert [(event.step, event.weights) for event in skipped] == [(STEP, STEP - 1)]
    assert f"the data of sample {SAMPLE} is not finite" in skipped[0].message
    logged = [line for line in log_lines(tmp_path) if line["event"] == "skipped"]
    assert [(line["step"], line["message"]) for line in logged] == [(STEP, skipped[0].message)]


def test_a_row_of_the_history_is_the_mean_of_the_updates_that_were_applied() -> None:
    result, _ = start(SAMPLE, non_finite="skip", log_interval=10)
    each = dict(zip(*start(SAMPLE, non_finite="skip")[0].column("loss"), strict=True))
    expected = np.mean([each[step] for step in range(71, 81) if step != STEP])
    np.testing.assert_allclose(dict(zip(*result.column("loss"), strict=True))[80], expected, rtol=1e-12)


def bad_from(step: int, count: int) -> list[int]:
    """Returns a sample of each of `count` steps from a step on, none of which comes in another step."""
    return [int(order()[step - 1 + index][0]) for index in range(count)]


def test_ten_skipped_updates_in_a_row_are_borne_and_eleven_are_not_also_after_an_interruption(tmp_path: Path) -> None:
    settings = {"non_finite": "skip", "save_dir": tmp_path}
    cut, _ = start(*bad_from(30, 11), hooks=[stop_at(35)], steps_per_call=1, **settings)
    assert list(cut.skipped) == list(range(30, 36))
    memory = Memory()
    with pytest.raises(NonFiniteError) as error:
        start(*bad_from(30, 11), memory=memory, **settings)
    assert error.value.step == 40
    assert_bitwise(states_of(memory), by_hand(29))
    assert newest(tmp_path)[2]["progress"]["skipped"] == list(range(30, 40))


def test_updates_in_a_row_are_counted_up_to_the_current_step() -> None:
    assert [Progress(step=step, skipped=[2, 4, 5]).skipped_last for step in (1, 2, 3, 5, 6)] == [0, 0, 0, 2, 0]
    assert Progress(step=2, skipped=[1, 2]).skipped_last == 2


def stop_at(step: int) -> Any:
    """Returns a hook that ends the run after the program in which a step is."""
    kinds = (events.Progressed, events.Skipped)
    return lambda event: Stop("cut") if isinstance(event, kinds) and event.step >= step else None


@pytest.mark.parametrize("steps_per_call", [1, 50])
@pytest.mark.parametrize("keep", [1, 3])
def test_a_rollback_goes_back_to_the_last_multiple_of_the_save_interval(
    steps_per_call: int, keep: int, tmp_path: Path
) -> None:
    told: list[events.Event] = []
    bad = [5, 30, 38, STEP]
    samples = [*(int(order()[step - 1][0]) for step in bad[:-1]), SAMPLE]
    result, state = start(
        *samples, hooks=[told.append], non_finite="rollback", save_interval=INTERVAL, save_dir=tmp_path, keep=keep,
        keep_best=0, steps_per_call=steps_per_call,
    )  # fmt: skip
    assert_bitwise(state, by_hand(STEPS, bad, INTERVAL))
    assert list(result.skipped) == bad
    skipped = [(event.step, event.weights) for event in told if isinstance(event, events.Skipped)]
    assert skipped == [(5, 0), (30, 20), (38, 20), (STEP, 60)]


@pytest.mark.parametrize("cut", [66, STEP, 79])
def test_a_rollback_after_an_interruption_goes_to_the_same_state(cut: int, tmp_path: Path) -> None:
    settings = {"non_finite": "rollback", "save_interval": INTERVAL, "save_dir": tmp_path, "keep": 1, "keep_best": 0}
    second = int(order()[81][0])
    result, _ = start(SAMPLE, second, hooks=[stop_at(cut)], steps_per_call=3, **settings)
    assert result.reason == "cut"
    result, state = start(SAMPLE, second, **settings)
    assert_bitwise(state, by_hand(STEPS, {STEP, 82}, INTERVAL))
    assert list(result.skipped) == [STEP, 82]


def test_a_run_that_begins_to_roll_back_late_goes_to_the_newest_state_that_there_is(tmp_path: Path) -> None:
    start(SAMPLE, steps=75, save_dir=tmp_path)
    told: list[events.Event] = []
    settings = {"non_finite": "rollback", "save_interval": 80, "steps": STEP, "save_dir": tmp_path}
    _, state = start(SAMPLE, hooks=[told.append], **settings)
    assert [(event.step, event.weights) for event in told if isinstance(event, events.Skipped)] == [(STEP, 75)]
    assert_bitwise(state, by_hand(75))


class Ascent(scenarios.Scenario):
    """A linear loss: its gradient is the mean of the inputs."""

    def update(self, batch: Any, *, model: Any, optimizer: Any) -> Mapping[str, Any]:
        return {"loss": optimizer.minimize(lambda: model(batch[0]).mean(), model)}


@pytest.mark.parametrize("steps_per_call", [1, 50])
def test_a_slot_that_overflows_is_noticed_though_the_weights_stay_finite(steps_per_call: int) -> None:
    model = mk.Linear(1, with_bias=False)
    ascent = Ascent(STEPS, batch_size=BATCH, seed=seed(), steps_per_call=steps_per_call, progress=False)
    with pytest.raises(NonFiniteError) as error:
        ascent(model, mk.optimizers.Adam(1e-3), data=data(SAMPLE, value=1e25))
    assert (error.value.step, error.value.variables) == (STEP, ["optimizer.v[0]"])
    assert "its metrics are finite, the new weights or slots are not" in str(error.value)
    assert np.isfinite(error.value.losses).all()
    assert np.isfinite(model.w.numpy()).all()
