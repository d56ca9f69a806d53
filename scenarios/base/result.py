"""What a run returns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modulekit.averaging import WeightAverage
from modulekit.core.module import Module


@dataclass(frozen=True)
class Result:
    """The outcome of a run.

    Attributes:
      step: the number of updates done, those before a resume included.
      metrics: the final evaluation's means over all evaluation examples; without evaluation data, the last row of
        training metrics.
      history: a list of rows `{"step": ..., ...}`: training metrics under their names, evaluation metrics as `eval_...`.
      save_dir: the run's directory, None if nothing was saved.
      parameters: the number of trainable numbers in the parts, each shared variable counted once.
      reason: "done", or what ended the run before.
      skipped: the updates that were not applied, since something in them was not finite.
      seconds: where time went: waiting for data, stepping, evaluating, saving, other; earlier parts of the run included.
      state: the modules that the scenario made for the run, by name.
      alarms: pairs `(step, sentence)`: what the scenario found wrong in evaluations.
      ema: the averages of the weights, with `ema_decay`: `result.ema["model.w"]`, `with result.ema.averaged(): ...`.

    >>> Result(step=100, metrics={"loss": 0.5}, history=[], save_dir=None, parameters=2)
    Result(step=100, metrics={'loss': 0.5}, save_dir=None, parameters=2, reason='done')
    """

    step: int
    metrics: Mapping[str, float]
    history: list[dict[str, Any]] = field(repr=False)
    save_dir: Path | None
    parameters: int
    reason: str = "done"
    skipped: Sequence[int] = field(default=(), repr=False)
    seconds: Mapping[str, float] = field(default_factory=dict, repr=False, compare=False)
    ema: WeightAverage | None = field(default=None, repr=False, compare=False)
    state: Mapping[str, Module] = field(default_factory=dict, repr=False, compare=False)
    alarms: Sequence[tuple[int, str]] = field(default=(), repr=False)

    def column(self, name: str) -> tuple[list[int], list[float]]:
        """Returns the steps and values of the history's rows that have `name`.

        >>> Result(2, {}, [{"step": 1, "loss": 0.5}, {"step": 2, "eval_loss": 0.4}], None, 0).column("loss")
        ([1], [0.5])
        """
        rows = [row for row in self.history if name in row]
        return [row["step"] for row in rows], [row[name] for row in rows]
