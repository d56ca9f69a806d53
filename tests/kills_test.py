"""Laws of death: whenever a run is told to end, or killed, what it leaves is bitwise a step of the run without a break."""

import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from interrupted_runs import KILL, STEPS, Forks, Place, saved, start, states, uninterrupted
from scenario_catalogue import assert_bitwise, log_lines

DEATHS = 20
PHASES = ["evaluating"] * 6 + ["saving"] * 6 + ["stepping"] * 8
KINDS = ("logged", "evaluated")
SHORT = 0.05  # seconds: about as long as writing a state


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    started = Forks()
    yield started
    started.close()


def places(seed: int) -> Iterator[tuple[random.Random, str]]:
    """Returns where the 20 processes end, in a random order."""
    moments = random.Random(seed)
    phases = moments.sample(PHASES, DEATHS)
    return ((moments, phase) for phase in phases)


def assert_holds_a_step(folder: Path) -> tuple[int, dict[str, Any]]:
    """Asserts that the newest state is bitwise that of its step in a run without a break."""
    step, arrays, record = saved(folder)
    assert step is not None
    assert record["progress"]["step"] == step
    assert_bitwise(arrays, states()[step])
    return step, record["progress"]


def assert_ends_like_a_run_without_a_break(folder: Path) -> None:
    result, state = start(save_dir=folder / "run", steps_per_call=50)
    assert_bitwise(state, states()[STEPS])
    assert result.history == uninterrupted().history
    assert result.metrics == uninterrupted().metrics
    steps = {kind: [line["step"] for line in log_lines(folder / "run") if line["event"] == kind] for kind in KINDS}
    assert steps == {"logged": list(range(7, STEPS + 1, 7)), "evaluated": [*range(3, STEPS + 1, 3), STEPS]}


def test_20_random_sigterms_leave_20_times_the_last_finished_step(forks: Forks, tmp_path: Path) -> None:
    done, abandoned = 0, 0
    for moments, phase in places(seed=1):
        place = Place(phase, done + moments.randint(1, 5))
        fork = forks.start(tmp_path, place, save_interval=4, steps_per_call=2)
        held = fork.wait_until_held()
        if phase == "stepping":  # the moment in a step, an evaluation or a save
            fork.release()
            time.sleep(moments.uniform(0, SHORT))
        fork.send(signal.SIGTERM)
        fork.release()
        assert fork.wait() == 128 + signal.SIGTERM, fork.output()
        step, progress = assert_holds_a_step(tmp_path)
        assert f"SIGTERM: stopped after step {step} and saved; make the same call again to go on" in fork.output()
        assert step == fork.finished_step() >= held
        if phase == "evaluating":
            assert step == held
            assert progress["evaluated"] != held  # it was given up, and is made by the run that goes on
            abandoned += 1
        done = step
    assert abandoned == PHASES.count("evaluating")
    assert_ends_like_a_run_without_a_break(tmp_path)


def test_20_random_kills_leave_20_times_a_state_from_which_the_run_goes_on_bitwise(
    forks: Forks, tmp_path: Path
) -> None:
    done = 0
    for moments, phase in places(seed=2):
        fork = forks.start(tmp_path, Place(phase, done + moments.randint(1, 4)), save_interval=1)
        held = fork.wait_until_held()
        if phase != "evaluating":
            fork.release()
            time.sleep(moments.uniform(0, SHORT))
        fork.send(signal.SIGKILL)
        assert fork.wait() == KILL
        step, _ = assert_holds_a_step(tmp_path)
        assert step >= held - (1 if phase == "saving" else 2)  # a save waits for the one before to be complete
        done = step
    assert_ends_like_a_run_without_a_break(tmp_path)
