"""Whether a run resumes exactly, tried: straight on one side, with a save, another process and a resume on the other."""

import pickle
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from modulekit.checkpoints import CheckpointStore
from modulekit.core import draws
from modulekit.errors import CheckpointError
from scenarios.base.elsewhere import CallError, call_elsewhere
from scenarios.base.events import Event, Progressed
from scenarios.base.hooks import Hook, Stop
from scenarios.base.run import Run
from scenarios.base.saving import STATES

_UNCOMPARED = ("seconds", "in_loop", "form")  # of the progress: they are measured


class ResumeError(CheckpointError):
    """A run that was saved, and went on in another process, did not end as the same run without a break.

    >>> raise ResumeError("after 10 steps, resumed at step 5, model.w differs: ...")
    Traceback (most recent call last):
        ...
    scenarios.base.verification.ResumeError: after 10 steps, resumed at step 5, model.w differs: ...
    """


@dataclass(frozen=True)
class Verification:
    """What was found to be bitwise equal.

    Attributes:
      steps: how many were run.
      resumed_at: the step at which the run was saved and went on in another process.
      arrays: the number of arrays compared: weights, slots, statistics, averages, random streams.

    >>> print(Verification(steps=10, resumed_at=5, arrays=4))
    10 steps are bitwise the same straight and resumed at step 5 in another process: 4 arrays, history and hooks
    """

    steps: int
    resumed_at: int
    arrays: int

    def __str__(self) -> str:
        return (
            f"{self.steps} steps are bitwise the same straight and resumed at step {self.resumed_at} in another process: "
            f"{self.arrays} arrays, history and hooks"
        )


def verify(run: Run, at: int) -> Verification:
    """Trains copies of a run's parts twice, without a break and with one, and compares all that is saved at the end.

    Args:
      run: the run; its parts, data and hooks are copied by pickling, and stay as they are.
      at: the step after which to break.

    Raises:
      ResumeError: the ends differ; the message names the first array, or entry of the record, that does.
      ValueError: there is no such step, or something cannot be pickled.
    """
    steps = run.settings.steps
    if not 0 < at < steps:
        raise ValueError(f"at={at}: a break must come after one of the steps 1 to {steps - 1}")
    counts = draws.snapshot()  # the copies draw first weights, which must not change those of what is made next
    try:
        first = _built(_pickled(run))
        with tempfile.TemporaryDirectory() as folder:
            straight, broken = Path(folder) / "straight", Path(folder) / "broken"
            _train(first, straight, at, cut=False)
            _train(first, broken, at, cut=True)
            _train_elsewhere(first, broken, at)
            expected, record = _end(straight, steps)
            found, found_record = _end(broken, steps)
    finally:
        draws.restore(counts)
    difference = _difference(expected, found) or _record_difference(record, found_record)
    if difference is not None:
        raise ResumeError(f"after {steps} steps, resumed at step {at}, {difference}")
    return Verification(steps, at, len(expected))


def _pickled(run: Run) -> bytes:
    try:
        return pickle.dumps(run)
    except Exception as error:
        raise ValueError(
            f"{run.name} cannot be verified in another process, since something that it was called with cannot be pickled "
            f"({error}): define classes and functions at the top of a module, and give data that can be, as arrays can"
        ) from error


def _built(pickled: bytes) -> bytes:
    """Returns a pickled run whose variables exist, so that all copies of it begin with the same first weights."""
    run: Run = pickle.loads(pickled)
    with replace(run, settings=replace(run.settings, save_dir=None, save_interval=None, non_finite="stop")).prepared():
        return pickle.dumps(run)


def _train(pickled: bytes, directory: Path, at: int, cut: bool) -> None:
    run: Run = pickle.loads(pickled)
    settings = replace(run.settings, save_dir=directory, save_interval=at, progress=False, time_limit=None)
    added: list[Hook] = [_Cut(at)] if cut else []
    replace(run, settings=settings, hooks=[*run.hooks, *added])()


class _Cut:
    """Ends a run after a step."""

    def __init__(self, step: int) -> None:
        self._step = step

    def __call__(self, event: Event) -> Stop | None:
        return Stop("cut") if isinstance(event, Progressed) and event.step >= self._step else None


def _train_elsewhere(pickled: bytes, directory: Path, at: int) -> None:
    """Goes on in a fresh process."""
    try:
        call_elsewhere("verify_resume", _train, pickled, directory, at, False)
    except CallError as error:
        raise ResumeError(f"in another process the run did not go on: {error}") from error.error


def _end(directory: Path, steps: int) -> tuple[dict[str, np.ndarray[Any, Any]], dict[str, Any]]:
    store = CheckpointStore(directory / STATES)
    try:
        return store.restore(steps)
    finally:
        store.close()


def _difference(expected: Mapping[str, Any], found: Mapping[str, Any]) -> str | None:
    for path, array in expected.items():
        other = found.get(path)
        if other is None:
            return f"{path} is missing"
        if array.dtype != other.dtype or array.shape != other.shape:
            return f"{path} is {other.dtype}{list(other.shape)}, not {array.dtype}{list(array.shape)}"
        if array.tobytes() != other.tobytes():
            distance = np.abs(array.astype(np.float64) - other.astype(np.float64)).max()
            return f"{path} differs, by up to {distance:.3g}: it is not a function of the saved state and the step"
    return next((f"{path} is unexpected" for path in found if path not in expected), None)


def _record_difference(expected: Mapping[str, Any], found: Mapping[str, Any]) -> str | None:
    for part in ("progress", "hooks"):
        for name in {**expected[part], **found[part]}:
            if name in _UNCOMPARED:
                continue
            before, now = expected[part].get(name), found[part].get(name)
            if repr(before) != repr(now):
                return f"{part} {name!r} differs: {str(before)[:200]} straight, {str(now)[:200]} resumed"
    return None
