"""The saved state of a run: variables by path, how far it is, the memory of its hooks, and what it was made of."""

import sys
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from modulekit.checkpoints import CheckpointStore
from modulekit.core.processes import are_several, is_first, is_in_parts, largest
from modulekit.core.variable import Variable
from modulekit.errors import CheckpointError
from scenarios.base.hooks import Hook, hook_states, set_hook_states
from scenarios.base.identity import differences
from scenarios.base.settings import Settings

STATES = "states"  # the folder of a run's directory
Row = tuple[int, dict[str, float]]  # a step, and the means since the row before
REMEMBERED = 50  # losses
TRACED = 100  # losses from the beginning, with which a repetition is compared


@dataclass
class Progress:
    """What a run has done so far, beside changing variables.

    Attributes:
      step: the number of updates, those that were not applied included.
      history: the rows so far.
      sums: of each metric since the last row.
      summed: the number of updates in `sums`.
      in_loop: whether many steps in one program were found to be faster; None while that is not known.
      form: what the scenario's `prepare` has decided; None where it has not.
      evaluated: the step of the last evaluation; None before the first.
      losses: the first metric of the last 50 updates.
      trace: that of the first 100.
      skipped: the updates that were not applied, since something in them was not finite.
      position: of a stream of data, in its own words.
      seconds: where time went.
      alarms: what the scenario found wrong in evaluations, with the step.
    """

    step: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    sums: dict[str, float] = field(default_factory=dict)
    summed: int = 0
    in_loop: bool | None = None
    form: Any = None
    evaluated: int | None = None
    losses: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    trace: list[float] = field(default_factory=list)
    skipped: list[int] = field(default_factory=list)
    position: Any = None
    seconds: dict[str, float] = field(default_factory=dict)
    alarms: list[tuple[int, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.alarms = [(step, message) for step, message in self.alarms]
        self.losses = deque(self.losses, maxlen=REMEMBERED)  # read back, it is a list

    @property
    def skipped_last(self) -> int:
        """The number of updates in a row, up to the current step, that were not applied."""
        steps = range(self.step, 0, -1)
        return sum(
            1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(steps, reversed(self.skipped), strict=False))
        )

    def add(self, metrics: Mapping[str, np.ndarray[Any, Any]], count: int, log_interval: int) -> list[Row]:
        """Counts updates, whose metrics are columns `[count]`; returns the rows of the history that they complete."""
        rows: list[Row] = []
        done = 0
        while done < count:
            part = slice(done, min(count, done + log_interval - self.step % log_interval))
            for name, column in metrics.items():
                values = np.concatenate(([self.sums.get(name, 0.0)], column[part]))
                self.sums[name] = float(np.add.accumulate(values)[-1])  # in order, however many come at once
            losses = next(iter(metrics.values()))[part].tolist()
            self.losses.extend(losses)
            self.trace.extend(losses[: TRACED - len(self.trace)])
            self.step, self.summed, done = self.step + len(losses), self.summed + len(losses), part.stop
            rows += self._completed(log_interval)
        return rows

    def skip(self, log_interval: int) -> list[Row]:
        """Counts an update that was not applied; returns the row of the history that it completes, if any."""
        self.step += 1
        self.skipped.append(self.step)
        return self._completed(log_interval)

    def _completed(self, log_interval: int) -> list[Row]:
        if not self.summed or self.step % log_interval:
            return []
        row = {name: total / self.summed for name, total in self.sums.items()}
        self.sums, self.summed = {}, 0
        self.record(row)
        return [(self.step, row)]

    def record(self, row: Mapping[str, float]) -> None:
        """Adds values to the history's row of the current step."""
        if not self.history or self.history[-1]["step"] != self.step:
            self.history.append({"step": self.step})
        self.history[-1].update(row)

    def in_json(self) -> dict[str, Any]:
        """Returns all of it as JSON can hold it."""
        return {**asdict(self), "losses": list(self.losses)}


def holds_states(directory: Path) -> bool:
    """Returns whether a run has a store of saved states in its directory."""
    return (directory / STATES).is_dir()


def open_store(directory: Path, settings: Settings) -> CheckpointStore:
    """Opens the store of saved states in a run's directory."""
    anchor = settings.save_interval if settings.non_finite == "rollback" else None
    return CheckpointStore(
        directory / STATES, settings.keep, settings.keep_best, settings.best_mode, anchor_interval=anchor
    )


def saved_progress(settings: Settings) -> Progress:
    """Returns how far the run in the directory is, as its newest state says; nothing is made there."""
    if settings.directory is None or not holds_states(settings.directory):
        return Progress()
    store = open_store(settings.directory, settings)
    try:
        return progress_in(store)
    finally:
        store.close()


def progress_in(store: CheckpointStore, step: int | None = None) -> Progress:
    """Returns how far a run is, as the newest state up to `step` in its store says; without reading its arrays."""
    newest = _newest(store, step)
    return Progress() if newest is None else Progress(**store.record(newest)["progress"])


def _newest(store: CheckpointStore, step: int | None) -> int | None:
    return max((saved for saved in store.steps() if step is None or saved <= step), default=None)


class Saver:
    """Saves and restores a run.

    Args:
      store: of its directory.
      variables: by path: all that the run changes.
      ties: the first path of each tied variable, by its other paths.
      identity: what the run is made of.
      hooks: those with a memory are saved and restored with the rest.

    Attributes:
      restored: whether a state has been restored.
    """

    def __init__(
        self,
        store: CheckpointStore,
        variables: Mapping[str, Variable],
        ties: Mapping[str, str],
        identity: Mapping[str, Any],
        hooks: Sequence[Hook],
    ) -> None:
        self._store = store
        self._variables = dict(variables)
        self._ties = dict(ties)
        self._identity = dict(identity)
        self._hooks = list(hooks)
        self._saved: int | None = store.latest()
        self.restored = False

    @property
    def directory(self) -> Path:
        """Where the states are."""
        return self._store.directory

    def save(self, progress: Progress, score: float | None = None) -> None:
        """Begins to write the state after the current step, unless it is there already; goes on while it is written."""
        if self._saved == progress.step:
            return
        arrays = {path: v.stored() for path, v in self._variables.items()}
        record = {
            "progress": progress.in_json(),
            "identity": self._identity,
            "ties": self._ties,
            "hooks": hook_states(self._hooks),
        }
        if is_first() or any(map(is_in_parts, arrays.values())):
            self._store.save(progress.step, arrays, record, score, in_background=True)
        self._saved = progress.step

    def written(self) -> list[int]:
        """Returns the steps whose states have become complete since it was last asked."""
        return self._store.written()

    def wait(self) -> None:
        """Waits until what was saved is complete on disk."""
        self._store.wait()

    def restore(self, steps: int, step: int | None = None) -> Progress | None:
        """Assigns the newest saved state to the variables, all of them or none; says what has changed since it was saved.

        Args:
          steps: how far the run is to go.
          step: up to which the state may be; None for the newest one.

        Returns:
          How far it is; None if nothing is saved.

        Raises:
          CheckpointError: the state is of another run, or does not fit the variables.
        """
        newest = _newest(self._store, step)
        if newest is None:
            return None
        arrays, record = self._store.restore(newest, self._divided())
        self._check_identity(record["identity"])
        progress = Progress(**record["progress"])
        if progress.step > steps:
            raise CheckpointError(
                f"{self.directory} holds a run that has already done {progress.step} steps, and steps={steps} asks "
                "for fewer. Choose another save_dir, or more steps"
            )
        self._assign(arrays, record)
        set_hook_states(self._hooks, record["hooks"])
        self.restored = True
        return progress

    def roll_back(self, step: int) -> int:
        """Assigns the newest state up to `step` that was saved at its interval; returns its step."""
        self._store.wait()
        if largest(int(are_several())):  # the state is there for all processes
            self._store.look_again()
        anchor = self._store.anchor(step)
        self._assign(*self._store.restore(anchor, self._divided()))
        return anchor

    def _divided(self) -> dict[str, jax.Array]:
        """Returns the arrays of which no device has the whole."""
        arrays = {path: v.stored() for path, v in self._variables.items()}
        return {path: array for path, array in arrays.items() if not array.is_fully_replicated}

    def _assign(self, arrays: Mapping[str, Any], record: Mapping[str, Any]) -> None:
        check_fits(self._variables, arrays, str(self.directory), self._ties, record["ties"])
        for path, variable in self._variables.items():
            variable.assign(arrays[path])

    def _check_identity(self, saved: Mapping[str, Any]) -> None:
        changed = differences(saved, self._identity)
        refused = [difference for difference in changed if difference.kind == "incompatible"]
        if refused:
            raise CheckpointError(
                f"{self.directory} holds a run that cannot go on like this: {'; '.join(map(str, changed))}. Choose another "
                "save_dir, or go back to what that run was made of"
            )
        for difference in changed:
            print(f"going on from {self.directory.parent}: {difference}", file=sys.stderr, flush=True)


def check_fits(
    variables: Mapping[str, Variable],
    arrays: Mapping[str, Any],
    source: str,
    ties: Mapping[str, str],
    saved_ties: Mapping[str, str],
) -> None:
    """Raises `CheckpointError` unless there is an array of the right shape and dtype for each variable, and no other."""
    problems = [
        f"{path} was tied to {saved_ties[path]}, and is not tied now" if path in saved_ties else f"missing {path}"
        for path in variables
        if path not in arrays
    ]
    problems += [
        f"{path} is tied to {ties[path]}, and was not tied when saved" if path in ties else f"unexpected {path}"
        for path in arrays
        if path not in variables
    ]
    problems += [
        f"{path} was tied to {saved_ties[path]}, and is tied to {ties[path]} now"
        for path in ties
        if path in saved_ties and saved_ties[path] != ties[path]
    ]
    for path, variable in variables.items():
        if path not in arrays:
            continue
        array = arrays[path]
        if tuple(array.shape) != variable.shape or array.dtype != variable.dtype:
            problems.append(
                f"{path} is {array.dtype}{list(array.shape)}, the variable {variable.dtype}{list(variable.shape)}"
            )
    if problems:
        shown = "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
        raise CheckpointError(f"the state in {source} does not fit these parts: {shown}. Nothing was assigned")
