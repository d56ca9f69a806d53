"""Laws of interruption: a run that was stopped anywhere goes on, with fresh parts, as if it had not been."""

import os
import signal
from pathlib import Path

from scenarios.base.events import Event, Progressed
from scenarios.base.hooks import Hook, Stop
from scenarios.base.stopping import Stopping
from scenarios.testing.check import Check, Violation
from scenarios.testing.subject import Subject

_HOWS = {signal.SIGTERM: (SystemExit, 128 + signal.SIGTERM), signal.SIGINT: (KeyboardInterrupt, None)}


def _resume(subject: Subject) -> str | None:
    directory, before = subject.directory(), 0
    for step, count in ((1, 1), (subject.steps // 2 + 1, 50), (subject.steps - 2, 7)):
        cut = subject.attempt([_cut_at(step)], save_dir=directory, save_interval=step, steps_per_call=count)
        cut.start()
        subject.demand_states(cut, _resumed_at(before))
        before = cut.last
    subject.demand_same_end(directory, _resumed_at(before), steps_per_call=1)
    return None


def _resumed_at(step: int) -> str:
    return f"stopped after update {step} and resumed, " if step else "with a state to be saved, "


def _cut_at(step: int) -> Hook:
    return lambda event: Stop("cut") if isinstance(event, Progressed) and event.step >= step else None


def _signals(subject: Subject) -> str | None:
    directory = subject.directory()
    for part, number in enumerate((signal.SIGTERM, signal.SIGINT), 1):
        step = _interrupted(subject, number, part * subject.steps // 3, directory)
    subject.demand_same_end(
        directory, f"ended by signals, the last after update {step}, and resumed, ", steps_per_call=7
    )
    return None


def _interrupted(subject: Subject, number: signal.Signals, at: int, directory: Path) -> int:
    """Runs up to a signal after a step; returns the step after which the run ended."""
    sending = _Sending(number, at)
    attempt = subject.attempt([sending], save_dir=directory, steps_per_call=7)
    kind, status = _HOWS[number]
    try:
        attempt.start()
    except kind as error:
        if getattr(error, "code", None) != status:
            raise Violation(f"{number.name} ended the run with {error!r}, and not with exit status {status}") from error
    else:
        sent = "never came" if sending.sent is None else f"came after update {sending.sent}"
        raise Violation(f"{number.name} {sent}, and the run did not end by it")
    step, state = subject.newest(directory, attempt.scenario.settings)
    if step != attempt.last:
        raise Violation(f"{number.name} ended the run after update {attempt.last}, and the state after {step} is saved")
    subject.demand_state(step, state, f"saved on {number.name}, ")
    return step


class _Sending:
    """Sends its own process a signal, once, and only where the run would hear it."""

    def __init__(self, number: signal.Signals, step: int) -> None:
        self._number, self._step = number, step
        self.sent: int | None = None

    def __call__(self, event: Event) -> None:
        if self.sent is None and isinstance(event, Progressed) and event.step >= self._step:
            handler = signal.getsignal(self._number)
            if not isinstance(getattr(handler, "__self__", None), Stopping):
                raise Violation(f"during the run, {self._number.name} is heard by {handler!r}, and not by the run")
            self.sent = event.step
            os.kill(os.getpid(), self._number)


RESUME = Check(
    "resume",
    "A run that was stopped after any step goes on with fresh parts to the same end, bit by bit.",
    "Keep whatever an update needs from earlier updates in variables of the parts, or of modules that state() returns: "
    "nothing else is saved.",
    _resume,
)
SIGNALS = Check(
    "signals",
    "SIGTERM and Ctrl-C end a run after a finished step, with a saved state from which it goes on.",
    "Leave signal handlers alone, and let KeyboardInterrupt and SystemExit pass.",
    _signals,
)
