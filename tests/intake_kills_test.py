"""Laws of death: whenever a process with an intake is killed, all that it was told was accepted is there afterwards."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from killed_intakes import EACH, Vector, gradients, step

import modulekit as mk
from modulekit.errors import CheckpointError
from scenarios.aggregation import Intake

HERE = Path(__file__).parent
DEATHS = 20


@pytest.fixture(scope="module")
def start() -> Iterator[Callable[[Path], tuple[int, Callable[[], int]]]]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE)])}
    command = [sys.executable, str(HERE / "subprocesses" / "contribute.py")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdin is not None and process.stdout is not None
    output = process.stdout

    def started(folder: Path) -> tuple[int, Callable[[], int]]:
        assert process.stdin is not None
        process.stdin.write(f"{folder}\n")
        process.stdin.flush()
        return int(output.readline()), lambda: int(output.readline())

    yield started
    process.stdin.close()
    assert process.wait(timeout=60) == 0


def told(folder: Path) -> list[tuple[str, ...]]:
    """Returns what the process was told so far."""
    file = folder / "told"
    return [tuple(line.split()) for line in file.read_text().splitlines()] if file.exists() else []


def assert_nothing_is_lost(folder: Path, whole: list[bytes]) -> None:
    """Asserts that all that was acknowledged is in the directory, and the weights are bitwise those of their version."""
    model = Vector()
    intake = Intake(model, folder / "intake")
    assert [file.name for file in (folder / "intake").rglob(".*")] == [".lock"]
    applied = [int(version) for what, version, *_ in told(folder) if what == "applied"]
    accepted = {(int(words[1]), words[2]) for words in told(folder) if words[0] == "accepted"}
    assert intake.version >= max(applied, default=0)
    assert {key for key in accepted if key[0] >= intake.version} <= set(intake.keys)
    for (version, name), contribution in intake._held.items():
        assert version == intake.version
        for path, value in gradients(version, int(name)).items():
            assert contribution.gradients[path].tobytes() == value.tobytes()
    while len(whole) <= intake.version:
        whole.append(next_state())
    assert model.w.numpy().tobytes() + model.b.numpy().tobytes() == whole[intake.version]


_reference = (Vector(), mk.optimizers.Momentum(0.1, 0.9))
_intake = Intake(_reference[0])


def next_state() -> bytes:
    """Returns the weights after one version more of an intake that nobody kills."""
    step(_intake, _reference[1])
    return _reference[0].w.numpy().tobytes() + _reference[0].b.numpy().tobytes()


def test_20_random_kills_lose_nothing_that_was_accepted(
    start: Callable[[Path], tuple[int, Callable[[], int]]], tmp_path: Path
) -> None:
    moments, began = random.Random(3), Vector()
    whole = [began.w.numpy().tobytes() + began.b.numpy().tobytes()]
    for death in range(DEATHS):
        before = len(told(tmp_path))
        pid, ended = start(tmp_path)
        wanted, deadline = before + moments.randint(0, 2 * EACH), time.monotonic() + 60
        while len(told(tmp_path)) < wanted:
            assert time.monotonic() < deadline, death
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.02))
        os.kill(pid, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(ended()) == -signal.SIGKILL
        assert_nothing_is_lost(tmp_path, whole)
    assert len(whole) > DEATHS / 2


def test_a_directory_that_another_process_uses_is_refused_and_not_touched(
    start: Callable[[Path], tuple[int, Callable[[], int]]], tmp_path: Path
) -> None:
    pid, ended = start(tmp_path)
    deadline = time.monotonic() + 60
    while len(told(tmp_path)) < EACH + 1:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    os.kill(pid, signal.SIGSTOP)
    before = {file: file.read_bytes() for file in (tmp_path / "intake").rglob("*") if file.is_file()}
    model = Vector()
    with pytest.raises(
        CheckpointError, match=rf"intake is in use by process {pid} on \S+: .* choose another directory$"
    ):
        Intake(model, tmp_path / "intake")
    assert {file: file.read_bytes() for file in (tmp_path / "intake").rglob("*") if file.is_file()} == before
    assert not model.w.numpy().any()
    os.kill(pid, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(ended()) == -signal.SIGKILL
    Intake(model, tmp_path / "intake")
    assert model.w.numpy().any()
