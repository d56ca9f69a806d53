"""What a run will cost, and what is wrong with it, found out before it begins.

The run's own programs are compiled, and some of its updates are run on its own data; then everything is as it was.
"""

import math
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import jax

import modulekit as mk
from modulekit.core.trial import Trial
from modulekit.data import Arrays, Stream
from scenarios.base.coverage import Coverage, Use, Watch
from scenarios.base.duration import Duration, Pace, duration, first_batches
from scenarios.base.feeding import Resident, specification
from scenarios.base.inputs import Inputs, findings
from scenarios.base.largest_batch import LargestBatch, largest_batch
from scenarios.base.overfitting import Overfitting, overfit
from scenarios.base.parts import variables_by_path
from scenarios.base.program_cost import DeviceMemory, ProgramCost, bytes_in_use, device_memory, program_cost
from scenarios.base.run import Prepared, Run
from scenarios.base.saving import Progress
from scenarios.base.sizes import PartSize, SavedSize, bytes_of, part_sizes, saved_size, short, sizes_table


@dataclass(frozen=True)
class Preflight:
    """What was found out about a run before it begins. As text it is a report, with the warnings at the end.

    Attributes:
      scenario: its name.
      parts: how large each of them is.
      inputs: its data.
      cost: of one update as a program.
      memory: of the device.
      largest_batch: that fits.
      saved: what saved states take on disk.
      duration: the predicted time.
      coverage: what no update changes, and what never runs.
      overfitting: whether one batch can be overfitted; None where that was not tried.
      notes: further warnings.

    >>> import jax.numpy as jnp, modulekit as mk, scenarios
    >>> x = jnp.linspace(-1, 1, 32)[:, None]
    >>> fit = scenarios.Supervised(100, batch_size=8, progress=False)
    >>> report = fit.preflight(mk.Linear(1), mk.optimizers.SGD(0.3), mk.losses.squared_error, data=(x, 5 * x))
    >>> report.parameters, report.largest_batch.size, report.warnings
    (2, 32, [])
    >>> print(report.overfitting)  # doctest: +ELLIPSIS
    one batch can be overfitted: loss fell from ...
    """

    scenario: str
    parts: tuple[PartSize, ...]
    inputs: Inputs
    cost: ProgramCost
    memory: DeviceMemory
    largest_batch: LargestBatch
    saved: SavedSize
    duration: Duration
    coverage: Coverage
    overfitting: Overfitting | None
    notes: tuple[str, ...] = ()

    @property
    def parameters(self) -> int:
        """The number of trainable numbers, each shared variable counted once."""
        return sum(part.trainable for part in self.parts)

    @property
    def optimizer_bytes(self) -> int:
        """Bytes of the optimizers' slots and counters."""
        return sum(part.bytes for part in self.parts if part.is_optimizer)

    @property
    def flops_per_second(self) -> float | None:
        """Floating-point operations per second, at the measured speed."""
        seconds = self.duration.per_update
        return None if self.cost.flops is None or not seconds else self.cost.flops / seconds

    @property
    def warnings(self) -> list[str]:
        """One sentence for each thing that is wrong, or may be."""
        found = list(self.notes)
        if self.cost.memory > self.memory.available:
            found.append(f"an update does not fit in memory: {self.cost}; {self.memory}")
        sections = (self.inputs, self.saved, self.coverage, self.overfitting)
        return [*found, *(warning for section in sections if section is not None for warning in section.warnings)]

    def in_json(self) -> dict[str, Any]:
        """Returns all of it as JSON can hold it; None stands for a number that is not finite."""
        derived = {
            "parameters": self.parameters,
            "optimizer_bytes": self.optimizer_bytes,
            "flops_per_second": self.flops_per_second,
            "seconds": self.duration.total,
            "warnings": self.warnings,
        }
        found: dict[str, Any] = _plain({**asdict(self), **derived})
        return found

    def __str__(self) -> str:
        speed = self.flops_per_second
        lines = [
            f"{self.scenario}: {self.duration.updates:,} updates of {self.parameters:,} trainable numbers",
            sizes_table(self.parts),
            str(self.inputs),
            f"{self.cost}" + ("" if speed is None else f", {short(speed)}FLOP/s at the measured speed"),
            str(self.memory),
            str(self.largest_batch),
            str(self.saved),
            str(self.duration),
            str(self.coverage),
            "one batch was not tried to be overfitted" if self.overfitting is None else str(self.overfitting),
            *(f"warning: {warning}" for warning in self.warnings),
        ]
        return "\n".join(lines)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def preflight(run: Run, tries_overfitting: bool, memory_limit: int | None) -> Preflight:
    """Looks at a run, and tries its programs; then all variables are as before, and those that were made have first values.

    Args:
      run: the run; nothing is written in its directory, and its hooks hear nothing.
      tries_overfitting: whether to train on one batch.
      memory_limit: bytes of memory to reckon with; None asks the device.

    Raises:
      NonFiniteError: as the run would.
    """
    before = bytes_in_use() - bytes_of(variables_by_path(run.parts).values())
    silent = replace(run.settings, save_dir=None, save_interval=None, non_finite="stop", progress=False)
    small = replace(run, settings=silent, hooks=())
    stream = small.examples if isinstance(small.examples, Stream) and small.examples.resumable else None
    position = None if stream is None else stream.state()
    try:
        with mk.trial() as trial, small.prepared(restore=False) as prepared:
            report = _Tried(run, small, prepared, trial).report(tries_overfitting, memory_limit, before)
            trial.rollback()
    finally:
        if stream is not None and position is not None:
            stream.restore(position)
    return report


@dataclass(frozen=True)
class _Tried:
    """A run that is tried: as it was asked for, as it is tried, and the trial that takes all of it back."""

    run: Run
    small: Run
    prepared: Prepared
    trial: Trial

    def report(self, tries_overfitting: bool, memory_limit: int | None, occupied: int) -> Preflight:
        run, prepared = self.run, self.prepared
        pace, coverage, time, notes = self._tried()
        chunk = next(iter(pace.chunks), None)
        overfitting = None
        if tries_overfitting and chunk is not None and prepared.parameters:
            self.trial.rollback()
            overfitting = overfit(prepared.stepper, chunk)
        cost = program_cost(self.small.update, prepared.feed.batch)
        memory = device_memory(memory_limit, occupied, self._resident_bytes())
        return Preflight(
            run.name, part_sizes(run.parts), self._inputs(pace), cost, memory, self._largest_batch(cost, memory),
            saved_size(prepared.variables.values(), run.settings), time, coverage, overfitting, tuple(notes),
        )  # fmt: skip

    def _tried(self) -> tuple[Pace, Coverage, Duration, list[str]]:
        """Traces, runs updates, an evaluation of some batches and a save."""
        run, small, prepared = self.run, self.small, self.prepared
        use, evaluated = Use(run.parts), small.eval_examples
        use.see_update(run.bare_update, prepared.feed.batch)
        if evaluated is not None and small.evaluate is not None:
            batch_size = min(run.settings.eval_batch_size, evaluated.size)
            use.see_evaluation(small.evaluate, specification(evaluated, (batch_size,)))
        watch = Watch(use.trainable.values())
        pace = Pace(prepared.stepper, prepared.feed.take, watch.look)
        pace.run()
        notes = self._notes(pace)
        size = 0 if evaluated is None else evaluated.size
        time = duration(pace, run.settings, prepared.evaluator, size, prepared.variables)
        return pace, use.coverage(watch.changed, pace.step), time, notes

    def _notes(self, pace: Pace) -> list[str]:
        run, notes = self.run, []
        if isinstance(run.examples, Stream) and not run.examples.resumable and isinstance(run.data, Iterator):
            notes.append(
                "the data is an iterator that cannot go back: the batches that were tried here are gone from it"
            )
        if pace.failed is not None:
            chunk, index, values = pace.failed
            metrics = {name: float(column[index]) for name, column in values.items()}
            progress = Progress(pace.step, losses=deque(pace.losses))
            error = self.small.explain(self.prepared, progress, chunk, index, metrics)
            if run.settings.non_finite == "stop":
                raise error
            notes.append(f"an update is not finite, and is not applied: {error}")
        return notes

    def _resident_bytes(self) -> int:
        examples = self.small.examples
        if not isinstance(examples, Arrays) or not isinstance(self.prepared.feed, Resident):
            return 0
        return sum(array.nbytes for _, array in examples.leaves)

    def _inputs(self, pace: Pace) -> Inputs:
        small, batch = self.small, self.prepared.feed.batch
        found = findings(first_batches(pace.chunks), "data")
        evaluated = small.eval_examples
        if evaluated is not None:
            found += findings([evaluated.take(slice(0, self.run.settings.eval_batch_size))], "eval_data")
        examples = small.examples
        return Inputs(
            examples.size if isinstance(examples, Arrays) else None,
            math.prod(jax.tree.leaves(batch)[0].shape[: small.leading + 1]),
            self.run.settings.steps,
            0 if evaluated is None else evaluated.size,
            None if isinstance(examples, Arrays) else examples.describe(),
            tuple(found),
        )

    def _largest_batch(self, cost: ProgramCost, memory: DeviceMemory) -> LargestBatch:
        examples = self.small.examples
        if not isinstance(examples, Arrays):
            return LargestBatch(None, None, None, "the data makes its own batches")
        lead = self.small.choose(0, 1).shape[1:-1]

        def memory_of(batch_size: int) -> int:
            return program_cost(self.small.update, specification(examples, (*lead, batch_size))).memory

        return largest_batch(memory_of, self.run.settings.batch_size, cost.memory, memory.available, examples.size)
