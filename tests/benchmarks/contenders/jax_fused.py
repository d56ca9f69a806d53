"""Hand-written JAX with many steps in one program: `lax.scan` over the indices of batches, with all data on the device."""

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from modulekit.data import batch_indices
from tests.benchmarks import timing
from tests.benchmarks.contender import EXAMPLES, Contender
from tests.benchmarks.contenders.jax import State, make_state, make_update
from tests.benchmarks.workloads.workload import Data, Params, Workload

STEPS = 50  # of one call
CONVOLUTION_STEPS = 2  # on CPU a convolution in a loop takes up to a hundred times as long as by itself
Run = Callable[[Any], jax.Array]


def make_run(workload: Workload, data: Data, params: Params | None) -> Run:
    """Returns a function that takes the examples of some steps, `[steps, batch]`, and returns the steps' losses."""
    update, state = make_update(workload), make_state(workload, params)
    inputs, labels = map(jnp.asarray, data)

    def many(state: State, inputs: jax.Array, labels: jax.Array, rows: jax.Array) -> tuple[State, jax.Array]:
        return jax.lax.scan(lambda state, row: update(state, inputs[row], labels[row]), state, rows)

    compiled = jax.jit(many, donate_argnums=0)

    def run(rows: Any) -> jax.Array:
        nonlocal state
        state, losses = compiled(state, inputs, labels, rows)
        return losses

    return run


class Fused(Contender):
    """Trains by a function of many batches."""

    def losses(self, workload: Workload, data: Data, params: Params, steps: int) -> Sequence[float]:
        """Trains from these weights on the batches of `data`, and returns the loss of each step."""
        rows = batch_indices(len(data[0]), workload.batch_size, 0, 0, steps)
        return [float(loss) for loss in make_run(workload, data, params)(rows)]

    def first_seconds(self, workload: Workload) -> float:
        """Returns the seconds from nothing but imports to the end of the first call, which is of many steps."""
        data, rows = _data_and_rows(workload)
        began = time.perf_counter()
        jax.block_until_ready(make_run(workload, data, None)(rows))
        return time.perf_counter() - began

    def stopwatch(self, workload: Workload, params: Params, seconds: float) -> Callable[[], float]:
        """Compiles; returns a measurement of the seconds per step."""
        data, rows = _data_and_rows(workload)
        run = functools.partial(make_run(workload, data, params), jnp.asarray(rows))
        jax.block_until_ready(run())
        began = time.perf_counter()
        jax.block_until_ready(run())
        calls = max(1, round(seconds / (time.perf_counter() - began)))
        per_call = timing.per_call(run, jax.block_until_ready, calls)
        return lambda: per_call() / len(rows)

    def memory(self, workload: Workload) -> int | None:
        """Returns None: the program holds all data, too, and is not compared."""
        return None


def _data_and_rows(workload: Workload) -> tuple[Data, np.ndarray]:
    data, steps = workload.make_data(EXAMPLES), CONVOLUTION_STEPS if "convnet" in workload.kind else STEPS
    return data, batch_indices(len(data[0]), workload.batch_size, 0, 0, steps)


CONTENDER = Fused("jax fused", "jax, optax")
