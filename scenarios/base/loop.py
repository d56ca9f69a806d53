"""The loop of a run: update, log, evaluate, save, until the last step."""

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from modulekit.core.processes import is_first
from scenarios.base import events
from scenarios.base.evaluating import Evaluator
from scenarios.base.feeding import Chunk, Feed
from scenarios.base.hooks import Hook, told
from scenarios.base.ledger import Ledger
from scenarios.base.nonfinite import NonFiniteError
from scenarios.base.pictures import write_pictures
from scenarios.base.saving import Progress, Row, Saver
from scenarios.base.settings import Settings
from scenarios.base.stepping import Metrics, Stepper
from scenarios.base.stopping import LeftAtOnce, Stopping

_MOST_SKIPPED = 10  # updates one after the other; more of them mean that the weights are lost


@dataclass
class Loop:
    """Everything that one run needs.

    Args:
      name: the scenario's name.
      settings: the scenario's settings.
      feed: brings the training examples.
      stepper: runs updates.
      evaluator: evaluates, if there is evaluation data.
      saver: saves, if there is a directory.
      hooks: hear every event.
      explain: returns the error for a non-finite update, from its step, metrics, chunk and place in the chunk.
      alarms: returns what is wrong, from the metrics of an evaluation.
    """

    name: str
    settings: Settings
    feed: Feed
    stepper: Stepper
    evaluator: Evaluator | None
    saver: Saver | None
    hooks: Sequence[Hook]
    explain: Callable[..., NonFiniteError]
    alarms: Callable[[Mapping[str, float]], Sequence[str]]
    _means: Mapping[str, float] | None = None  # of the evaluation after the current step
    _reason: str | None = None  # of the first hook that asked to stop

    def run(self, progress: Progress) -> tuple[Mapping[str, float], str]:
        """Runs from where `progress` stands to the last step.

        Returns:
          `(metrics, reason)`: the last evaluation, or the last row of the history; and why the run ended.
        """
        self._ledger = Ledger(progress.seconds)
        metrics: Mapping[str, float] = {}
        try:
            self._tell(events.Started(self.name, progress.step, self.settings.steps, self.settings.directory))
            with Stopping(self.settings.time_limit, self.settings.directory) as stopping:
                self._attend(progress, stopping)  # to what was due when the run was interrupted
                while progress.step < self.settings.steps and self._stop_reason(stopping) is None:
                    self._advance(progress)
                    self._attend(progress, stopping)
                if self._stop_reason(stopping) is None or self._reason is not None:
                    metrics = self._evaluate(progress, stopping) or {}
                metrics = metrics or _last_row(progress)
                self._save(progress)
                self._wait_for_saves()
                reason = self._stop_reason(stopping) or "done"
                stopping.obey(self._farewell(progress.step))
        except BaseException as error:
            if not isinstance(error, LeftAtOnce):
                with contextlib.suppress(Exception):
                    self._wait_for_saves()
            with contextlib.suppress(Exception):
                self._tell_end(events.Finished(progress.step, f"ended by {type(error).__name__}", self._seconds()))
            raise
        progress.seconds = self._seconds()
        self._tell_end(events.Finished(progress.step, reason, progress.seconds))
        return metrics, reason

    def _stop_reason(self, stopping: Stopping) -> str | None:
        return self._reason or stopping.reason()

    def _advance(self, progress: Progress) -> None:
        """Runs one program."""
        settings = self.settings
        count, capacity = self.stepper.pacing.advise(settings.next_stop(progress.step) - progress.step)
        try:
            with self._ledger.charge("data"):
                chunk = self.feed.take(progress.step, count, capacity)
        except Exception:  # the data's; what has been trained is not lost by it
            self._save(progress)
            raise
        if chunk is None:
            self._reason = self._reason or "the data is exhausted"
            return
        with self._ledger.charge("stepping"):
            done, metrics = self.stepper.run(progress.step, chunk, self.feed.prepare)
        progress.in_loop = self.stepper.pacing.decided
        self._tell_rows(progress.add(metrics, done, settings.log_interval))
        progress.position = chunk.position_after(done)
        if done < chunk.count:
            self._meet(progress, chunk, done, _at(metrics, done))
        else:
            self._tell(events.Progressed(progress.step, _at(metrics, done - 1)))
        self._tell_saved()

    def _tell_rows(self, rows: Iterable[Row]) -> None:
        for step, row in rows:
            self._tell(events.Logged(step, row))

    def _meet(self, progress: Progress, chunk: Chunk, index: int, metrics: Mapping[str, float]) -> None:
        """Does what the settings say when an update was not applied since something in it was not finite."""
        error = self.explain(progress, chunk, index, metrics)
        if self.settings.non_finite == "stop" or progress.skipped_last >= _MOST_SKIPPED:
            self.feed.return_from(chunk, index)
            self._save(progress)
            raise error
        weights = progress.step
        if self.settings.non_finite == "rollback" and self.saver is not None:
            weights = self.saver.roll_back(progress.step)
        self.feed.return_from(chunk, index + 1)
        progress.position = chunk.position_after(index + 1)
        self._tell_rows(progress.skip(self.settings.log_interval))
        self._tell(events.Skipped(progress.step, weights, str(error)))

    def _attend(self, progress: Progress, stopping: Stopping) -> None:
        """Does what is due after the current step: evaluates, saves; a run that is to end leaves the first for later."""
        if self._is_due(progress.step, self.settings.eval_interval):
            self._evaluate(progress, stopping)
        anchors = self.settings.non_finite == "rollback" and progress.step == 0
        if anchors or self._is_due(progress.step, self.settings.save_interval):
            self._save(progress)

    def _evaluate(self, progress: Progress, stopping: Stopping) -> Mapping[str, float] | None:
        """Evaluates, if this has not been done after the current step and the run is not to end."""
        if self.evaluator is None or (progress.evaluated == progress.step and self._means is not None):
            return self._means
        with self._ledger.charge("evaluating"):
            means = self.evaluator.means(progress.step, lambda: stopping.reason() is not None)
        if means is None:
            return None
        self._check_best(means)
        self._means = means
        if progress.evaluated != progress.step:
            progress.evaluated = progress.step
            progress.record({f"eval_{name}": value for name, value in means.items()})
            self._tell(events.Evaluated(progress.step, means))
            for message in self.alarms(means):
                progress.alarms.append((progress.step, message))
                self._tell(events.Alarm(progress.step, message))
            if self.settings.directory is not None:
                pictures = self.evaluator.pictures(progress.step)
                if is_first():
                    write_pictures(self.settings.directory, progress.step, pictures)
        return means

    def _check_best(self, means: Mapping[str, float]) -> None:
        """Raises `ValueError` where states are to be kept by a metric that was named, and that is not there."""
        wanted = self.settings.best_metric
        if wanted not in means and wanted != type(self.settings).best_metric:
            raise ValueError(f"best_metric={wanted!r} is no metric of the evaluation, which has {', '.join(means)}")

    def _save(self, progress: Progress) -> None:
        if self.saver is None:
            return
        progress.seconds = self._seconds()
        score = (self._means or {}).get(self.settings.best_metric) if progress.evaluated == progress.step else None
        with self._ledger.charge("saving"):
            self.saver.save(progress, score)
        self._tell_saved()

    def _wait_for_saves(self) -> None:
        if self.saver is not None:
            with self._ledger.charge("saving"):
                self.saver.wait()
            self._tell_saved()

    def _tell_saved(self) -> None:
        if self.saver is not None and self.settings.directory is not None:
            for step in self.saver.written():
                self._tell(events.Saved(step, self.settings.directory))

    def _tell(self, event: events.Event) -> None:
        for hook in self.hooks:
            answer = told(hook, event)
            if answer is not None and self._reason is None:
                self._reason = answer.reason

    def _tell_end(self, event: events.Finished) -> None:
        """Tells all hooks, whatever any of them raises: files and displays must be closed."""
        with contextlib.ExitStack() as stack:
            for hook in reversed(self.hooks):
                stack.callback(hook, event)

    def _seconds(self) -> dict[str, float]:
        return {account: round(seconds, 3) for account, seconds in self._ledger.seconds().items()}

    def _farewell(self, step: int) -> str:
        if self.saver is None:
            return f"stopped after step {step}; nothing was saved, since no save_dir was given"
        return f"stopped after step {step} and saved; make the same call again to go on from there"

    def _is_due(self, step: int, interval: int | None) -> bool:
        return interval is not None and step > 0 and step % interval == 0


def _at(metrics: Metrics, index: int) -> dict[str, float]:
    return {name: float(column[index]) for name, column in metrics.items()}


def _last_row(progress: Progress) -> dict[str, float]:
    if not progress.history:
        return {name: total / progress.summed for name, total in progress.sums.items()}
    return {name: value for name, value in progress.history[-1].items() if name != "step"}
