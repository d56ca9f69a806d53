"""How long a run will take, from a few of its own updates, an evaluation of a batch or two, and one saved state."""

import functools
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from modulekit.checkpoints import CheckpointStore
from modulekit.core.storage import stored_arrays
from modulekit.core.variable import Variable
from scenarios.base.evaluating import Evaluator
from scenarios.base.feeding import Chunk
from scenarios.base.settings import Settings
from scenarios.base.sizes import bytes_of, free_bytes
from scenarios.base.stepping import Metrics, Stepper

_PROGRAMS = 24  # at most, of updates
_ENOUGH = 0.5  # seconds of updates
_MOST = 20.0  # seconds of updates
_BATCHES = 2  # of evaluation

Take = Callable[[int, int, int], Chunk | None]


class Pace:
    """The times of some programs of updates.

    Args:
      stepper: runs them.
      take: from (step, count, capacity) to the examples.
      look: called after each program, outside of its time.

    Attributes:
      step: the number of updates done.
      losses: the first metric of each.
      chunks: the examples of the first two programs.
      failed: the chunk, the place in it and the metrics of the update that was not finite, if one was.
    """

    def __init__(self, stepper: Stepper, take: Take, look: Callable[[], None]) -> None:
        self._stepper, self._take, self._look = stepper, take, look
        self._calls: list[tuple[int, float]] = []
        self.step = 0
        self.losses: list[float] = []
        self.chunks: list[Chunk] = []
        self.failed: tuple[Chunk, int, Metrics] | None = None

    def run(self) -> None:
        """Runs programs until their time is known."""
        began = perf_counter()
        for _ in range(_PROGRAMS):
            count, capacity = self._stepper.pacing.advise(2**30)
            start = perf_counter()
            chunk = self._take(self.step, count, capacity)
            if chunk is None:
                break
            done, metrics = self._stepper.run(self.step, chunk)
            self._calls.append((chunk.count, perf_counter() - start))
            self._look()
            self.chunks = [*self.chunks, chunk][:2]
            self.step += done
            self.losses.extend(float(value) for value in next(iter(metrics.values()))[:done])
            if done < chunk.count:
                self.failed = chunk, done, metrics
                break
            if self._is_known(perf_counter() - began):
                break

    def _is_known(self, seconds: float) -> bool:
        calls = len(self._calls)
        return calls > 1 and (seconds > _MOST or (calls > 3 and seconds > _ENOUGH))

    @property
    def per_update(self) -> float | None:
        """Seconds of an update, waiting for its data included, in the longest programs; None where it is not known."""
        calls = self._calls[1:]
        longest = max((count for count, _ in calls), default=0)
        times = [seconds / count for count, seconds in calls if count == longest]
        return median(times) if times else None

    @property
    def compilation(self) -> float:
        """Seconds of the first program, without its updates: compilation, and the choice of the form."""
        return max(0.0, sum(seconds - count * (self.per_update or 0) for count, seconds in self._calls[:1]))


@dataclass(frozen=True)
class Duration:
    """The time that a run will take.

    Attributes:
      compilation: seconds before the first update is done.
      per_update: seconds, waiting for data included; None where the data was over before it could be measured.
      updates: of the run.
      measured: how many updates were measured.
      per_evaluation: seconds of an evaluation of all examples; None if there is none.
      evaluations: of the run.
      per_save: seconds of writing one state; None where none is saved.
      saves: of the run.

    >>> print(Duration(2.0, 0.01, 1000, 60, 0.5, 2, None, 0))
    time: 13 s: 2 s to compile, 1,000 updates of 10 ms, 2 evaluations of 500 ms (measured on 60 updates)
    """

    compilation: float
    per_update: float | None
    updates: int
    measured: int
    per_evaluation: float | None
    evaluations: int
    per_save: float | None
    saves: int

    @property
    def total(self) -> float | None:
        """Seconds of the whole run."""
        if self.per_update is None:
            return None
        evaluating = self.evaluations * (self.per_evaluation or 0)
        return self.compilation + self.updates * self.per_update + evaluating + self.saves * (self.per_save or 0)

    def __str__(self) -> str:
        if self.total is None or self.per_update is None:
            return f"time: not known, since the data was over after {self.measured} updates"
        parts = [f"{in_time(self.compilation)} to compile", f"{self.updates:,} updates of {in_time(self.per_update)}"]
        for name, count, seconds in (
            ("evaluation", self.evaluations, self.per_evaluation),
            ("saved state", self.saves, self.per_save),
        ):
            parts += [] if seconds is None else [f"{count:,} {name}{'s' * (count != 1)} of {in_time(seconds)}"]
        return f"time: {in_time(self.total)}: {', '.join(parts)} (measured on {self.measured:,} updates)"


def duration(
    pace: Pace, settings: Settings, evaluator: Evaluator | None, examples: int, variables: Mapping[str, Variable]
) -> Duration:
    """Returns the predicted time of a run.

    Args:
      pace: of its updates.
      settings: its settings.
      evaluator: evaluates, if there is evaluation data.
      examples: of the evaluation.
      variables: that are saved, by path.
    """
    return Duration(
        pace.compilation,
        pace.per_update,
        settings.steps,
        pace.step,
        None if evaluator is None else _evaluation_seconds(evaluator, examples, settings.eval_batch_size),
        0 if evaluator is None else times_due(settings.steps, settings.eval_interval),
        None if settings.directory is None else _save_seconds(variables),
        0 if settings.directory is None else times_due(settings.steps, settings.save_interval),
    )


def times_due(steps: int, interval: int | None) -> int:
    """Returns how often something happens that is due at each multiple of an interval, and at the end.

    >>> times_due(100, None), times_due(100, 50), times_due(100, 30)
    (1, 2, 4)
    """
    return 1 if interval is None else max(1, math.ceil(steps / interval))


def _evaluation_seconds(evaluator: Evaluator, examples: int, batch_size: int) -> float:
    """Evaluates the first batches twice, since the first time compiles."""
    batches = math.ceil(examples / min(batch_size, examples)) if examples else 1
    for _ in range(2):
        moments: list[float] = []
        evaluator.means(0, functools.partial(_is_over, moments))
        moments.append(perf_counter())
    return batches * (moments[-1] - moments[0]) / min(batches, _BATCHES)


def _is_over(moments: list[float]) -> bool:
    moments.append(perf_counter())
    return len(moments) > _BATCHES


def _save_seconds(variables: Mapping[str, Variable]) -> float | None:
    """Writes one state where temporary files are; None if there is no room."""
    if 2 * bytes_of(variables.values()) > free_bytes(Path(tempfile.gettempdir())):
        return None
    with tempfile.TemporaryDirectory() as folder:
        store = CheckpointStore(Path(folder) / "states")
        try:
            arrays = [np.asarray(array) for array in stored_arrays(list(variables.values()))]
            for number in range(2):  # the first one starts the storage
                began = perf_counter()
                store.save(number, dict(zip(variables, arrays, strict=True)), {})
            return perf_counter() - began
        finally:
            store.close()


_UNITS = ((1.0, 1e3, "ms"), (120.0, 1.0, "s"), (7200.0, 1 / 60, "min"), (math.inf, 1 / 3600, "h"))


def in_time(seconds: float) -> str:
    """Returns a time to read.

    >>> [in_time(seconds) for seconds in (2e-5, 0.0125, 75, 300, 1e5)]
    ['0.02 ms', '12.5 ms', '75 s', '5 min', '27.8 h']
    """
    _, factor, unit = next(row for row in _UNITS if seconds < row[0])
    return f"{seconds * factor:.3g} {unit}"


def first_batches(chunks: list[Chunk]) -> Iterator[Any]:
    """Yields up to two batches of each of some chunks."""
    for chunk in chunks:
        yield from (chunk.batch(index) for index in range(min(chunk.count, 2)))
