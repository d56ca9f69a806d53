"""modulekit by a scenario: `scenarios.Supervised` with its default settings."""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import modulekit as mk
import scenarios
from tests.benchmarks.contender import EXAMPLES, Contender
from tests.benchmarks.workloads.workload import LEARNING_RATE, Data, Params, Workload

_PROBE = 20  # steps that tell how many fill the time


class SteadyState:
    """A hook that times the steps from the second report of progress to the end, when all programs are compiled."""

    def __init__(self) -> None:
        self._reports: list[tuple[int, float]] = []

    def __call__(self, event: scenarios.events.Event) -> None:
        """Notes steps and time."""
        if isinstance(event, scenarios.events.Progressed | scenarios.events.Finished):
            self._reports.append((event.step, time.perf_counter()))

    @property
    def seconds_per_step(self) -> float:
        """Seconds of a step."""
        (first, began), (last, ended) = self._reports[1], self._reports[-1]
        return (ended - began) / (last - first)


def run(workload: Workload, data: Data, params: Params | None, steps: int, hooks: Any = (), **settings: Any) -> Any:
    """Trains, and returns the result."""
    train = scenarios.Supervised(steps, batch_size=workload.batch_size, **settings)
    model, optimizer = workload.model_with(params), mk.optimizers.Adam(LEARNING_RATE)
    return train(model, optimizer, mk.losses.softmax_cross_entropy, data=data, hooks=hooks)


class Run(Contender):
    """Trains by runs of a scenario."""

    def losses(self, workload: Workload, data: Data, params: Params, steps: int) -> Sequence[float]:
        """Trains from these weights on the batches of `data`, and returns the loss of each step."""
        return [row["loss"] for row in run(workload, data, params, steps, log_interval=1).history]

    def first_seconds(self, workload: Workload) -> float:
        """Returns the seconds from nothing but imports to the end of a run of one step."""
        data = workload.make_data(EXAMPLES)
        began = time.perf_counter()
        run(workload, data, None, 1)
        return time.perf_counter() - began

    def stopwatch(self, workload: Workload, params: Params, seconds: float) -> Callable[[], float]:
        """Returns a measurement of the seconds per step: a run whose steps fill the time, compilation apart."""
        data = workload.make_data(EXAMPLES)

        def measure(steps: int) -> float:
            clock = SteadyState()
            run(workload, data, params, steps, [clock])
            return clock.seconds_per_step

        steps = max(_PROBE, math.ceil(5 * seconds / measure(_PROBE)))  # five times, as calls last up to 0.8 s
        return lambda: measure(steps)

    def memory(self, workload: Workload) -> int | None:
        """Returns None: what a run holds beside the step is its data."""
        return None


CONTENDER = Run("modulekit scenario", "modulekit, scenarios")
