"""Laws of resuming: a run that was cut anywhere ends, in another process, as if it had not been."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scenario_catalogue import (
    ROW,
    ROWS,
    SEED,
    STEPS,
    ScenarioRow,
    State,
    assert_bitwise,
    exactly,
    log_lines,
    name_of,
    uninterrupted,
)

import modulekit as mk
import scenarios
from modulekit.checkpoints import CheckpointStore
from modulekit.errors import CheckpointError
from scenarios import events
from scenarios.base import identity

HERE = Path(__file__).parent
REGRESSION = ROW["regression"]
OTHER_SEED = 99  # of the first weights, which a resumed run must not use
every_row = pytest.mark.parametrize("row", ROWS, ids=name_of)


class Cut(Exception):
    """What ends a run in the middle."""


def cutting(step: int) -> Any:
    """Returns a hook that ends the run in the program after the one whose state, that after `step`, is saved."""

    def hook(event: events.Event) -> None:
        if isinstance(event, events.Progressed) and event.step > step:
            raise Cut

    return hook


def cut(row: ScenarioRow, step: int, folder: Path, **options: Any) -> None:
    """Runs a row up to the saved state after `step`."""
    with pytest.raises(Cut):
        row.start([cutting(step)], save_dir=folder, save_interval=step, **options)


class Worker:
    """Another process, which runs rows of the catalogue."""

    def __init__(self) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE)])}
        command = [sys.executable, str(HERE / "subprocesses" / "run_scenario.py")]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def run(self, row: ScenarioRow, folder: Path, **options: Any) -> tuple[dict[str, Any], State]:
        """Runs a row in the other process, from other first weights; returns the reply and the final state."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        output = folder / "final.npz"
        job = {
            "row": row.name,
            "seed": OTHER_SEED,
            "output": str(output),
            "settings": {**options, "save_dir": str(folder)},
        }
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the other process has ended"
        with np.load(output) as state:
            return json.loads(line), dict(state)

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        assert self._process.wait(timeout=60) == 0


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    other = Worker()
    yield other
    other.close()


def assert_resumed_exactly(row: ScenarioRow, reply: dict[str, Any], state: State) -> None:
    expected, expected_state = uninterrupted(row)
    assert_bitwise(state, expected_state)
    assert reply["step"] == expected.step
    assert reply["history"] == expected.history
    assert reply["metrics"] == expected.metrics
    assert reply["reason"] == "done"


@every_row
def test_a_run_cut_in_the_middle_of_an_epoch_resumes_bitwise_in_another_process(
    row: ScenarioRow, worker: Worker, tmp_path: Path
) -> None:
    cut(row, 23, tmp_path)
    reply, state = worker.run(row, tmp_path)
    assert_resumed_exactly(row, reply, state)
    steps = [line["step"] for line in log_lines(tmp_path) if line["event"] == "logged"]
    assert steps == list(range(7, STEPS + 1, 7))


@settings(deadline=None, max_examples=8, suppress_health_check=list(HealthCheck), derandomize=True)
@given(
    row=st.sampled_from(ROWS),
    step=st.integers(1, STEPS - 1),
    before=st.sampled_from([1, 3, 20, None]),
    after=st.sampled_from([1, 5, 50, None]),
)
def test_a_run_cut_after_any_step_resumes_bitwise_in_another_process(
    worker: Worker, row: ScenarioRow, step: int, before: int | None, after: int | None
) -> None:
    folder = Path(tempfile.mkdtemp())
    try:
        cut(row, step, folder, steps_per_call=before)
        reply, state = worker.run(row, folder, steps_per_call=after)
        assert_resumed_exactly(row, reply, state)
    finally:
        shutil.rmtree(folder)


def test_a_run_cut_many_times_ends_the_same(tmp_path: Path) -> None:
    row = ROW["classification_with_dropout"]
    for step, seed in ((5, SEED), (6, 1), (59, 2)):
        cut(row, step, tmp_path, seed=seed)
    result, state = row.start(seed=OTHER_SEED, save_dir=tmp_path)
    assert_bitwise(state, uninterrupted(row)[1])
    assert result.history == uninterrupted(row)[0].history


def test_a_finished_run_trains_no_more_and_returns_the_same(worker: Worker, tmp_path: Path) -> None:
    row = ROW["classification_with_dropout"]
    row.start(save_dir=tmp_path)
    told: list[events.Event] = []
    result, state = row.start([told.append], seed=OTHER_SEED, save_dir=tmp_path)
    assert [type(event) for event in told] == [events.Started, events.Finished]
    assert_bitwise(state, uninterrupted(row)[1])
    assert result.metrics == uninterrupted(row)[0].metrics
    assert_resumed_exactly(row, *worker.run(row, tmp_path))


def test_more_steps_go_on_from_a_finished_run(tmp_path: Path) -> None:
    row = ROW["regression"]
    row.start(steps=31, save_dir=tmp_path)
    result, state = row.start(seed=OTHER_SEED, save_dir=tmp_path)
    assert_bitwise(state, uninterrupted(row)[1])
    assert result.metrics == uninterrupted(row)[0].metrics
    assert result.column("loss") == uninterrupted(row)[0].column("loss")


@every_row
def test_after_a_resume_the_log_holds_each_step_once(row: ScenarioRow, tmp_path: Path) -> None:
    def cut_late(event: events.Event) -> None:
        if isinstance(event, events.Logged) and event.step == 49:
            raise Cut

    with pytest.raises(Cut):
        row.start([cut_late], save_dir=tmp_path, save_interval=20, eval_interval=10)
    result, _ = row.start(save_dir=tmp_path, save_interval=20, eval_interval=10)
    lines = log_lines(tmp_path)
    logged = [line["step"] for line in lines if line["event"] == "logged"]
    evaluated = [line["step"] for line in lines if line["event"] == "evaluated"]
    assert logged == list(range(7, STEPS + 1, 7))
    assert evaluated == (list(range(10, STEPS + 1, 10)) if row.name != "only_update" else [])
    assert [line["step"] for line in lines if line["event"] == "saved"] == [20, 40, 60]
    assert [row_of_history["step"] for row_of_history in result.history] == sorted({*logged, *evaluated})


def test_a_log_line_that_a_killed_process_left_incomplete_is_cut_off(tmp_path: Path) -> None:
    row = ROW["regression"]
    cut(row, 20, tmp_path)
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"event": "logged", "step": 21, "met')
    row.start(save_dir=tmp_path)
    assert [line["step"] for line in log_lines(tmp_path) if line["event"] == "logged"] == list(range(7, STEPS + 1, 7))


def test_half_written_states_are_ignored(tmp_path: Path) -> None:
    row = ROW["regression"]
    cut(row, 20, tmp_path)
    states = tmp_path / "states"
    for name in ("40.orbax-checkpoint-tmp", "60.orbax-checkpoint-tmp", "60.orbax-checkpoint-tmp-17"):
        shutil.copytree(states / "20", states / name)
        shutil.rmtree(states / name / "arrays")
    (states / ".write-test-1").write_text("")
    (tmp_path / ".log.jsonl").write_text("half")
    _, state = row.start(seed=OTHER_SEED, save_dir=tmp_path, save_interval=20)
    assert_bitwise(state, uninterrupted(row)[1])
    store = CheckpointStore(states)
    assert store.latest() == STEPS
    assert store.restore(STEPS)[1]["progress"]["step"] == STEPS
    store.close()


def test_steps_per_call_is_the_callers_also_after_a_resume(tmp_path: Path) -> None:
    row = ROW["only_update"]
    cut(row, 20, tmp_path, steps_per_call=1)
    told: list[events.Event] = []
    row.start([told.append], save_dir=tmp_path, steps_per_call=15)
    assert [event.step for event in told if isinstance(event, events.Progressed)] == [35, 50, 60]


def test_a_run_resumes_with_the_objects_that_it_was_cut_with(tmp_path: Path) -> None:
    row = ROW["classification_with_dropout"]
    case = row.fresh(SEED)
    with pytest.raises(Cut):
        case.run([cutting(20)], save_dir=tmp_path, save_interval=20)
    case.run(save_dir=tmp_path)
    assert_bitwise(case.state(), uninterrupted(row)[1])


# Directories of other runs.


def refusal(folder: Path, *found: str) -> str:
    return (
        f"{folder / 'states'} holds a run that cannot go on like this: {'; '.join(found)}. Choose another save_dir, or go "
        "back to what that run was made of"
    )


@pytest.mark.parametrize(("name", "value", "saved"), [("seed", 4, 3), ("batch_size", 9, 10)])
def test_the_directory_of_a_run_with_incompatible_settings_is_refused(
    name: str, value: int, saved: int, tmp_path: Path
) -> None:
    REGRESSION.start(steps=10, save_dir=tmp_path)
    found = [f"{name}: saved {saved}, now {value} (incompatible)", f"steps: saved 10, now {STEPS} (safe)"]
    case = REGRESSION.fresh()
    case.run(steps=0)
    before = case.state()
    with pytest.raises(CheckpointError, match=exactly(refusal(tmp_path, *found))):
        case.run(save_dir=tmp_path, **{name: value})
    assert_bitwise(case.state(), before)


def test_safe_and_schedule_changing_differences_are_printed_and_the_run_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    REGRESSION.start(steps=10, save_dir=tmp_path)
    assert capsys.readouterr().err == ""
    case = REGRESSION.fresh()
    case = case.replace(parts={**case.parts, "optimizer": mk.optimizers.Adam(0.01)})
    result = case.run(save_dir=tmp_path, log_interval=8, eval_interval=None)
    assert capsys.readouterr().err.splitlines() == [
        f"going on from {tmp_path}: optimizer: saved 'Adam(learning_rate=0.05)', now 'Adam(learning_rate=0.01)' "
        "(schedule-changing)",
        f"going on from {tmp_path}: steps: saved 10, now {STEPS} (safe)",
        f"going on from {tmp_path}: log_interval: saved 7, now 8 (safe)",
    ]
    assert result.step == STEPS
    assert result.column("loss")[0] == [7, *range(16, STEPS + 1, 8)]


class Tempered(scenarios.Supervised):
    def __init__(self, steps: int, temperature: float, **settings: Any) -> None:
        super().__init__(steps, **settings)
        self.temperature = temperature


def test_the_settings_that_a_scenario_adds_change_its_schedule(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = REGRESSION.fresh().replace(scenario=Tempered)
    case.run(steps=10, temperature=2.0, save_dir=tmp_path)
    case.run(steps=10, temperature=1.5, save_dir=tmp_path)
    assert "temperature: saved 2.0, now 1.5 (schedule-changing)" in capsys.readouterr().err


def test_every_setting_has_a_kind() -> None:
    names = {field.name for field in dataclasses.fields(scenarios.Settings)}
    assert names - {"save_dir", "cache_dir"} <= identity._KINDS.keys()


def test_the_directory_of_a_run_on_other_data_is_refused(tmp_path: Path) -> None:
    REGRESSION.start(save_dir=tmp_path)
    case = REGRESSION.fresh()
    inputs, targets = case.data
    changed = inputs.copy()
    changed[123, 2] += 1e-3
    message = r"cannot go on like this: data: saved '[0-9a-f]{16}', now '[0-9a-f]{16}' \(incompatible\)\."
    with pytest.raises(CheckpointError, match=message):
        case.replace(data=(changed, targets)).run(save_dir=tmp_path)


def test_the_directory_of_another_scenario_is_refused(tmp_path: Path) -> None:
    REGRESSION.start(save_dir=tmp_path)
    case = REGRESSION.fresh()

    class Mine(scenarios.Supervised):
        pass

    found = "scenario: saved 'Supervised', now 'Mine' (incompatible)"
    with pytest.raises(CheckpointError, match=exactly(refusal(tmp_path, found))):
        case.replace(scenario=Mine).run(save_dir=tmp_path)


def test_the_directory_of_a_run_with_other_parts_is_refused_and_nothing_is_assigned(tmp_path: Path) -> None:
    REGRESSION.start(steps=10, save_dir=tmp_path)
    case = REGRESSION.fresh()
    parts = {**case.parts, "model": mk.nets.MLP([5, 2]), "optimizer": mk.optimizers.SGD(0.1)}
    case = case.replace(parts=parts)
    case.run(steps=0)
    before = case.state()
    message = (
        f"the state in {tmp_path / 'states'} does not fit these parts: missing model.layers[0].b; missing "
        "model.layers[0].w; missing model.layers[1].b; missing model.layers[1].w; unexpected model.b; unexpected model.w; "
        "unexpected optimizer.m[0]; unexpected optimizer.m[1]; and 3 more. Nothing was assigned"
    )
    with pytest.raises(CheckpointError, match=exactly(message)):
        case.run(save_dir=tmp_path)
    assert_bitwise(case.state(), before)


def test_a_saved_weight_of_another_shape_is_named(tmp_path: Path) -> None:
    case = REGRESSION.fresh()
    for sizes in ([5, 2], [6, 2]):
        parts = {**case.parts, "model": mk.nets.MLP(sizes), "optimizer": mk.optimizers.SGD(0.1)}
        case = case.replace(parts=parts)
        if sizes == [5, 2]:
            case.run(steps=10, save_dir=tmp_path)
    message = (
        f"the state in {tmp_path / 'states'} does not fit these parts: model.layers[0].b is float32[5], the variable "
        "float32[6]; model.layers[0].w is float32[4, 5], the variable float32[4, 6]; model.layers[1].w is float32[5, 2], "
        "the variable float32[6, 2]. Nothing was assigned"
    )
    with pytest.raises(CheckpointError, match=exactly(message)):
        case.run(save_dir=tmp_path)


def test_fewer_steps_than_are_saved_are_refused(tmp_path: Path) -> None:
    REGRESSION.start(steps=10, save_dir=tmp_path)
    message = (
        f"{tmp_path / 'states'} holds a run that has already done 10 steps, and steps=9 asks for fewer. "
        "Choose another save_dir, or more steps"
    )
    with pytest.raises(CheckpointError, match=exactly(message)):
        REGRESSION.start(steps=9, save_dir=tmp_path)
