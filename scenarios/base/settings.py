"""The settings that every scenario has, checked when they are given."""

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Settings:
    """How long and on how much a scenario trains, and what it leaves behind.

    Args:
      steps: the number of updates.
      batch_size: examples per update.
      seed: of the order of examples and of the random numbers that updates draw. First weights follow `mk.seed`.
      log_interval: updates between two rows of the history, each the mean of the metrics since the last.
      eval_interval: updates between two evaluations, if there is evaluation data; None evaluates at the end alone.
      eval_batch_size: examples per evaluation batch; it does not change any number.
      save_dir: the run's directory, for the log and the saved states; None saves nothing. If it holds a saved state, the
        run goes on from there.
      save_interval: updates between two saved states; None saves at the end, and when the run is interrupted.
      steps_per_call: updates in one compiled program; None measures and chooses. It does not change any number.
      progress: whether to show progress: a bar on a terminal, else plain lines.

    Raises:
      ValueError: a number is out of range.
      TypeError: a number is none.

    >>> Settings(steps=1000, batch_size=32).eval_batch_size
    1000
    >>> Settings(steps=1000, batch_size=0)
    Traceback (most recent call last):
        ...
    ValueError: batch_size=0 is below 1
    """

    steps: int
    batch_size: int = 100
    seed: int = 0
    log_interval: int = 100
    eval_interval: int | None = None
    eval_batch_size: int = 1000
    save_dir: str | os.PathLike[str] | None = None
    save_interval: int | None = None
    steps_per_call: int | None = None
    progress: bool = True

    def __post_init__(self) -> None:
        lowest = {"steps": 0, "seed": 0}
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in ("save_dir", "progress") or (value is None and field.default is None):
                continue
            _check_number(field.name, value, lowest.get(field.name, 1))
        if self.save_interval is not None and self.save_dir is None:
            raise ValueError(
                f"save_interval={self.save_interval} needs a save_dir: give the run a directory to save in"
            )

    @property
    def directory(self) -> Path | None:
        """The run's directory."""
        return None if self.save_dir is None else Path(self.save_dir)

    def next_stop(self, step: int) -> int:
        """Returns the step after `step` at which the loop must come back: to evaluate, to save, or to end."""
        stops = [self.steps]
        for interval in (self.eval_interval, self.save_interval):
            if interval is not None:
                stops.append((step // interval + 1) * interval)
        return min(stops)


def _check_number(name: str, value: Any, lowest: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}={value!r} is a {type(value).__name__}: expected an integer of at least {lowest}")
    if value < lowest:
        raise ValueError(f"{name}={value} is below {lowest}")
