"""What happens in a run, told to hooks in this order: started, then progress, logs, evaluations and saves, finished."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Started:
    """The run begins at `step`, which is above 0 where it resumes, and will end at `steps`."""

    scenario: str
    step: int
    steps: int


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
class Evaluated:
    """The mean metrics of all evaluation examples, after update `step`."""

    step: int
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Saved:
    """The state after update `step` is complete on disk."""

    step: int
    directory: Path


@dataclass(frozen=True)
class Finished:
    """The run ends after update `step`; `reason` is "done", or says what stopped it."""

    step: int
    reason: str


Event = Started | Progressed | Logged | Evaluated | Saved | Finished
