"""What happens in a run, told to hooks in this order: started, then progress, logs, evaluations and saves, finished.

States are written while the run goes on, so that a state may be told to be complete a few steps after its own.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Started:
    """The run begins at `step`, which is above 0 where it resumes, and will end at `steps`; it is saved in `directory`."""

    scenario: str
    step: int
    steps: int
    directory: Path | None = None


@dataclass(frozen=True)
class Progressed:
    """The updates up to `step` are done; `metrics` are those of the last one."""

    step: int
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Logged:
    """A row of the history: the mean metrics of the updates since the last row."""

    step: int
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Skipped:
    """Update `step` was not applied, since something in it was not finite; the weights are those after update `weights`."""

    step: int
    weights: int
    message: str


@dataclass(frozen=True)
class Evaluated:
    """The mean metrics of all evaluation examples, after update `step`; those of averaged weights as `ema_...`."""

    step: int
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Alarm:
    """The scenario has found something wrong in the evaluation after update `step`; the run goes on."""

    step: int
    message: str


@dataclass(frozen=True)
class Saved:
    """The state after update `step` is complete on disk."""

    step: int
    directory: Path


@dataclass(frozen=True)
class Finished:
    """The run ends after update `step`; `reason` is "done", or says what stopped it; `seconds` are where time went."""

    step: int
    reason: str
    seconds: Mapping[str, float] = field(default_factory=dict, compare=False)


Event = Started | Progressed | Logged | Skipped | Evaluated | Alarm | Saved | Finished
