"""The saved state of a run: variables by path, the step, the history, and what the run was made of."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from modulekit.checkpoints import CheckpointStore
from modulekit.core.storage import stored_arrays
from modulekit.core.variable import Variable
from modulekit.errors import CheckpointError


@dataclass
class Progress:
    """What a run has done so far, beside changing variables.

    Attributes:
      step: the number of updates.
      history: the rows so far.
      sums: of each metric since the last row.
      summed: the number of updates in `sums`.
      in_loop: whether many steps in one program were found to be faster; None while that is not known.
    """

    step: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    sums: dict[str, float] = field(default_factory=dict)
    summed: int = 0
    in_loop: bool | None = None

    def add(self, metrics: Mapping[str, float], log_interval: int) -> dict[str, float] | None:
        """Counts one update, and returns the row of the history that it completes, if it does."""
        self.step += 1
        self.summed += 1
        for name, value in metrics.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        if self.step % log_interval:
            return None
        row = {name: total / self.summed for name, total in self.sums.items()}
        self.record(row)
        self.sums, self.summed = {}, 0
        return row

    def record(self, row: Mapping[str, float]) -> None:
        """Adds values to the history's row of the current step."""
        if not self.history or self.history[-1]["step"] != self.step:
            self.history.append({"step": self.step})
        self.history[-1].update(row)


class Saver:
    """Saves and restores a run.

    Args:
      directory: the run's directory.
      variables: by path: all that the run changes.
      ties: the first path of each tied variable, by its other paths.
      identity: what must be the same when the run goes on: scenario, seed, batch size, data.
    """

    def __init__(
        self,
        directory: Path,
        variables: Mapping[str, Variable],
        ties: Mapping[str, str],
        identity: Mapping[str, Any],
    ) -> None:
        self._store = CheckpointStore(directory / "states")
        self._variables = dict(variables)
        self._ties = dict(ties)
        self._identity = dict(identity)
        self._saved: int | None = self._store.latest()

    def save(self, progress: Progress) -> bool:
        """Writes the state after the current step, unless it is there already; returns whether it wrote."""
        if self._saved == progress.step:
            return False
        arrays = dict(zip(self._variables, stored_arrays(list(self._variables.values())), strict=True))
        self._store.save(
            progress.step, arrays, {"progress": asdict(progress), "identity": self._identity, "ties": self._ties}
        )
        self._saved = progress.step
        return True

    def restore(self, steps: int) -> Progress | None:
        """Assigns the newest saved state to the variables, all of them or none.

        Args:
          steps: how far the run is to go.

        Returns:
          How far it is; None if nothing is saved.

        Raises:
          CheckpointError: the state is of another run, or does not fit the variables.
        """
        if self._saved is None:
            return None
        arrays, record = self._store.restore(self._saved)
        self._check_identity(record["identity"])
        progress = Progress(**record["progress"])
        if progress.step > steps:
            raise CheckpointError(
                f"{self._store.directory} holds a run that has already done {progress.step} steps, and steps={steps} asks "
                "for fewer. Choose another save_dir, or more steps"
            )
        check_fits(self._variables, arrays, str(self._store.directory), self._ties, record["ties"])
        for path, variable in self._variables.items():
            variable.assign(arrays[path])
        return progress

    def _check_identity(self, saved: Mapping[str, Any]) -> None:
        changed = [k for k in {**saved, **self._identity} if saved.get(k) != self._identity.get(k)]
        if changed:
            differences = ", ".join(f"{k}: saved {saved.get(k)!r}, now {self._identity.get(k)!r}" for k in changed)
            raise CheckpointError(
                f"{self._store.directory} holds a run that cannot go on with these settings ({differences}). Choose another "
                "save_dir, or the settings of that run"
            )

    def close(self) -> None:
        """Ends the storage's threads."""
        self._store.close()


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
