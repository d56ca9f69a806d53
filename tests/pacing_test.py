"""How many steps a program runs: chosen by measuring, and robust against one lucky or unlucky call."""

import itertools
from collections.abc import Callable, Iterable

import pytest

from scenarios.base import pacing as module
from scenarios.base.pacing import Pacing

Form = Callable[[int], None]


class Machine:
    """A clock, and forms whose calls take the times that are given, over and over."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.steps: list[tuple[str, int]] = []
        monkeypatch.setattr(module, "perf_counter", lambda: self.now)

    def form(self, name: str, per_step: Iterable[float], entry: float = 0.0) -> Form:
        """Returns a form that takes `entry` seconds a call and those of each step; its first call compiles."""
        times = itertools.chain([3.0], itertools.cycle(per_step))

        def run(count: int) -> None:
            self.steps.append((name, count))
            self.now += entry + count * next(times)

        return run

    def count(self, name: str) -> int:
        """Returns how many steps a form has run."""
        return sum(count for form, count in self.steps if form == name)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """The only clock that `pacing` knows."""
    return Machine(monkeypatch)


@pytest.mark.parametrize(
    ("looped", "alone", "expected"),
    [(5e-3, 5e-3, True), (5e-3, 4e-3, True), (0.5, 0.05, False), (5.0, 1.0, False), (4e-3, 9e-3, True)],
)
def test_the_loop_is_left_only_where_it_is_clearly_the_slower_form(
    machine: Machine, looped: float, alone: float, expected: bool
) -> None:
    pacing = Pacing(None, None)
    assert pacing.decided is None
    pacing.choose(machine.form("loop", [looped]), machine.form("alone", [alone]))
    assert pacing.decided is expected
    assert pacing.in_loop is expected


def test_a_fast_loop_is_taken_without_a_look_at_the_other_form(machine: Machine) -> None:
    pacing = Pacing(None, None)
    pacing.choose(machine.form("loop", [1e-4]), machine.form("alone", [1e-5]))
    assert pacing.decided is True
    assert machine.count("alone") == 0


def test_the_cost_of_a_call_is_not_taken_for_that_of_the_loop(machine: Machine) -> None:
    pacing = Pacing(None, None)
    pacing.choose(machine.form("loop", [4e-3], entry=8e-3), machine.form("alone", [5e-3]))
    assert pacing.decided is True


def test_one_unlucky_call_of_the_loop_does_not_decide(machine: Machine) -> None:
    pacing = Pacing(None, None)
    pacing.choose(machine.form("loop", [5e-3, 9e-2, 5e-3]), machine.form("alone", [5e-3]))
    assert pacing.decided is True


@pytest.mark.parametrize("is_faster_there", [False, True])
def test_processes_go_by_the_clock_of_the_first_one(
    is_faster_there: bool, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = iter([0.3, 3.0] if is_faster_there else [3.0, 0.3])
    monkeypatch.setattr(module, "agreed", lambda seconds: next(told))
    pacing = Pacing(None, None)
    pacing.choose(machine.form("loop", [0.1]), machine.form("alone", [0.1]))
    assert pacing.in_loop is is_faster_there


@pytest.mark.parametrize("seconds", [5e-3, 0.1, 20.0])
def test_the_trial_is_short(machine: Machine, seconds: float) -> None:
    Pacing(None, None).choose(machine.form("loop", [seconds]), machine.form("alone", [seconds]))
    assert len(machine.steps) <= 11
    assert machine.count("loop") + machine.count("alone") <= (5 if seconds > 1 else 60)


def test_calls_become_as_long_as_progress_allows() -> None:
    pacing = Pacing(None, True)
    for _ in range(5):
        count, capacity = pacing.advise(10**6)
        pacing.learn(count, count * 1e-3)
    assert 100 <= count <= capacity == 500
    assert pacing.advise(7) == (7, capacity)


@pytest.mark.parametrize("steps_per_call", [1, 7, 50])
def test_a_number_that_was_asked_for_is_kept_and_runs_in_the_loop(steps_per_call: int) -> None:
    pacing = Pacing(steps_per_call, None)
    for _ in range(5):
        assert pacing.advise(10**6) == (steps_per_call, steps_per_call)
        pacing.learn(steps_per_call, 0.5)
    assert pacing.in_loop is True
    assert pacing.decided is None


def test_what_an_earlier_part_of_the_run_found_is_not_measured_again() -> None:
    pacing = Pacing(None, False)
    pacing.learn(1, 1.0)
    assert pacing.decided is False
    assert pacing.advise(100) == (1, 1)
