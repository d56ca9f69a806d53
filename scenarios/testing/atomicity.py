"""The law of atomicity: an update happens whole or not at all, whatever ends the run."""

from collections.abc import Callable
from typing import Any, NoReturn

import jax

from scenarios.base.events import Event, Progressed
from scenarios.testing import snapshot
from scenarios.testing.attempt import Attempt
from scenarios.testing.check import Check, Violation, demand
from scenarios.testing.states import difference
from scenarios.testing.subject import Subject


class Injected(Exception):
    """The error that the check raises on purpose."""


def _atomicity(subject: Subject) -> str | None:
    _raise_in_update(subject, _using_raises, "an error inside update")
    _raise_in_update(subject, _ending_raises, "an error at the end of update")
    _raise_in_hook(subject)
    untried = subject.killed.wait()
    if untried is None:
        where = "killed in another process, and resumed here, "
        subject.demand_same_end(subject.killed.directory, where, steps_per_call=7)
    return untried


def _raise_in_update(subject: Subject, around: Callable[..., Any], what: str) -> None:
    case = subject.built()
    before = Attempt(case).state()
    attributes = snapshot.of_parts(case.parts)
    touched: list[bool] = []
    attempt = Attempt(case, around=lambda scenario, update: around(update, touched))
    try:
        attempt.start()
    except Exception:
        after = {path: array for path, array in attempt.state().items() if path in before}
        demand(difference(before, after), f"{what} came out, and ")
        demand(snapshot.change(attributes, snapshot.of_parts(case.parts)), f"{what} came out, and ")
    else:
        if touched:
            raise Violation(f"{what} did not come out of the run")


def _using_raises(update: Callable[..., Any], touched: list[bool]) -> Callable[..., Any]:
    """Returns an update on a batch whose examples raise as soon as they are used."""

    def raising(batch: Any, **parts: Any) -> Any:
        return update(jax.tree.map(lambda leaf: _Untouchable(touched), batch), **parts)

    return raising


def _ending_raises(update: Callable[..., Any], touched: list[bool]) -> Callable[..., Any]:
    """Returns an update that does everything, and raises then."""

    def raising(batch: Any, **parts: Any) -> Any:
        update(batch, **parts)
        touched.append(True)
        raise Injected("raised by check_scenario")

    return raising


class _Untouchable:
    """Stands for an array, and raises when it is used."""

    def __init__(self, touched: list[bool]) -> None:
        self._touched = touched

    def __getattr__(self, name: str) -> NoReturn:
        _refuse(self)


def _refuse(self: _Untouchable, *args: Any) -> NoReturn:
    self._touched.append(True)
    raise Injected("raised by check_scenario")


_OPERATORS = (
    "add sub mul truediv floordiv mod pow matmul radd rsub rmul rtruediv rfloordiv rmod rpow rmatmul neg pos abs invert and "
    "or xor rand ror rxor lt le gt ge eq ne getitem len iter bool float int index call contains"
)  # Python looks these up on the class

for _name in _OPERATORS.split():
    setattr(_Untouchable, f"__{_name}__", _refuse)


def _raise_in_hook(subject: Subject) -> None:
    raised: list[int] = []

    def hook(event: Event) -> None:
        if isinstance(event, Progressed) and event.step >= subject.steps // 2 and not raised:
            raised.append(event.step)
            raise Injected("raised by check_scenario")

    attempt = subject.attempt([hook], steps_per_call=7)
    try:
        attempt.start()
    except Injected:
        subject.demand_state(raised[0], attempt.state(), "an error of a hook came out, and ")
    else:
        raise Violation("an error of a hook did not come out of the run")


ATOMICITY = Check(
    "atomicity",
    "An error in an update or a hook comes out and leaves all variables as after the last finished update, and a killed "
    "process leaves a state from which the run goes on.",
    "Catch no exception that is not your own, change nothing but variables in update, and change them by assignments.",
    _atomicity,
)
