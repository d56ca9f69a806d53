"""A contender: a way of training that the benchmark times. `Stepwise` is the usual one, a function of one batch.

A contender keeps no weights between calls: each call builds what it measures anew.
"""

import abc
import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tests.benchmarks import timing
from tests.benchmarks.workloads.workload import Data, Params, Workload

KINDS = frozenset({"mlp", "fields", "convnet", "batchnorm_convnet", "lstm", "transformer"})
EXAMPLES = 2_000
Step = Callable[[Any, Any], Any]


@dataclasses.dataclass(frozen=True)
class Contender(abc.ABC):
    """Someone's way of training.

    Attributes:
      name: how it is asked for.
      imports: the modules that a program of this kind imports, as in `import jax, optax`.
      kinds: the kinds of workloads that it trains.
    """

    name: str
    imports: str
    kinds: frozenset[str] = dataclasses.field(default=KINDS, kw_only=True)

    @abc.abstractmethod
    def losses(self, workload: Workload, data: Data, params: Params, steps: int) -> Sequence[float]:
        """Trains from these weights on the batches of `data`, and returns the loss of each step."""

    @abc.abstractmethod
    def first_seconds(self, workload: Workload) -> float:
        """Returns the seconds from nothing but imports to the end of the first call that trains."""

    @abc.abstractmethod
    def stopwatch(self, workload: Workload, params: Params, seconds: float) -> Callable[[], float]:
        """Compiles; returns a measurement of the seconds per step, over about so many seconds of training."""

    @abc.abstractmethod
    def memory(self, workload: Workload) -> int | None:
        """Returns the most bytes that the training program takes at one time, None where that cannot be had."""


@dataclasses.dataclass(frozen=True)
class Stepwise(Contender):
    """Trains by a function that takes a batch, updates what it holds, and returns the loss before it.

    Attributes:
      make_step: takes a workload and weights to copy, None for its own; returns the function.
      place: makes of a NumPy array what the function takes.
      compiled: returns what XLA has compiled for a step of a workload; None where it is not XLA.
    """

    make_step: Callable[[Workload, Params | None], Step]
    place: Callable[[np.ndarray], Any] = dataclasses.field(default=jnp.asarray, kw_only=True)
    compiled: Callable[[Workload, Any, Any], jax.stages.Compiled] | None = dataclasses.field(default=None, kw_only=True)

    def losses(self, workload: Workload, data: Data, params: Params, steps: int) -> Sequence[float]:
        """Trains from these weights on the batches of `data`, and returns the loss of each step."""
        step = self.make_step(workload, params)
        return [float(step(*map(self.place, batch))) for batch in workload.batches(data, steps)]

    def first_seconds(self, workload: Workload) -> float:
        """Returns the seconds from nothing but imports to the end of the first step."""
        batch = self._batch(workload)
        began = time.perf_counter()
        jax.block_until_ready(self.make_step(workload, None)(*batch))
        return time.perf_counter() - began

    def stopwatch(self, workload: Workload, params: Params, seconds: float) -> Callable[[], float]:
        """Compiles; returns a measurement of the seconds per step, all on one batch."""
        run = functools.partial(self.make_step(workload, params), *self._batch(workload))
        jax.block_until_ready([run() for _ in range(3)])
        calls = timing.calls_for(lambda: jax.block_until_ready(run()), seconds)
        return timing.per_call(run, jax.block_until_ready, calls)

    def memory(self, workload: Workload) -> int | None:
        """Returns the bytes of arguments, results and temporaries, less what of them shares its place."""
        if self.compiled is None:
            return None
        planned: Any = self.compiled(workload, *self._batch(workload)).memory_analysis()
        kinds = ("argument", "output", "temp", "alias")
        arguments, outputs, temporaries, shared = (getattr(planned, f"{kind}_size_in_bytes") for kind in kinds)
        return int(arguments + outputs + temporaries - shared)

    def _batch(self, workload: Workload) -> tuple[Any, Any]:
        x, y = workload.make_data(workload.batch_size)
        return self.place(x), self.place(y)
