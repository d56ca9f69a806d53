"""Laws of verification, replay and repetition: what they say of a run is so, and they leave everything as it was."""

import functools
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from interrupted_runs import BATCH, HERE, Memory, Regression, State, states_of
from jax.experimental import io_callback
from scenario_catalogue import ROW, assert_bitwise, exactly

import modulekit as mk
import scenarios
from modulekit.core import draws
from modulekit.core.randomness import default_stream
from modulekit.data import batch_indices
from modulekit.errors import CheckpointError
from scenarios import Stop, events
from scenarios.base.verification import ResumeError, Verification, _difference, _record_difference

STEPS = 12
GOING_ON = ["skip", "rollback"]  # after an update that is not finite


def examples(bad: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    inputs, targets = rng.normal(size=[45, 5]).astype(np.float32), rng.normal(size=[45]).astype(np.float32)
    if bad is not None:
        inputs[bad] = np.nan
    return inputs, targets


def regression(kind: type[scenarios.Scenario] = Regression, **settings: Any) -> Any:
    common = {"steps": STEPS, "batch_size": BATCH, "seed": 5, "log_interval": 1, "progress": False}
    return kind(**{**common, "steps_per_call": 3, **settings})


class Remembering:
    """A hook with a memory: the sum of the losses."""

    def __init__(self) -> None:
        self.total = 0.0

    def __call__(self, event: events.Event) -> None:
        if isinstance(event, events.Logged):
            self.total += event.metrics["loss"]

    def get_state(self) -> float:
        return self.total

    def set_state(self, state: float) -> None:
        self.total = state


class Drawing(Remembering):
    """A hook whose memory is drawn from a global generator."""

    def get_state(self) -> float:
        return float(np.random.random())


class Counting(Regression):
    """Counts updates outside of any variable, and trains by the count."""

    calls = 0

    def _count(self) -> np.ndarray:
        self.calls += 1
        return np.float32(self.calls)

    def update(self, batch: Any, *, memory: Memory) -> Mapping[str, Any]:
        metrics = super().update(batch, memory=memory)
        memory.m.assign(memory.m * io_callback(self._count, jax.ShapeDtypeStruct([], np.float32), ordered=True))
        return metrics


def assert_untouched(memory: Memory, before: State) -> None:
    assert_bitwise(states_of(memory), before)


def test_a_run_with_dropout_averages_and_a_hook_with_memory_is_verified_and_everything_left_as_it_was() -> None:
    case = ROW["classification_with_dropout"].fresh()
    fit = case.scenario(**{**case.settings, "steps": STEPS, "ema_decay": 0.9, "log_interval": 5})
    counts, stream, hook = draws.snapshot(), default_stream().counter.numpy(), Remembering()
    state = np.random.get_state()[1].tolist()
    found = fit.verify_resume(**case.parts, data=case.data, eval_data=case.eval_data, hooks=[hook], at=5)
    assert (found.steps, found.resumed_at) == (STEPS, 5)
    assert found.arrays >= 4 + 4 + 4  # weights, moments, averages
    assert draws.snapshot() == counts
    assert default_stream().counter.numpy() == stream
    assert np.random.get_state()[1].tolist() == state
    assert hook.total == 0.0
    assert case.state() == {}  # nothing was made


class Paired(Regression):
    """Takes two batches for each update."""

    batches_per_update = 2

    def update(self, batch: Any, *, memory: Memory) -> Mapping[str, Any]:
        return super().update(jax.tree.map(lambda array: array[0], batch), memory=memory)


@pytest.mark.parametrize("kind", [Regression, Paired])
@pytest.mark.parametrize("source", ["batches", "pipeline"])
def test_a_run_on_a_stream_is_verified_and_the_stream_stays_where_it_is(kind: Any, source: str) -> None:
    x, y = (array[:40] for array in examples())
    batches = [(x[start : start + BATCH], y[start : start + BATCH]) for start in range(0, 40, BATCH)]
    pipeline = mk.data.pipeline((x, y)).shuffle(seed=1).batch(BATCH)
    stream = mk.data.stream(batches if source == "batches" else pipeline)
    next(stream)
    before = stream.state()
    assert regression(kind).verify_resume(Memory(), data=stream).steps == STEPS
    assert stream.state() == before


@pytest.mark.parametrize(
    ("kind", "hooks", "message"),
    [
        (Counting, [], r"memory\.m differs, by up to .*: it is not a function of the saved state and the step$"),
        (Regression, [Drawing()], r"hooks 'Drawing' differs: 0\.\d+ straight, 0\.\d+ resumed$"),
    ],
    ids=["a counter of the scenario", "a global generator"],
)
def test_what_is_kept_outside_of_the_saved_state_is_found(kind: Any, hooks: Any, message: str) -> None:
    memory = Memory()
    before = states_of(memory)
    with pytest.raises(ResumeError, match=f"^after 4 steps, resumed at step 2, {message}"):
        regression(kind, steps=4).verify_resume(memory, data=examples(), hooks=hooks)
    assert_untouched(memory, before)


def test_what_cannot_be_pickled_is_refused_before_anything_runs() -> None:
    told: list[events.Event] = []
    message = (
        r"^Regression cannot be verified in another process, since something that it was called with cannot be pickled "
        r"\(.*\): define classes and functions at the top of a module, and give data that can be, as arrays can$"
    )
    with pytest.raises(ValueError, match=message):
        regression().verify_resume(Memory(), data=examples(), hooks=[lambda event: told.append(event)])
    assert told == []


@pytest.mark.parametrize("at", [0, STEPS, 99])
def test_a_break_comes_after_a_step_and_before_the_last(at: int) -> None:
    with pytest.raises(ValueError, match=rf"^at={at}: a break must come after one of the steps 1 to {STEPS - 1}$"):
        regression().verify_resume(Memory(), data=examples(), at=at)


def test_the_first_difference_is_named() -> None:
    same = {"a": np.zeros(2, np.float32), "b": np.ones(2, np.float32)}
    assert _difference(same, dict(same)) is None
    assert _difference(same, {"b": same["b"]}) == "a is missing"
    assert _difference({"b": same["b"]}, same) == "a is unexpected"
    assert _difference(same, {**same, "b": np.ones(3, np.float32)}) == "b is float32[3], not float32[2]"
    negative = {**same, "a": -same["a"]}
    assert _difference(same, negative) == (
        "a differs, by up to 0: it is not a function of the saved state and the step"
    )
    record = {"progress": {"step": 3, "seconds": {"data": 1.0}, "losses": [float("nan")]}, "hooks": {}}
    other = {"progress": {**record["progress"], "seconds": {}}, "hooks": {"Early": 1}}
    assert _record_difference(record, {**other, "hooks": {}}) is None
    assert _record_difference(record, other) == "hooks 'Early' differs: None straight, 1 resumed"
    assert str(Verification(10, 5, 4)).startswith("10 steps are bitwise the same straight and resumed at step 5")


# Replay.


@pytest.mark.parametrize("step", [1, 5, 8, 12])
@pytest.mark.parametrize("save_interval", [4, None])
def test_a_replayed_step_is_the_one_that_the_run_made(step: int, save_interval: int | None, tmp_path: Path) -> None:
    settings = {"save_dir": tmp_path, "save_interval": save_interval, "keep": 9}
    run = regression(**settings)(Memory(), data=examples())
    straight, memory = Memory(), Memory()
    regression(steps=step)(straight, data=examples())
    if save_interval is None and step > 1:  # without a state before it, the parts are taken as they are
        regression(steps=step - 1)(memory, data=examples())
    found = regression(**settings).replay(step, memory, data=examples())
    assert found.metrics["loss"] == dict(zip(*run.column("loss"), strict=True))[step]
    assert found.indices.tolist() == batch_indices(45, BATCH, 5, step - 1, 1)[0].tolist()
    for part, whole in zip(found.batch, examples(), strict=True):
        assert np.asarray(part).tobytes() == whole[found.indices].tobytes()
    assert_bitwise(states_of(memory), states_of(straight))
    expected = None if save_interval is None or step <= 4 else (step - 1) // 4 * 4
    assert (found.step, found.applied, found.started_at) == (step, True, expected)


@pytest.mark.parametrize("non_finite", GOING_ON)
def test_steps_after_one_that_was_not_applied_are_replayed(non_finite: str, tmp_path: Path) -> None:
    bad = int(batch_indices(45, BATCH, 5, 5, 1)[0][0])  # of step 6
    settings = {"save_dir": tmp_path, "save_interval": 4, "keep": 9, "non_finite": non_finite}
    run = regression(**settings)(Memory(), data=examples(bad))
    losses = dict(zip(*run.column("loss"), strict=True))
    assert 6 in run.skipped
    for step in (5, 6, 7, 8, 10, 12):
        found = regression(**settings).replay(step, Memory(), data=examples(bad))
        assert found.applied == (step not in run.skipped)
        if found.applied:
            assert found.metrics["loss"] == losses[step]
        else:
            assert np.isnan(found.metrics["loss"])


@pytest.mark.parametrize("step", [0, STEPS + 1])
def test_there_are_no_other_steps_to_replay(step: int) -> None:
    with pytest.raises(ValueError, match=f"^step={step} is no step of this run, which has the steps 1 to {STEPS}$"):
        regression().replay(step, Memory(), data=examples())


# Repetition.


def test_the_same_parts_give_the_same_losses_and_another_seed_names_the_step(tmp_path: Path) -> None:
    regression(save_dir=tmp_path)(Memory(), data=examples())
    files = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    contents = [path.read_bytes() for path in files]
    found = regression(save_dir=tmp_path).reproduce(Memory(), data=examples(), repeated_steps=7)
    assert found.exact
    assert (len(found.now), found.first_difference) == (7, None)
    assert str(found) == "7 steps again: all losses are the same, bit by bit"
    other = regression(save_dir=tmp_path, seed=6).reproduce(Memory(), data=examples())
    assert (other.first_difference, len(other.now)) == (1, STEPS)
    late = Memory()
    late.m.assign(late.m + 1e-3)  # seen by the loss of the second step
    assert regression(save_dir=tmp_path).reproduce(late, data=examples()).first_difference == 2
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == files
    assert [path.read_bytes() for path in files] == contents


def test_only_a_run_can_be_repeated(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no losses of a run to compare with$"):
        regression(save_dir=tmp_path / "none").reproduce(Memory(), data=examples())


# Rehearsal.


def test_a_rehearsal_leaves_everything_as_it_was(tmp_path: Path) -> None:
    memory, hook = Memory(), Remembering()
    regression(steps=3)(memory, data=examples())
    before, stream = states_of(memory), default_stream().counter.numpy()
    settings = {"save_dir": tmp_path / "run", "ema_decay": 0.5, "eval_interval": 100}
    result = regression(**settings).dry_run(memory, data=examples(), eval_data=examples(), hooks=[hook])
    assert (result.step, result.save_dir) == (2, None)
    assert_untouched(memory, before)
    assert hook.total == 0.0
    assert default_stream().counter.numpy() == stream
    assert not (tmp_path / "run").exists()


def test_a_rehearsal_takes_no_batch_of_an_iterator_that_has_a_state() -> None:
    class Numbers:
        def __init__(self) -> None:
            self.at = 0

        def __iter__(self) -> "Numbers":
            return self

        def __next__(self) -> Any:
            self.at += 1
            return tuple(part[self.at % 30 : self.at % 30 + BATCH] for part in examples())

        def get_state(self) -> int:
            return self.at

        def set_state(self, state: int) -> None:
            self.at = state

    numbers = Numbers()
    regression().dry_run(Memory(), data=numbers)
    assert numbers.at == 0


class Broken(Regression):
    """Its evaluation fails."""

    def evaluate(self, batch: Any, *, memory: Memory) -> Mapping[str, Any]:
        raise ZeroDivisionError("in the evaluation")


def test_a_rehearsal_finds_an_evaluation_that_fails_and_leaves_the_weights() -> None:
    memory = Memory()
    before = states_of(memory)
    with pytest.raises(ZeroDivisionError, match=exactly("in the evaluation")):
        regression(Broken).dry_run(memory, data=examples(), eval_data=examples())
    assert_untouched(memory, before)


# The manifest.


class Tempered(Regression):
    """Has a setting of its own."""

    def __init__(self, steps: int, temperature: float, **settings: Any) -> None:
        super().__init__(steps, **settings)
        self.temperature = temperature


def manifest(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "manifest.json").read_text(), parse_constant=pytest.fail)
    return content


def test_the_manifest_says_what_a_run_is_made_of_and_where_it_went_on(tmp_path: Path) -> None:
    run = functools.partial(regression, functools.partial(Tempered, temperature=float("inf")), save_dir=tmp_path)
    stop = [lambda event: Stop("cut") if event.step >= 6 else None]
    run()(Memory(), data=examples(), hooks=stop)
    first = manifest(tmp_path)
    run()(Memory(), data=examples())
    found = manifest(tmp_path)
    assert {name: value for name, value in found.items() if name != "resumed"} == first
    assert [(begun["step"], begun["versions"]) for begun in found["resumed"]] == [(6, first["versions"])]
    assert (found["scenario"], found["step"], found["parameters"]) == ("Tempered", 0, 5)
    assert found["data"] == mk.data.Arrays(examples()).fingerprint()
    assert (found["settings"]["seed"], found["settings"]["temperature"]) == (5, "inf")
    assert found["versions"]["jax"] == jax.__version__
    assert found["versions"]["numpy"] == np.__version__
    assert found["devices"] == [f"{device.platform}: {device.device_kind}" for device in jax.devices()]


def test_the_manifest_names_the_commit_and_the_files_that_differ_from_it(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=A", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
        command = ["git", *identity, *arguments]
        return subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    git("init", "-q")
    for name in ("kept.py", "changed.py"):
        (tmp_path / name).write_text("1\n")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    (tmp_path / "changed.py").write_text("2\n")
    (tmp_path / "new.py").write_text("3\n")
    code = "import json; from scenarios.base.manifest import surroundings; print(json.dumps(surroundings()['git']))"
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True, env=environment
    )
    assert json.loads(done.stdout) == {"commit": git("rev-parse", "HEAD").strip(), "dirty": ["changed.py", "new.py"]}
