"""The first steps of a run, run again: whether the same losses come out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from modulekit.checkpoints import read_json
from modulekit.errors import CheckpointError
from scenarios.base.manifest import NAME, surroundings
from scenarios.base.run import Run
from scenarios.base.saving import Progress, saved_progress


@dataclass(frozen=True)
class Repetition:
    """The losses of a run's first steps beside those of the same steps now.

    Attributes:
      saved: the first metric of each of the steps, as the run had it.
      now: as it is now.
      changes: what is not as it was when the run began: versions, devices, the commit.

    >>> repetition = Repetition([0.5, 0.25], [0.5, 0.2500001], ["jax: was 0.10.1, is 0.10.2"])
    >>> repetition.exact, repetition.first_difference
    (False, 2)
    >>> print(repetition)
    2 steps again: the losses differ from step 2 on, 0.25 then and 0.2500001 now; at most 4e-07 of their size
      jax: was 0.10.1, is 0.10.2
    """

    saved: Sequence[float]
    now: Sequence[float]
    changes: Sequence[str] = ()

    @property
    def first_difference(self) -> int | None:
        """The first step whose loss is not bitwise the same; None if all are."""
        pairs = zip(self.saved, self.now, strict=True)
        return next((step for step, (before, now) in enumerate(pairs, 1) if before != now), None)

    @property
    def exact(self) -> bool:
        """Whether all losses are bitwise the same."""
        return self.first_difference is None

    def __str__(self) -> str:
        step = self.first_difference
        if step is None:
            text = f"{len(self.now)} steps again: all losses are the same, bit by bit"
        else:
            pairs = zip(self.saved, self.now, strict=True)
            size = max(abs(now - before) / max(abs(before), 1e-30) for before, now in pairs)
            text = (
                f"{len(self.now)} steps again: the losses differ from step {step} on, {self.saved[step - 1]:.7g} then and "
                f"{self.now[step - 1]:.7g} now; at most {size:.1g} of their size"
            )
        return "\n".join([text, *(f"  {change}" for change in self.changes)])


def repeat(run: Run, steps: int) -> Repetition:
    """Runs the first steps of a saved run again, from the parts as they are: those that the run began with.

    Args:
      run: the run, with its directory; nothing is written there.
      steps: how many; fewer if fewer losses were saved.

    Raises:
      CheckpointError: the directory holds no run.
    """
    directory = run.settings.directory
    trace = saved_progress(run.settings).trace
    if directory is None or not trace:
        raise CheckpointError(f"{directory} holds no losses of a run to compare with")
    changes = _changes(read_json(directory / NAME))
    count = min(steps, len(trace))
    apart = replace(run, settings=replace(run.settings, save_dir=None, save_interval=None, non_finite="stop"))
    progress = Progress()
    with apart.prepared() as prepared:
        while progress.step < count:
            limit, capacity = prepared.stepper.pacing.advise(count - progress.step)
            chunk = prepared.feed.take(progress.step, limit, capacity)
            if chunk is None:
                break
            done, metrics = prepared.stepper.run(progress.step, chunk)
            progress.add(metrics, done, count + 1)
            if done < chunk.count:
                break
    return Repetition(trace[: len(progress.trace)], progress.trace, changes)


def _changes(manifest: Mapping[str, Any]) -> list[str]:
    now = surroundings()
    before = {"devices": manifest.get("devices"), "git": manifest.get("git"), **manifest.get("versions", {})}
    after = {"devices": now["devices"], "git": now["git"], **now["versions"]}
    return [f"{name}: was {before.get(name)}, is {after[name]}" for name in after if before.get(name) != after[name]]
