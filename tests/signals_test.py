"""Laws of interruption, tried on real processes: what is left always goes on to the same end."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from interrupted_runs import saved, start, states
from scenario_catalogue import ROW, STEPS, assert_bitwise, log_lines, uninterrupted

from modulekit.checkpoints import CheckpointStore
from modulekit.errors import CheckpointError
from scenarios import events
from scenarios.base.evaluating import Evaluator
from scenarios.base.stopping import Stopping

HERE = Path(__file__).parent
NAME = "classification_with_dropout"
HOLD = 30


def launch(folder: Path, hold: int | None = None, **options: Any) -> subprocess.Popen[str]:
    """Starts a run in another process."""
    job: dict[str, Any] = {"row": NAME, "seed": 11, "output": str(folder / "final.npz"), "folder": str(folder)}
    job["settings"] = {"save_dir": str(folder / "run"), **options}
    if hold is not None:
        job["hold"] = hold
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE)])}
    process = subprocess.Popen(
        [sys.executable, str(HERE / "subprocesses" / "run_scenario.py")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    assert process.stdin is not None
    process.stdin.write(json.dumps(job) + "\n")
    process.stdin.flush()
    return process


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 120) -> None:
    """Polls until something is true, and fails if the process ends before or time runs out."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.002)


def latest(folder: Path) -> int | None:
    store = CheckpointStore(folder / "run" / "states")
    step = store.latest()
    store.close()
    return step


def assert_goes_on_to_the_same_end(folder: Path) -> None:
    result, state = ROW[NAME].start(seed=99, save_dir=folder / "run")
    assert_bitwise(state, uninterrupted(ROW[NAME])[1])
    assert result.history == uninterrupted(ROW[NAME])[0].history
    assert result.metrics == uninterrupted(ROW[NAME])[0].metrics


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_in_the_middle_leaves_a_saved_state_and_the_same_call_goes_on(
    number: signal.Signals, tmp_path: Path
) -> None:
    process = launch(tmp_path, hold=HOLD, steps_per_call=5)
    wait_for((tmp_path / "held").exists, process)
    process.send_signal(number)
    (tmp_path / "go").touch()
    output, errors = process.communicate(timeout=60)
    assert process.returncode == (-signal.SIGINT if number == signal.SIGINT else 128 + number), errors
    assert output == ""
    found = re.search(r"stopped after step (\d+) and saved; make the same call again to go on from there", errors)
    assert found, errors
    assert ("KeyboardInterrupt: stopped" if number == signal.SIGINT else f"{number.name}: stopped") in errors
    assert HOLD <= int(found[1]) < STEPS
    assert latest(tmp_path) == int(found[1])
    lines = log_lines(tmp_path / "run")
    assert [line["event"] for line in lines[-2:]] == ["saved", "finished"]
    assert lines[-1]["reason"] == f"ended by {'KeyboardInterrupt' if number == signal.SIGINT else 'SystemExit'}"
    assert_goes_on_to_the_same_end(tmp_path)


def test_a_second_signal_leaves_at_once_without_saving(tmp_path: Path) -> None:
    process = launch(tmp_path, hold=HOLD, steps_per_call=5, save_interval=20)
    wait_for((tmp_path / "held").exists, process)
    wait_for((tmp_path / "run" / "states" / "20").exists, process)

    def ended() -> bool:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            time.sleep(0.02)
        return process.poll() is not None

    deadline = time.monotonic() + 50
    while not ended():
        assert time.monotonic() < deadline, "two signals did not end the run"
    _, errors = process.communicate()
    assert not (tmp_path / "go").exists()  # the hook was still holding the run
    assert "LeftAtOnce: a second signal: the run ended at once, without saving" in errors
    assert process.returncode == -signal.SIGINT
    assert latest(tmp_path) == 20
    assert_goes_on_to_the_same_end(tmp_path)


def raising(kind: type[events.Event], number: int) -> Any:
    """Returns a hook that sends the process a signal at the first event of a kind."""
    pending = [number]

    def hook(event: events.Event) -> None:
        if isinstance(event, kind) and pending:
            signal.raise_signal(pending.pop())

    return hook


@pytest.mark.parametrize("steps_per_call", [1, 5, 50])
def test_an_interrupted_program_is_finished_first(steps_per_call: int, tmp_path: Path) -> None:
    row = ROW[NAME]
    hook = raising(events.Logged, signal.SIGINT)  # at step 7, in the middle of a program
    stop = {1: 7, 5: 10, 50: 50}[steps_per_call]
    message = f"^stopped after step {stop} and saved; make the same call again to go on from there$"
    with pytest.raises(KeyboardInterrupt, match=message):
        row.start([hook], save_dir=tmp_path / "run", steps_per_call=steps_per_call)
    assert latest(tmp_path) == stop
    assert_goes_on_to_the_same_end(tmp_path)


def test_without_a_directory_the_message_says_that_nothing_was_saved() -> None:
    with pytest.raises(
        KeyboardInterrupt, match=r"^stopped after step 7; nothing was saved, since no save_dir was given$"
    ):
        ROW["regression"].start([raising(events.Progressed, signal.SIGINT)])


def test_sigterm_exits_with_143_and_says_why(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as error:
        ROW["regression"].start([raising(events.Progressed, signal.SIGTERM)], save_dir=tmp_path)
    assert error.value.code == 143
    assert capsys.readouterr().err == (
        "SIGTERM: stopped after step 7 and saved; make the same call again to go on from there\n"
    )


@pytest.mark.parametrize("kind", [events.Evaluated, events.Saved])
def test_a_signal_during_the_final_evaluation_or_save_is_not_lost(kind: type[events.Event], tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt, match=f"^stopped after step {STEPS} and saved"):
        ROW[NAME].start([raising(kind, signal.SIGINT)], save_dir=tmp_path / "run")
    assert_goes_on_to_the_same_end(tmp_path)


def test_a_run_gives_the_signal_handlers_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    during: list[Any] = []
    ROW["only_update"].start([lambda event: during.append(signal.getsignal(signal.SIGINT))], steps=7)
    with pytest.raises(KeyboardInterrupt):
        ROW["only_update"].start([raising(events.Progressed, signal.SIGINT)])
    assert during[1] not in before
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_outside_the_main_thread_signals_are_left_alone() -> None:
    before, seen = signal.getsignal(signal.SIGINT), []

    def enter() -> None:
        with Stopping() as stopping:
            seen.extend([signal.getsignal(signal.SIGINT), stopping.received])

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [before, None]


def test_sigusr1_exits_with_138(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as error:
        start([raising(events.Progressed, signal.SIGUSR1)], save_dir=tmp_path / "run", steps=20)
    assert error.value.code == 138


def assert_lean_run_goes_on_to_the_same_end(folder: Path, steps: int) -> None:
    """Asserts that the same call ends bitwise as the run that nothing interrupts."""
    result, state = start(save_dir=folder / "run", steps=steps)
    assert_bitwise(state, states()[steps])
    assert result.history == start(steps=steps)[0].history


def test_an_evaluation_is_abandoned_and_made_by_the_run_that_goes_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    means, asked = Evaluator.means, []

    def interrupted_means(self: Evaluator, step: int, interrupted: Callable[[], bool]) -> dict[str, float] | None:
        def ask() -> bool:
            asked.append(True)
            if len(asked) == 8:  # the second batch of the third evaluation
                signal.raise_signal(signal.SIGINT)
            return interrupted()

        return means(self, step, ask)

    monkeypatch.setattr(Evaluator, "means", interrupted_means)
    with pytest.raises(KeyboardInterrupt, match=r"^stopped after step 9 and saved"):
        start(save_dir=tmp_path / "run", steps=20)
    assert len(asked) == 8
    monkeypatch.undo()
    step, arrays, record = saved(tmp_path)
    assert step == 9
    assert_bitwise(arrays, states()[9])
    assert record["progress"]["evaluated"] == 6
    assert_lean_run_goes_on_to_the_same_end(tmp_path, 20)


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGUSR1])
def test_a_second_sigterm_loses_no_save(second: int, tmp_path: Path) -> None:
    hooks = [raising(events.Progressed, signal.SIGTERM), raising(events.Progressed, second)]
    with pytest.raises(SystemExit) as error:
        start([*hooks, raising(events.Saved, second)], save_dir=tmp_path / "run", steps=20, steps_per_call=2)
    assert error.value.code == 143
    step, arrays, _ = saved(tmp_path)
    assert step == 2
    assert_bitwise(arrays, states()[2])
    assert_lean_run_goes_on_to_the_same_end(tmp_path, 20)


def test_a_second_ctrl_c_leaves_at_once_also_while_a_state_is_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    written, write, began = threading.Event(), CheckpointStore._write, threading.Event()
    waited_for: list[bool] = []

    def slow(self: CheckpointStore, *state: Any) -> None:
        began.set()
        if not written.wait(10):
            waited_for.append(True)
        write(self, *state)

    def impatient() -> None:
        began.wait(30)
        for _ in range(2):
            time.sleep(0.2)
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(CheckpointStore, "_write", slow)
    thread = threading.Thread(target=impatient)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt, match=r"^a second signal: the run ended at once, without saving$"):
            start(save_dir=tmp_path / "run", save_interval=4, steps=20)
        assert not waited_for
    finally:
        thread.join()
        written.set()


def test_a_time_limit_ends_the_run_at_the_next_step_and_each_call_has_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seconds = [0.0]

    def hook(event: events.Event) -> None:
        seconds[0] += 2.0 if isinstance(event, events.Progressed) else 0.0

    monkeypatch.setattr("scenarios.base.stopping.monotonic", lambda: seconds[0])
    settings = {"save_dir": tmp_path / "run", "steps": 12, "steps_per_call": 1, "time_limit": 9}
    for step, reason in ((5, "the time limit of 9 s"), (10, "the time limit of 9 s"), (12, "done")):
        result, state = start([hook], **settings)
        assert (result.step, result.reason) == (step, reason)
        assert_bitwise(state, states()[step])
        assert saved(tmp_path)[0] == step
    assert result.history == start(steps=12)[0].history


def test_a_file_stop_ends_the_run_is_removed_and_the_same_call_goes_on(tmp_path: Path) -> None:
    file = tmp_path / "run" / "STOP"

    def hook(event: events.Event) -> None:
        if isinstance(event, events.Progressed) and event.step == 7:
            file.touch()

    result, state = start([hook], save_dir=tmp_path / "run", steps=20, steps_per_call=1)
    assert (result.step, result.reason) == (7, "the file STOP")
    assert not file.exists()
    assert_bitwise(state, states()[7])
    assert [line["reason"] for line in log_lines(tmp_path / "run")[-1:]] == ["the file STOP"]
    assert_lean_run_goes_on_to_the_same_end(tmp_path, 20)


# Two runs and one directory.


def test_a_directory_in_which_a_process_trains_is_refused_until_that_has_ended_however_it_ends(tmp_path: Path) -> None:
    process = launch(tmp_path, hold=HOLD, steps_per_call=5, save_interval=10)
    wait_for((tmp_path / "held").exists, process)
    before = log_lines(tmp_path / "run")
    with pytest.raises(CheckpointError) as caught:
        ROW[NAME].start(save_dir=tmp_path / "run")
    assert re.search(rf"run is in use by process {process.pid} on \S+: wait until it has ended, ", str(caught.value))
    assert log_lines(tmp_path / "run") == before
    process.kill()
    process.communicate()
    assert_bitwise(ROW[NAME].start(save_dir=tmp_path / "run")[1], uninterrupted(ROW[NAME])[1])


def test_a_run_inside_another_one_s_hook_cannot_use_its_directory(tmp_path: Path) -> None:
    def hook(event: events.Event) -> None:
        if isinstance(event, events.Started):
            ROW[NAME].start(save_dir=tmp_path)

    with pytest.raises(CheckpointError, match=rf"^{tmp_path} is in use by process {os.getpid()} on "):
        ROW[NAME].start([hook], save_dir=tmp_path)
    result, _ = ROW[NAME].start(save_dir=tmp_path)
    assert result.step == STEPS
