"""How each part of the benchmark is measured; `first_step` is the program for a process of its own."""

import dataclasses
import functools
import importlib.metadata
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np

from tests.benchmarks import timing
from tests.benchmarks.contender import EXAMPLES, Contender
from tests.benchmarks.results import BASELINE, Cell
from tests.benchmarks.timing import medians
from tests.benchmarks.workloads.workload import Workload

CHECKED_STEPS = 20
_COMPARED_BY_GOALS = ("jax", "modulekit", "modulekit scenario")


@dataclasses.dataclass(frozen=True)
class Effort:
    """How much is measured.

    Attributes:
      rounds: in which each contender's step is timed once.
      makings: how often all is built anew, with that many rounds each: where weights happen to lie in memory moves a
        step's time by some percent.
      seconds: of steps that make one measurement.
      processes: in which the first step is timed.
    """

    rounds: int
    makings: int
    seconds: float
    processes: int


QUICK, THOROUGH = Effort(3, 3, 0.05, 1), Effort(5, 7, 0.2, 5)


def entrants(workload: Workload, contenders: Iterable[Contender]) -> list[Contender]:
    """Returns those who take part in a workload."""
    return [
        contender
        for contender in contenders
        if workload.kind in contender.kinds and (not workload.is_huge or contender.name in _COMPARED_BY_GOALS)
    ]


def cells(workload: Workload, contenders: Sequence[Contender], parts: Sequence[str], effort: Effort) -> list[Cell]:
    """Measures the contenders of a workload."""
    differences = loss_differences(workload, contenders, CHECKED_STEPS)
    numbers: dict[str, dict[str, Any]] = {part: {} for part in ("step", "first", "memory")}
    if "step" in parts:
        numbers["step"] = step_seconds(workload, contenders, effort)
    if "first" in parts:
        numbers["first"] = first_seconds(workload, contenders, effort)
    if "memory" in parts and not workload.is_huge:
        numbers["memory"] = {contender.name: contender.memory(workload) for contender in contenders}
    return [
        Cell(
            workload.name,
            contender.name,
            difference=differences[contender.name],
            **{part: of_part.get(contender.name) for part, of_part in numbers.items()},
        )
        for contender in contenders
    ]


def loss_differences(workload: Workload, contenders: Iterable[Contender], steps: int) -> dict[str, float]:
    """Returns the largest relative difference of each contender's losses from hand-written JAX's.

    All train from the same weights on the same batches.

    Raises:
      ValueError: hand-written JAX is not among them.
    """
    data, params = workload.make_data(EXAMPLES), workload.make_params()
    losses = {contender.name: np.asarray(contender.losses(workload, data, params, steps)) for contender in contenders}
    if BASELINE not in losses:
        raise ValueError(f"{', '.join(losses)} are compared with {BASELINE}: let it take part")
    expected = losses[BASELINE]
    return {name: float(np.max(np.abs(found - expected) / np.abs(expected))) for name, found in losses.items()}


def step_seconds(workload: Workload, contenders: Iterable[Contender], effort: Effort) -> dict[str, float]:
    """Returns the median seconds per step of each contender, in rounds in which they take turns."""
    params = workload.make_params()
    entered = list(contenders)

    def watches() -> dict[str, Callable[[], float]]:
        return {contender.name: contender.stopwatch(workload, params, effort.seconds) for contender in entered}

    return timing.over_makings(watches, 1 if workload.is_huge else effort.makings, effort.rounds)


def first_seconds(workload: Workload, contenders: Iterable[Contender], effort: Effort) -> dict[str, float]:
    """Returns the median seconds to the first finished step, imports excluded, each in a process of its own."""
    watches: dict[str, Callable[[], float]] = {
        contender.name: functools.partial(
            timing.fresh_process, ["-m", "tests.benchmarks.first_step", workload.name, contender.name]
        )
        for contender in contenders
    }
    return medians(timing.alternate(watches, effort.processes))


def import_seconds(contenders: Iterable[Contender], effort: Effort) -> dict[str, float]:
    """Returns the median seconds of each contender's imports, in processes of their own."""
    code = "import time; start = time.perf_counter(); import {}; print(time.perf_counter() - start)"
    watches: dict[str, Callable[[], float]] = {
        contender.name: functools.partial(timing.fresh_process, ["-c", code.format(contender.imports)])
        for contender in contenders
    }
    timing.alternate(watches, 1)  # fills the caches of byte code and files
    return medians(timing.alternate(watches, effort.processes + 2))


def machine(contenders: Iterable[Contender]) -> dict[str, Any]:
    """Returns what the numbers depend on, with the versions of the contenders' libraries."""
    distributions = importlib.metadata.packages_distributions()
    packages = {contender.name.split()[0] for contender in contenders}
    versions = {name: importlib.metadata.version(distributions[name][0]) for name in sorted(packages)}
    return {**timing.machine(), **versions, "platform": jax.default_backend()}
