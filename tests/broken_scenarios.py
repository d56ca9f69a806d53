"""Plug-ins that somebody might write, each of which breaks a law of scenarios; and one that breaks none.

All of them are least squares with momentum, without any layer: little to compile.
"""

import itertools
import signal
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback

import modulekit as mk
import scenarios
from scenarios.testing import Case

STEPS, BATCH = 12, 8


class Memory(mk.Module):
    """A weight and its momentum."""

    def __init__(self) -> None:
        super().__init__()
        self.w = mk.Variable(jnp.zeros([5]), name="w")
        self.m = mk.Variable(jnp.zeros([5]), trainable=False, name="m")
        self.rate = 0.01
        self.calls: list[str] = []


class Sound(scenarios.Scenario):
    """Least squares with dropout of inputs and momentum. It obeys all laws."""

    def update(self, batch: Any, *, memory: Memory) -> Mapping[str, Any]:
        x, y = batch
        x = x * jax.random.bernoulli(mk.next_key(), 0.7, x.shape)
        errors = x @ memory.w - y
        memory.m.assign(0.9 * memory.m + errors @ x / BATCH)
        memory.w.assign(memory.w - self.rate(memory) * memory.m)
        return {"loss": jnp.square(errors).mean()}

    def rate(self, memory: Memory) -> Any:
        """The learning rate, which many of the broken ones get wrong."""
        return memory.rate * 0.9**self.step

    def evaluate(self, batch: Any, *, memory: Memory) -> Mapping[str, Any]:
        x, y = batch
        return {"loss": jnp.square(x @ memory.w - y)}

    @classmethod
    def own(cls) -> dict[str, Any]:
        """The settings that the class adds."""
        return {}

    @classmethod
    def example(cls) -> Case:
        rng = np.random.default_rng(0)
        x, y = rng.normal(size=[2, 45, 5]).astype(np.float32), rng.normal(size=[2, 45]).astype(np.float32)
        settings = {"steps": STEPS, "batch_size": BATCH, "log_interval": 3, **cls.own()}
        return Case(cls, settings, {"memory": Memory()}, (x[0], y[0]), (x[1], y[1]))


class CountsOnItself(Sound):
    """Counts updates in an attribute, where only traces are counted."""

    count = 0

    def rate(self, memory: Memory) -> Any:
        self.count += 1
        return 0.01 / self.count


class ReadsTheClock(Sound):
    """Anneals by the wall clock."""

    def rate(self, memory: Memory) -> Any:
        return 0.01 + 1e-4 * (time.time() % 1)


class DrawsFromNumpy(Sound):
    """Draws noise from NumPy's global generator."""

    def rate(self, memory: Memory) -> Any:
        return 0.01 * np.random.uniform()


class HashesText(Sound):
    """Chooses by the hash of a text, which differs from process to process."""

    def rate(self, memory: Memory) -> Any:
        return 0.01 + 1e-5 * (hash("warm") % 1000)


SHARED = mk.Variable(jnp.zeros([]), trainable=False, name="shared")


class KeepsAGlobalVariable(Sound):
    """Counts in a variable that no part holds."""

    def rate(self, memory: Memory) -> Any:
        SHARED.assign_add(1)
        return 0.01 / SHARED.value


class ChangesAPart(Sound):
    """Leaves a note on a part each time it is traced."""

    def rate(self, memory: Memory) -> Any:
        memory.calls.append("update")
        return 0.01


class WritesInEvaluations(Sound):
    """Forgets its momentum at each evaluation."""

    def evaluate(self, batch: Any, *, memory: Memory) -> Mapping[str, Any]:
        memory.m.assign(jnp.zeros([5]))
        return super().evaluate(batch, memory=memory)


class ComparesExamples(Sound):
    """Evaluates each example relative to the others of its batch."""

    def evaluate(self, batch: Any, *, memory: Memory) -> Mapping[str, Any]:
        loss = super().evaluate(batch, memory=memory)["loss"]
        return {"loss": loss / loss.max()}


class SwallowsNan(Sound):
    """Takes what is not finite for zero."""

    def update(self, batch: Any, *, memory: Memory) -> Mapping[str, Any]:
        return super().update(jax.tree.map(jnp.nan_to_num, batch), memory=memory)


class CountsTwice(Sound):
    """Takes each of its updates for two steps."""

    @property
    def step(self) -> Any:
        return 2 * super().step


class TakesTwiceTheSteps(Sound):
    """Runs twice as many updates as it was told to."""

    def __init__(self, steps: int, **settings: Any) -> None:
        super().__init__(2 * steps, **settings)


class ForgetsItsSetting(Sound):
    """Keeps its setting under another name."""

    def __init__(self, steps: int, base_rate: float, **settings: Any) -> None:
        super().__init__(steps, **settings)
        self._rate = base_rate

    def rate(self, memory: Memory) -> Any:
        return self._rate

    @classmethod
    def own(cls) -> dict[str, Any]:
        return {"base_rate": 0.02}


class CatchesExceptions(Sound):
    """Goes on when an update goes wrong."""

    def update(self, batch: Any, *, memory: Memory) -> Mapping[str, Any]:
        try:
            return super().update(batch, memory=memory)
        except Exception:
            return {"loss": 0.0}


class ShufflesByTheProgram(Sound):
    """Chooses the examples of all updates of a program at once."""

    def indices(self, size: int, step: int, count: int) -> Any:
        return np.random.default_rng(step).integers(size, size=[count, BATCH])


class StepsInPython(Sound):
    """Counts its steps in Python, once for each of them: but where is the count after a resume?"""

    def __init__(self, steps: int, **settings: Any) -> None:
        super().__init__(steps, **settings)
        self.counted = itertools.count()

    def rate(self, memory: Memory) -> Any:
        step = io_callback(lambda: np.float32(next(self.counted)), jax.ShapeDtypeStruct([], np.float32), ordered=True)
        return 0.01 / (1 + step)


class TakesSignals(Sound):
    """Hears signals by itself, and does nothing."""

    def measure(self, eval_data: Any, *, memory: Memory) -> Mapping[str, Any]:
        signal.signal(signal.SIGTERM, lambda number, frame: None)
        return {"norm": jnp.square(memory.w.value).sum()}

    @classmethod
    def own(cls) -> dict[str, Any]:
        return {"eval_interval": 3}


class WritesADiary(Sound):
    """Notes each evaluation on its part."""

    def measure(self, eval_data: Any, *, memory: Memory) -> Mapping[str, Any]:
        memory.calls.append("evaluation")
        return {"norm": jnp.square(memory.w.value).sum()}


# The right law first, and then those that cannot but be broken with it.
_EVERY_RUN = (
    "chunk_invariance",
    "resume",
    "determinism",
    "evaluation",
    "signals",
    "atomicity",
    "non_finite",
    "dry_run",
)
BROKEN: dict[type[Sound], tuple[str, ...]] = {
    CountsOnItself: ("purity", *_EVERY_RUN),
    ReadsTheClock: ("determinism", *_EVERY_RUN),
    DrawsFromNumpy: ("determinism", *_EVERY_RUN),
    HashesText: ("determinism", "atomicity"),
    KeepsAGlobalVariable: ("resume", *_EVERY_RUN, "purity"),
    ChangesAPart: ("purity", "dry_run", "atomicity"),
    WritesInEvaluations: ("evaluation", *_EVERY_RUN),
    ComparesExamples: ("evaluation",),
    SwallowsNan: ("non_finite",),
    CountsTwice: ("step_count",),
    TakesTwiceTheSteps: ("step_count", "settings"),
    ForgetsItsSetting: ("settings",),
    CatchesExceptions: ("atomicity",),
    ShufflesByTheProgram: ("chunk_invariance", "resume", "signals", "atomicity", "evaluation", "non_finite"),
    StepsInPython: ("resume", "signals", "purity", "dry_run", "atomicity", "non_finite"),
    TakesSignals: ("signals",),
    WritesADiary: ("dry_run", "purity"),
}
