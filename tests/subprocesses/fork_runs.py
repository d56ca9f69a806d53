"""Forks a process for each JSON job on the standard input, which runs `interrupted_runs` in a folder of its own.

To each job there are two answers, a line each: the process's number, and its wait status when it has ended. The imports
happen once; JAX starts its threads at the first computation, which is in the forked process.
"""

import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import interrupted_runs

from modulekit.checkpoints import CheckpointStore
from scenarios.base.evaluating import Evaluator


def run(job: dict[str, Any]) -> int:
    """Runs a job; returns the exit status that the interpreter would end with."""
    folder = Path(job["folder"])
    output = os.open(folder / "output", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    place = None if job["place"] is None else interrupted_runs.Place(**job["place"])
    holding = interrupted_runs.Holding(folder, place)
    hold_in_phases(holding)
    try:
        interrupted_runs.start([holding], **job["settings"])
    except SystemExit as error:
        return int(str(error.code))
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def hold_in_phases(holding: interrupted_runs.Holding) -> None:
    """Makes evaluations wait after their first batch, and saves after they have begun, where they are to be held."""
    means, write = Evaluator.means, CheckpointStore._write

    def held_means(self: Evaluator, step: int, interrupted: Callable[[], bool]) -> dict[str, float] | None:
        batches = iter([lambda: None, lambda: holding.at("evaluating")])

        def asked() -> bool:
            next(batches, lambda: None)()
            return interrupted()

        return means(self, step, asked)

    def held_write(self: CheckpointStore, step: int, *state: Any) -> None:
        holding.at("saving", step)
        write(self, step, *state)

    Evaluator.means = held_means  # type: ignore[method-assign, assignment]
    CheckpointStore._write = held_write  # type: ignore[method-assign, assignment]


for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        status = run(json.loads(line))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    print(pid, flush=True)
    print(os.waitpid(pid, 0)[1], flush=True)
