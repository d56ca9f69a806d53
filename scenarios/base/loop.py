"""The loop of a run: update, log, evaluate, save, until the last step."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from modulekit.data import Arrays, batch_indices
from scenarios.base import events
from scenarios.base.evaluating import Evaluator
from scenarios.base.hooks import Hook
from scenarios.base.saving import Progress, Saver
from scenarios.base.settings import Settings
from scenarios.base.signals import Interruption
from scenarios.base.stepping import Metrics, Stepper


@dataclass
class Loop:
    """Everything that one run needs.

    Args:
      name: the scenario's name.
      settings: the scenario's settings.
      data: the training examples.
      stepper: runs updates.
      evaluator: evaluates, if there is evaluation data.
      saver: saves, if there is a directory.
      hooks: hear every event.
      explain: returns the error for a non-finite update, from its number, metrics and indices.
    """

    name: str
    settings: Settings
    data: Arrays
    stepper: Stepper
    evaluator: Evaluator | None
    saver: Saver | None
    hooks: Sequence[Hook]
    explain: Callable[..., Exception]
    _evaluated: tuple[int, dict[str, float]] | None = None
    _reason: str | None = None  # of the first hook that asked to stop

    def run(self, progress: Progress) -> tuple[Mapping[str, float], str]:
        """Runs from where `progress` stands to the last step.

        Returns:
          `(metrics, reason)`: the last evaluation, or the last row of the history; and why the run ended.
        """
        metrics: Mapping[str, float] = {}
        try:
            self._tell(events.Started(self.name, progress.step, self.settings.steps))
            with Interruption() as interruption:
                while progress.step < self.settings.steps and self._reason is None and interruption.received is None:
                    self._advance(progress)
                    if self._is_due(progress.step, self.settings.eval_interval):
                        self._evaluate(progress)
                    if self._is_due(progress.step, self.settings.save_interval):
                        self._save(progress)
                if interruption.received is None:
                    metrics = self._evaluate(progress) or _last_row(progress)
                self._save(progress)
                interruption.obey(self._farewell(progress.step))
        except BaseException as error:
            with contextlib.suppress(Exception):
                self._tell_end(events.Finished(progress.step, f"ended by {type(error).__name__}"))
            raise
        reason = self._reason or "done"
        self._tell_end(events.Finished(progress.step, reason))
        return metrics, reason

    def _advance(self, progress: Progress) -> None:
        """Runs one program."""
        settings = self.settings
        count = self.stepper.advise(settings.next_stop(progress.step) - progress.step)
        indices = batch_indices(self.data.size, settings.batch_size, settings.seed, progress.step, count)
        done, metrics = self.stepper.run(progress.step, indices)
        progress.in_loop = self.stepper.decided
        for index in range(done):
            row = progress.add(_at(metrics, index), settings.log_interval)
            if row is not None:
                self._tell(events.Logged(progress.step, row))
        if done < count:
            self._save(progress)
            raise self.explain(progress.step + 1, _at(metrics, done), indices[done])
        self._tell(events.Progressed(progress.step, _at(metrics, done - 1)))

    def _evaluate(self, progress: Progress) -> dict[str, float]:
        if self.evaluator is None:
            return {}
        if self._evaluated is not None and self._evaluated[0] == progress.step:
            return self._evaluated[1]
        means = self.evaluator.means()
        self._evaluated = (progress.step, means)
        progress.record({f"eval_{name}": value for name, value in means.items()})
        self._tell(events.Evaluated(progress.step, means))
        return means

    def _save(self, progress: Progress) -> None:
        if self.saver is not None and self.saver.save(progress) and self.settings.directory:
            self._tell(events.Saved(progress.step, self.settings.directory))

    def _tell(self, event: events.Event) -> None:
        for hook in self.hooks:
            answer = hook(event)
            if answer is not None and self._reason is None:
                self._reason = answer.reason

    def _tell_end(self, event: events.Finished) -> None:
        """Tells all hooks, whatever any of them raises: files and displays must be closed."""
        with contextlib.ExitStack() as stack:
            for hook in reversed(self.hooks):
                stack.callback(hook, event)

    def _farewell(self, step: int) -> str:
        if self.saver is None:
            return f"stopped after step {step}; nothing was saved, since no save_dir was given"
        return f"stopped after step {step} and saved; make the same call again to go on from there"

    def _is_due(self, step: int, interval: int | None) -> bool:
        return interval is not None and step % interval == 0


def _at(metrics: Metrics, index: int) -> dict[str, float]:
    return {name: float(column[index]) for name, column in metrics.items()}


def _last_row(progress: Progress) -> dict[str, float]:
    if not progress.history:
        return {name: total / progress.summed for name, total in progress.sums.items()}
    return {name: value for name, value in progress.history[-1].items() if name != "step"}
