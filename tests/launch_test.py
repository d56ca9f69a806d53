"""Laws of several processes: they train as one, save together, end together, and what one of them loses is gone on with."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from modulekit.checkpoints import CheckpointStore
from scenarios.base.lock import sole_use

HERE = Path(__file__).parent
SCRIPT = HERE / "subprocesses" / "launched.py"
STEPS = 200
FILES = ("arrays.safetensors", "arrays_1.safetensors")  # of a state that two processes have saved


QUICKLY = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # compiling takes most of the time, in each process


def started(*arguments: Any, processes: int | None, devices: int = 1) -> subprocess.Popen[str]:
    """Starts the script in several processes; in one, and without the launcher, for None."""
    path = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | QUICKLY | {"PYTHONPATH": path}
    launcher = ["-m", "scenarios", "launch", "--processes", str(processes), "--devices", str(devices)]
    command = [sys.executable, *([] if processes is None else launcher), str(SCRIPT), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def numbers(process: subprocess.Popen[str], processes: int = 1, devices: int = 1) -> np.ndarray:
    """Returns the history that the first process has printed, and nobody else."""
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-3000:]
    (printed,) = re.findall(r'{"processes".*?}', output)  # the network's library prints too, into lines of others
    found = json.loads(printed)
    assert (found["processes"], found["devices"]) == (processes, processes * devices)
    return np.array(found["numbers"])


@pytest.fixture(scope="module")
def alone() -> np.ndarray:
    return numbers(started(STEPS, "data_parallel", processes=None))


def near(actual: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("processes", "devices", "placement"), [(2, 1, "data_parallel"), (4, 2, "fully_sharded")])
def test_several_processes_train_as_one(processes: int, devices: int, placement: str, alone: np.ndarray) -> None:
    process = started(STEPS, placement, processes=processes, devices=devices)
    found = numbers(process, processes, devices)
    assert np.abs(found - alone).max() <= 1e-5


def test_a_run_that_two_processes_have_saved_goes_on_in_three(alone: np.ndarray, tmp_path: Path) -> None:
    numbers(started(100, "fully_sharded", tmp_path, processes=2, devices=2), 2, 2)
    check_that_each_has_written_its_parts(tmp_path / "states")
    near(numbers(started(STEPS, "data_parallel", tmp_path, processes=3), 3), alone)
    events = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    logged = [event["step"] for event in events if event["event"] == "logged"]
    assert logged == list(range(10, STEPS + 1, 10))  # each once, by one of them


def check_that_each_has_written_its_parts(states: Path) -> None:
    """Checks the files of two processes with another reader: large arrays in halves, the others in the first one's."""
    arrays, blocks = {}, []
    with contextlib.closing(CheckpointStore(states)) as store:
        whole, _ = store.restore(100)
    for file in (states / "100/arrays").iterdir():
        for key, part in safetensors.numpy.load_file(file).items():
            name, _, start = key.partition("@")
            blocks.append((file.name, name, part.size))
            at = [int(begin) for begin in start.split(",")] if start else [0] * part.ndim
            index = tuple(slice(begin, begin + size) for begin, size in zip(at, part.shape, strict=True))
            arrays.setdefault(name, np.zeros_like(whole[name]))[index] = part
    assert {name: array.tobytes() for name, array in arrays.items()} == {k: v.tobytes() for k, v in whole.items()}
    large = {name for name, array in whole.items() if array.size >= 4096}
    assert "model.mlp.layers[0].w" in large
    for name, array in whole.items():
        sizes = [sum(size for file, key, size in blocks if (file, key) == (wanted, name)) for wanted in FILES]
        assert sizes == ([array.size // 2] * 2 if name in large else [array.size, 0]), name
    assert not list((states / ".parts").rglob("*.safetensors"))


def test_several_processes_go_back_together(tmp_path: Path) -> None:
    expected = numbers(started(60, "data_parallel", tmp_path / "alone", "rollback", processes=None))
    found = numbers(started(60, "fully_sharded", tmp_path / "two", "rollback", processes=2), 2)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def reached(folder: Path, step: int, process: subprocess.Popen[str]) -> None:
    """Waits until a run has saved a step."""
    deadline = time.monotonic() + 120
    while not (folder / "states" / str(step)).is_dir():
        assert time.monotonic() < deadline and process.poll() is None, process.communicate()[1][-3000:]
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_what_ends_one_process_ends_all_and_the_run_goes_on(number: int, alone: np.ndarray, tmp_path: Path) -> None:
    process = started(STEPS, "fully_sharded", tmp_path, processes=4)
    reached(tmp_path, 40, process)
    os.kill(int((tmp_path / "pid_2").read_text()), number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + number
    for member in range(4):
        with pytest.raises(ProcessLookupError):
            os.kill(int((tmp_path / f"pid_{member}").read_text()), 0)
    if number == signal.SIGKILL:
        assert "process 2 of 4 was ended by SIGKILL: the others were ended. Run the same line again" in errors
    else:
        assert errors.count("and saved; make the same call again") == 4
    near(numbers(started(STEPS, "data_parallel", tmp_path, processes=None)), alone)


def test_a_signal_to_the_launcher_is_one_to_all(tmp_path: Path) -> None:
    process = started(100_000, "data_parallel", tmp_path, processes=2)
    reached(tmp_path, 20, process)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM
    assert errors.count("and saved; make the same call again") == 2


def test_a_folder_in_use_is_refused_before_any_process_touches_it(tmp_path: Path) -> None:
    with sole_use(tmp_path):
        process = started(20, "fully_sharded", tmp_path, processes=2)
        _, errors = process.communicate(timeout=120)
        files = {file.name for file in tmp_path.iterdir()}
    assert process.returncode == 1
    assert f"{tmp_path} is in use by process {os.getpid()} on " in errors
    assert files == {".lock", "pid_0", "pid_1"}  # the last two are the script's own
    assert len(numbers(started(20, "fully_sharded", tmp_path, processes=2), 2)) > 0


def test_processes_that_slurm_has_started_find_each_other() -> None:
    command = [sys.executable, "-m", "scenarios", "launch", "--devices", "1", str(SCRIPT), "20", "data_parallel"]
    job = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2"}
    members = []
    for number in range(2):
        own = {"SLURM_PROCID": str(number), "SLURM_LOCALID": str(number), "PYTHONPATH": str(HERE.parent)}
        environment = os.environ | QUICKLY | job | own
        members.append(
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        )
    first, second = (numbers(member, 2) for member in members)
    assert first.tolist() == second.tolist()


def test_a_script_that_fails_ends_all_with_its_status(tmp_path: Path) -> None:
    process = started("many", "data_parallel", processes=2)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "ValueError: invalid literal" in errors and "ended with exit status 1: the others were ended" in errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--processes", "0", str(SCRIPT)], "expected at least 1"), (["--processes", "2", "no.py"], "there is no script")],
)
def test_what_cannot_be_started_is_refused(arguments: list[str], message: str) -> None:
    command = [sys.executable, "-m", "scenarios", "launch", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=HERE.parent)
    assert done.returncode == 2 and message in done.stderr
