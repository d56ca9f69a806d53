"""One step of a run, rebuilt: its examples, its random numbers and, from the newest saved state before it, its weights."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from modulekit.core.storage import Holdings
from modulekit.data import Arrays
from scenarios.base.feeding import Chunk
from scenarios.base.run import Prepared, Run
from scenarios.base.settings import Settings


@dataclass(frozen=True)
class Replay:
    """A step of a run that was run again.

    Attributes:
      step: its number, the first one being 1.
      indices: `[batch]`, which examples it took; None for a stream.
      batch: the examples.
      metrics: what the update returned, whether finite or not.
      applied: False where something was not finite, so that the update left all variables as they were.
      started_at: the step of the saved state from which the weights were rebuilt; None where there is none, and the parts
        were taken as they are.

    >>> import jax.numpy as jnp, modulekit as mk, scenarios
    >>> x = jnp.linspace(-1, 1, 32)[:, None]
    >>> fit = scenarios.Supervised(100, batch_size=2, progress=False)
    >>> replay = fit.replay(7, mk.Linear(1), mk.optimizers.SGD(0.3), mk.losses.squared_error, data=(x, 5 * x))
    >>> replay.step, replay.indices.tolist()
    (7, [16, 28])
    """

    step: int
    indices: np.ndarray[Any, Any] | None
    batch: Any
    metrics: dict[str, float]
    applied: bool
    started_at: int | None

    def __str__(self) -> str:
        found = "applied" if self.applied else "not applied, since something was not finite"
        source = "the parts as they are" if self.started_at is None else f"the state after step {self.started_at}"
        lines = [f"step {self.step}, from {source}: {found}"]
        lines += [f"  {name} {value:g}" for name, value in self.metrics.items()]
        if self.indices is not None:
            lines.append(f"  examples {self.indices.tolist()}")
        return "\n".join(lines)


def replay(run: Run, step: int) -> Replay:
    """Runs one step of a run again; the parts are then as after it.

    Args:
      run: the run. Where its directory holds a state of step `step - 1` or before, the newest of them is restored, and the
        steps between are run; else the parts are taken to be as they were before the step.
      step: its number, the first one being 1.

    Raises:
      ValueError: there is no such step, or its examples cannot be found: a stream's, before any saved state.
    """
    if not 1 <= step <= run.settings.steps:
        raise ValueError(f"step={step} is no step of this run, which has the steps 1 to {run.settings.steps}")
    with run.prepared(step - 1) as prepared:
        saved = prepared.saver is not None and prepared.saver.restored
        progress = prepared.progress
        if not saved and not isinstance(run.examples, Arrays) and step > 1:
            raise ValueError(
                f"the examples of step {step} are those of a stream, and no state before it is saved from which to find "
                "them: save more often, or give a pipeline of arrays"
            )
        if saved:
            _go_to(prepared, run.settings, step - 1)
        chunk = _take(prepared, step - 1, 1)
        done, metrics = prepared.stepper.run(step - 1, chunk)
    return Replay(
        step,
        None if chunk.indices is None else chunk.indices[0],
        chunk.batch(0),
        {name: float(column[0]) for name, column in metrics.items()},
        done == 1,
        progress.step if saved else None,
    )


def _go_to(prepared: Prepared, settings: Settings, step: int) -> None:
    """Runs the steps between the restored state and a later one, and goes back where the run did."""
    at, variables = prepared.progress.step, list(prepared.variables.values())
    interval = settings.save_interval if settings.non_finite == "rollback" else None
    anchor = None
    while at < step:
        if interval is not None and at % interval == 0:
            anchor = Holdings(variables)
        count, capacity = prepared.stepper.pacing.advise(
            step - at if interval is None else min(step, settings.next_stop(at)) - at
        )
        chunk = _take(prepared, at, count, capacity)
        done, _ = prepared.stepper.run(at, chunk)
        skipped = done < chunk.count
        if skipped:
            prepared.feed.return_from(chunk, done + 1)
            if anchor is not None:
                anchor.give_back()
            elif interval is not None and prepared.saver is not None:
                prepared.saver.roll_back(at + done)
        at += done + skipped


def _take(prepared: Prepared, step: int, count: int, capacity: int = 1) -> Chunk:
    chunk = prepared.feed.take(step, count, capacity)
    if chunk is None:
        raise ValueError(f"the data ends before step {step + 1}")
    return chunk
