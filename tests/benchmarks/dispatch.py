"""Where the microseconds of a compiled call go: each part of `mk.jit`'s call by itself, on the step of the 3x16 MLP.

    python -m tests.benchmarks.dispatch

The parts are those of `Jitted.__call__` and `Program.call`, in their order, each called many times; the program runs
meanwhile as often as in a real step, so that its inputs are always there.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from modulekit.core import context, overlay
from modulekit.core.packs import one_at_a_time
from modulekit.transforms.arguments import split
from modulekit.transforms.program import Program
from tests.benchmarks.contenders.jax import CONTENDER as BY_HAND
from tests.benchmarks.contenders.modulekit import CONTENDER
from tests.benchmarks.workloads import WORKLOADS

_CALLS, _ROUNDS = 2_000, 15


def parts_of(step: Any, args: tuple[Any, ...]) -> Mapping[str, Callable[[], Any]]:
    """Returns what a call of a compiled function does, piece by piece, as functions to time."""
    (program,) = step._plain_programs.values()
    arrangement = program._arrangement
    traced, key = split(args, {})

    def locked() -> None:
        with one_at_a_time:
            pass

    def run() -> Any:
        new, result = program.compiled(arrangement.given(), arrangement.kept(), traced)
        arrangement.store(new)
        return result

    return {
        "split the arguments": lambda: split(args, {}),
        "look up the program": lambda: (context.key(), step._plain_programs.get(key)),
        "has a module changed?": program.is_current,
        "inside another transform?": lambda: overlay.active(),
        "take the lock": locked,
        "does every variable lie in its place?": arrangement.is_current,
        "collect the buffers": lambda: (arrangement.given(), arrangement.kept()),
        "the program, and storing what it gives": run,
        "all of Program.call": lambda: Program.call(program, traced),
        "all of the call": lambda: step(*args),
    }


def seconds(call: Callable[[], Any]) -> float:
    """Returns the median seconds of a call, the program's work included where it runs."""
    measured = []
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        for _ in range(_CALLS):
            result = call()
        jax.block_until_ready(result)
        measured.append((time.perf_counter() - began) / _CALLS)
    return statistics.median(measured)


def main() -> None:
    """Measures and prints."""
    workload = WORKLOADS["mlp_3x16"]
    args = tuple(map(jnp.asarray, workload.make_data(workload.batch_size)))
    step = CONTENDER.make_step(workload, None)
    for _ in range(3):
        step(*args)
    by_hand = BY_HAND.make_step(workload, None)
    table = Table("part of a call", "microseconds")
    for name, call in {**parts_of(step, args), "hand-written JAX, all of the call": lambda: by_hand(*args)}.items():
        table.add_row(name, f"{1e6 * seconds(call):.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
