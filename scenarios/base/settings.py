"""The settings that every scenario has, checked when they are given."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, get_args

NonFinite = Literal["stop", "skip", "rollback"]
Mode = Literal["min", "max"]

_LOWEST = {"steps": 0, "seed": 0, "keep_best": 0}
_CHOICES = {"non_finite": get_args(NonFinite), "best_mode": get_args(Mode)}
_TRUTHS = ("progress", "data_on_device")
_PATH = (str | os.PathLike, "the path of a directory")
_TEXTS: Mapping[str, tuple[Any, str]] = {
    "save_dir": _PATH,
    "cache_dir": _PATH,
    "best_metric": (str, "the name of a metric"),
}


@dataclass(frozen=True)
class Settings:
    """How long and on how much a scenario trains, what it leaves behind, and what it does when something goes wrong.

    Args:
      steps: the number of updates.
      batch_size: examples per update; a stream of data brings its own batches.
      seed: of the order of examples and of the random numbers that updates draw. First weights follow `mk.seed`.
      log_interval: updates between two rows of the history, each the mean of the metrics since the last.
      eval_interval: updates between two evaluations, if there is evaluation data; None evaluates at the end alone.
      eval_batch_size: examples per evaluation batch; it does not change any number.
      ema_decay: of the exponential moving average of the weights, in [0, 1), which is kept beside them and evaluated beside
        them; None for no average.
      save_dir: the run's directory, for the log and the saved states; None saves nothing. If it holds a saved state, the
        run goes on from there.
      save_interval: updates between two saved states; None saves at the end, and when the run is interrupted.
      keep: how many of the newest saved states stay.
      keep_best: how many of those with the best evaluation stay beside them.
      best_metric: of the evaluation, by which a state is among the best.
      best_mode: whether `best_metric` is better the smaller (`min`) or the larger (`max`) it is.
      steps_per_call: updates in one compiled program, as a loop: any number gives the same bits. None, or "auto", measures
        and chooses; where a loop is much the slower form, as for convolutions on CPU, the run takes one step at a time, and
        then XLA may round the last bits in another way.
      data_on_device: whether all examples in memory are put on the device, so that batches are gathered there; False feeds
        batches from the host; None does the first where they take no more than half of its free memory.
      non_finite: what happens when an update gives a metric, a weight or a slot that is not finite. It is never applied:
        `stop` ends the run, `skip` goes on with the next batch, and `rollback` goes back to the weights of the newest
        state saved at a multiple of `save_interval`, and on with the next batch.
      mesh: how many devices there are along each axis, such as `{"data": 4, "model": 2}`; -1 for as many as there are, once.
        Batches are divided along `data`, and the axis after theirs along `sequence`. None takes one device. It changes no
        number but in the last bits.
      placement: how variables lie on the mesh: `data_parallel`, `fully_sharded`, `tensor_parallel`, several joined by `+`,
        or partition specs by pattern of paths, such as `{"**/w": [None, "model"]}` (`modulekit.sharding`). `members`, on a
        mesh with an axis of this name, divides the members of an ensemble.
      cache_dir: a folder in which compiled programs are kept, so that a run that goes on, or any other run that is given the
        folder, does not compile them again; None leaves it to JAX's own setting.
      time_limit: seconds after which the run ends at the next step, with a saved state; None for no limit.
      progress: whether to show progress: a bar on a terminal, else plain lines.

    Raises:
      ValueError: a number is out of range, or a setting asks for another one that is missing.
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
    ema_decay: float | None = None
    save_dir: str | os.PathLike[str] | None = None
    save_interval: int | None = None
    keep: int = 3
    keep_best: int = 1
    best_metric: str = "loss"
    best_mode: Mode = "min"
    steps_per_call: int | Literal["auto"] | None = None
    data_on_device: bool | None = None
    non_finite: NonFinite = "stop"
    mesh: Mapping[str, int] | None = None
    placement: str | Mapping[str, Any] = "data_parallel"
    cache_dir: str | os.PathLike[str] | None = None
    time_limit: float | None = None
    progress: bool = True

    def __post_init__(self) -> None:
        if self.steps_per_call == "auto":
            object.__setattr__(self, "steps_per_call", None)  # one way to say it, for all that compares settings
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in ("mesh", "placement", *_TRUTHS) or (value is None and field.default is None):
                continue
            if field.name in _TEXTS:
                _check_kind(field.name, value, *_TEXTS[field.name])
            elif field.name in _CHOICES:
                _check_choice(field.name, value, _CHOICES[field.name])
            elif field.name in ("ema_decay", "time_limit"):
                _check_real(field.name, value, below=1.0 if field.name == "ema_decay" else float("inf"))
            else:
                _check_number(field.name, value, _LOWEST.get(field.name, 1))
        _check_mesh(self.mesh, self.placement)
        if self.save_interval is not None and self.save_dir is None:
            raise ValueError(
                f"save_interval={self.save_interval} needs a save_dir: give the run a directory to save in"
            )
        if self.non_finite == "rollback" and self.save_interval is None:
            raise ValueError("non_finite='rollback' goes back to a saved state: give save_dir and save_interval")

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


def checked_settings(scenario: str, steps: int, settings: Mapping[str, Any]) -> Settings:
    """Returns the settings of a scenario, whose name is for messages.

    Raises:
      ValueError, TypeError: there is no such setting, or it is out of range.

    >>> checked_settings("Supervised", 10, {"batchsize": 5})
    Traceback (most recent call last):
        ...
    TypeError: Supervised has no setting 'batchsize': did you mean 'batch_size'?
    """
    known = [field.name for field in fields(Settings)]
    for name in settings:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
            raise TypeError(f"{scenario} has no setting {name!r}: {hint}")
    return Settings(steps, **settings)


def _check_kind(name: str, value: Any, kind: Any, expected: str) -> None:
    if not isinstance(value, kind):
        raise TypeError(f"{name}={value!r} is a {type(value).__name__}: expected {expected}")


def _check_number(name: str, value: Any, lowest: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}={value!r} is a {type(value).__name__}: expected an integer of at least {lowest}")
    if value < lowest:
        raise ValueError(f"{name}={value} is below {lowest}")


def _check_real(name: str, value: Any, below: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}={value!r} is a {type(value).__name__}: expected a number in [0, {below:g})")
    if not 0 <= value < below:
        raise ValueError(f"{name}={value} is outside [0, {below:g})")


def _check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}={value!r} is none of {', '.join(map(repr, choices))}")


def _check_mesh(mesh: Any, placement: Any) -> None:
    sizes = mesh.values() if isinstance(mesh, Mapping) else [None]
    if mesh is not None and not all(isinstance(size, int) and not isinstance(size, bool) for size in sizes):
        raise TypeError(f"mesh={mesh!r}: expected a number of devices for each axis, as in {{'data': 8}}")
    if not isinstance(placement, str | Mapping):
        raise TypeError(f"placement={placement!r}: expected the name of a preset, or partition specs by pattern")
