"""Laws of the command line: what can be done with the directory of a run, by starting its own program once more."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import modulekit as mk
from modulekit.errors import CheckpointError
from scenarios import commands
from scenarios.base import requests

ROOT = Path(__file__).parents[1]
PROGRAM = """
import sys
import numpy as np
import modulekit as mk
import scenarios

def main(steps, pause):
    mk.seed(7)
    x = np.linspace(-1, 1, 96, dtype=np.float32).reshape(48, 2)
    y = (x.sum(axis=1) > 0).astype(np.int32)
    def slowly(event):
        if pause and isinstance(event, scenarios.events.Progressed) and event.step >= 12:
            __import__("time").sleep(0.05)
    fit = scenarios.Supervised(steps, batch_size=8, save_dir="run", save_interval=4, eval_interval=4, ema_decay=0.9,
                               steps_per_call=2, progress=False)
    fit(mk.nets.MLP([4, 2], dropout_rate=0.1), mk.optimizers.Momentum(0.05, 0.9), mk.losses.softmax_cross_entropy,
        data=(x, y), eval_data=(x[::3], y[::3]), hooks=[slowly])

if __name__ == "__main__":
    main(int(sys.argv[1]), "pause" in sys.argv)
    print("the program has ended")
"""


@pytest.fixture(autouse=True)
def as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Puts back the working directory, the arguments and the path that a program changes."""
    monkeypatch.chdir(Path.cwd())
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    requests.withdraw()


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """Starts the program in a process of its own."""
    (folder / "program.py").write_text(PROGRAM)
    command = [sys.executable, "program.py", *arguments]
    return subprocess.Popen(command, cwd=folder, env=environment(), text=True, stdout=subprocess.PIPE)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a finished run."""
    folder = tmp_path_factory.mktemp("finished")
    assert start(folder, "20").wait(timeout=120) == 0
    return folder / "run"


def log(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def test_evaluate_says_what_the_run_found_of_raw_and_averaged_weights(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in ("latest", 16):
        commands.evaluate(run, step)
        number = 20 if step == "latest" else 16
        (found,) = [line["metrics"] for line in log(run) if line["event"] == "evaluated" and line["step"] == number]
        assert json.loads((run / "evaluation.json").read_text()) == {"step": number, "metrics": found}
        assert {"loss", "accuracy", "ema_loss", "ema_accuracy"} == found.keys()
        assert f"step {number}: accuracy" in capsys.readouterr().out


def test_evaluate_takes_the_best_state_too(run: Path) -> None:
    losses = {line["step"]: line["metrics"]["loss"] for line in log(run) if line["event"] == "evaluated"}
    commands.evaluate(run, "best")
    found = json.loads((run / "evaluation.json").read_text())
    assert found["step"] == min(losses, key=lambda step: losses[step])


def test_a_state_that_is_not_there_is_named(run: Path) -> None:
    with pytest.raises(CheckpointError, match=r"states holds no state 17: \[.*16, 20\]"):
        commands.evaluate(run, 17)


def test_reproduce_finds_the_same_losses_bit_by_bit(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(path for path in run.rglob("*"))
    commands.reproduce(run, steps=9)
    assert capsys.readouterr().out == "9 steps again: all losses are the same, bit by bit\n"
    assert sorted(path for path in run.rglob("*")) == before


def test_reproduce_exits_with_1_where_something_has_changed(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = run.parent / "program.py"
    try:
        program.write_text(PROGRAM.replace("mk.seed(7)", "mk.seed(8)"))
        with pytest.raises(SystemExit) as raised:
            commands.reproduce(run)
    finally:
        program.write_text(PROGRAM)
    assert raised.value.code == 1
    assert "20 steps again: the losses differ from step 1 on" in capsys.readouterr().out


def test_replay_rebuilds_a_step_and_keeps_its_examples(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands.replay(run, 19)
    printed = capsys.readouterr().out
    assert "step 19, from the state after step 16: applied" in printed
    with np.load(run / "replay" / "step_19.npz") as kept:
        assert kept["batch[0]"].shape == (8, 2)
        assert kept["batch[1]"].shape == (8,)


def test_export_writes_a_program_of_the_trained_model(run: Path, tmp_path: Path) -> None:
    commands.export(run, tmp_path / "bundle")
    program = mk.export.load(tmp_path / "bundle")
    x = np.linspace(-1, 1, 96, dtype=np.float32).reshape(48, 2)
    y = (x.sum(axis=1) > 0).astype(np.int32)
    loss = mk.losses.softmax_cross_entropy(jnp.asarray(program(x[::3])), y[::3]).mean()
    (found,) = [line["metrics"] for line in log(run) if line["event"] == "evaluated" and line["step"] == 20]
    np.testing.assert_allclose(loss, found["loss"], rtol=1e-6)


def test_a_part_that_is_none_is_named(run: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="the run has no part 'net' to export: model, optimizer"):
        commands.export(run, tmp_path / "bundle", part="net")


def test_report_and_compare_read_files_alone(run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (run.parent / "program.py").rename(run.parent / "gone.py")
    try:
        commands.report(run, tmp_path / "report")
        commands.compare(run, run, tmp_path / "comparison")
    finally:
        (run.parent / "gone.py").rename(run.parent / "program.py")
    assert (tmp_path / "report" / "run.md").exists()
    assert "eval_loss" in capsys.readouterr().out
    assert list((tmp_path / "comparison").iterdir())


def test_resume_goes_on_with_a_killed_run_to_the_same_end(run: Path, tmp_path: Path) -> None:
    process = start(tmp_path, "20", "pause")
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / "states" / "12").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    command = [sys.executable, "-m", "scenarios", "resume", "run"]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), text=True, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "the program has ended" in done.stdout
    assert _evaluations(tmp_path / "run") == _evaluations(run)
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert [resumed["step"] for resumed in manifest["resumed"]] == [12]


def _evaluations(run: Path) -> list[Any]:
    return [(line["step"], line["metrics"]) for line in log(run) if line["event"] in ("logged", "evaluated")]


def test_errors_of_the_user_are_one_line_and_exit_with_2(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "scenarios", "evaluate", str(tmp_path)]
    done = subprocess.run(command, env=environment(), cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 2
    assert done.stderr == f"error: cannot read {tmp_path / 'manifest.json'}: No such file or directory\n"


def test_a_run_that_was_started_interactively_says_so(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"command": null}')
    with pytest.raises(CheckpointError, match="names no command, since the run was started in an interactive session"):
        commands.resume(tmp_path)


def test_a_program_that_no_longer_calls_the_scenario_is_found_out(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.py"
    other.write_text("print('nothing')")
    manifest = {"command": {"script": str(other), "arguments": [], "directory": str(tmp_path)}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="ended, and called no scenario with this save_dir"):
        commands.evaluate(tmp_path)
