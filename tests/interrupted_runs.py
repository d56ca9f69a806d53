"""A run to interrupt: small, with dropout, shuffling and epochs that no batch ends with, and its states after every step.

`Forks` starts it in processes that can be told where to be held, so that they are killed there.
"""

import dataclasses
import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import modulekit as mk
import scenarios
from modulekit.checkpoints import CheckpointStore
from scenarios import events

STEPS = 2000  # more than all interrupted parts of a run take together
BATCH = 8
HERE = Path(__file__).parent
State = dict[str, np.ndarray]


class Memory(mk.Module):
    """A weight and its momentum."""

    def __init__(self) -> None:
        super().__init__()
        self.w = mk.Variable(jnp.zeros([5]), name="w")
        self.m = mk.Variable(jnp.zeros([5]), trainable=False, name="m")


class Regression(scenarios.Scenario):
    """Least squares with dropout of inputs and momentum, without any layer: little to compile."""

    def update(self, batch: Any, *, memory: Memory) -> Mapping[str, Any]:
        x, y = batch
        x = x * jax.random.bernoulli(mk.next_key(), 0.7, x.shape)
        errors = x @ memory.w - y
        memory.m.assign(0.9 * memory.m + errors @ x / BATCH)
        memory.w.assign(memory.w - 0.01 * memory.m)
        return {"loss": jnp.square(errors).mean()}

    def evaluate(self, batch: Any, *, memory: Memory) -> Mapping[str, Any]:
        x, y = batch
        return {"loss": jnp.square(x @ memory.w - y)}


def start(hooks: Any = (), memory: Memory | None = None, **settings: Any) -> tuple[scenarios.Result, State]:
    """Runs it; returns the result and the final state."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=[2, 45, 5]).astype(np.float32), rng.normal(size=[2, 45]).astype(np.float32)
    memory = memory or Memory()
    common = {"steps": STEPS, "batch_size": BATCH, "seed": 5, "log_interval": 7, "eval_interval": 3, "progress": False}
    scenario = Regression(**{**common, "eval_batch_size": 15, **settings})
    result = scenario(memory, data=(x[0], y[0]), eval_data=(x[1], y[1]), hooks=hooks)
    return result, states_of(memory)


def states_of(memory: Memory) -> State:
    """Returns copies of what is trained, by the path under which it is saved."""
    return {f"memory.{path}": v.numpy().copy() for path, v in memory.paths().items()}


@functools.cache
def uninterrupted() -> scenarios.Result:
    """Returns the outcome of a run that nothing interrupts."""
    return start(steps_per_call=50)[0]


@functools.cache
def states() -> list[State]:
    """Returns the state after each step of a run that nothing interrupts, and that goes step by step."""
    memory = Memory()
    found = [states_of(memory)]

    def look(event: events.Event) -> None:
        if isinstance(event, events.Progressed):
            found.append(states_of(memory))

    start([look], memory, steps_per_call=1, eval_interval=None)
    assert len(found) == STEPS + 1
    return found


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a run is held: in which phase (`stepping`, `evaluating`, `saving`), at the first time from a step on."""

    phase: str
    step: int


class Fork:
    """A process that runs in a folder.

    Args:
      folder: of the run.
      pid: of the process.
      ended: waits for the end and returns the wait status.
    """

    def __init__(self, folder: Path, pid: int, ended: Callable[[], int]) -> None:
        self.folder, self.pid, self._ended = folder, pid, ended

    def wait_until_held(self) -> int:
        """Waits until the run is where it is to be held; returns its step."""
        deadline = time.monotonic() + 60
        while not (self.folder / "held").exists():
            assert time.monotonic() < deadline, self.output()
            time.sleep(0.001)
        return int((self.folder / "held").read_text())

    def release(self) -> None:
        """Lets the run go on."""
        (self.folder / "go").touch()

    def send(self, number: int) -> None:
        """Sends a signal."""
        os.kill(self.pid, number)

    def wait(self) -> int:
        """Waits for the end; returns the exit status, or the negative number of the signal that ended it."""
        return os.waitstatus_to_exitcode(self._ended())

    def output(self) -> str:
        """Returns what was printed."""
        return (self.folder / "output").read_text()

    def finished_step(self) -> int:
        """Returns the last step of which the process itself noted the end."""
        return int((self.folder / "progress").read_text())


class Forks:
    """Starts processes that have imported everything already."""

    def __init__(self) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE)])}
        command = [sys.executable, str(HERE / "subprocesses" / "fork_runs.py")]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def start(self, folder: Path, place: Place | None, **settings: Any) -> Fork:
        """Starts a run in a folder, or goes on with the one that is there."""
        for name in ("held", "go", "progress"):
            (folder / name).unlink(missing_ok=True)
        job = {
            "folder": str(folder),
            "place": None if place is None else dataclasses.asdict(place),
            "settings": {**settings, "save_dir": str(folder / "run")},
        }
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        return Fork(folder, self._answer(), self._answer)

    def _answer(self) -> int:
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())

    def close(self) -> None:
        """Ends the process that starts the others."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        assert self._process.wait(timeout=60) == 0


def saved(folder: Path) -> tuple[int | None, State, dict[str, Any]]:
    """Returns `(step, arrays, record)` of the newest state of the run in a folder."""
    store = CheckpointStore(folder / "run" / "states")
    try:
        step = store.latest()
        return (None, {}, {}) if step is None else (step, *store.restore(step))
    finally:
        store.close()


class Holding:
    """Holds a run in a process of `Forks`, and notes how far it is; a hook, and a function to call in phases."""

    def __init__(self, folder: Path, place: Place | None) -> None:
        self._folder, self._place, self._step = folder, place, 0
        self._progress = os.open(folder / "progress", os.O_WRONLY | os.O_CREAT)

    def __call__(self, event: events.Event) -> None:
        """Notes finished steps."""
        if isinstance(event, events.Started | events.Progressed):
            self._step = event.step
            os.pwrite(self._progress, b"%d" % event.step, 0)
        if isinstance(event, events.Progressed):
            self.at("stepping")

    def at(self, phase: str, step: int | None = None) -> None:
        """Waits, if this is the place, until it is released."""
        step = self._step if step is None else step
        if self._place is None or phase != self._place.phase or step < self._place.step:
            return
        self._place = None
        (self._folder / "held.new").write_text(str(step))
        (self._folder / "held.new").rename(self._folder / "held")
        deadline = time.monotonic() + 60
        while not (self._folder / "go").exists() and time.monotonic() < deadline:
            time.sleep(0.001)


KILL = -signal.SIGKILL
