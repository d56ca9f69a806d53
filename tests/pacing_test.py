"""How many steps a program runs: chosen by measuring, and robust against one lucky or unlucky call."""

import pytest

from scenarios.base.pacing import Pacing


def run(pacing: Pacing, looped: float, alone: float, calls: int = 40, entry: float = 0.0, fed: int = 10**6) -> None:
    """Makes calls that take so many seconds a step, and `entry` seconds each; at most `fed` steps are there to run."""
    for _ in range(calls):
        count, capacity = pacing.advise(10**6)
        count, in_loop = min(count, fed), capacity > 1
        pacing.learn(in_loop, count, entry + count * (looped if in_loop else alone))


@pytest.mark.parametrize(("looped", "alone", "expected"), [(5e-3, 5e-3, True), (0.5, 0.05, False), (1e-4, 1e-5, True)])
def test_the_loop_is_left_only_where_it_is_clearly_the_slower_form(looped: float, alone: float, expected: bool) -> None:
    pacing = Pacing(None, None)
    run(pacing, looped, alone)
    assert pacing.decided is expected
    assert pacing.in_loop is expected


def test_the_cost_of_a_call_with_little_data_is_not_taken_for_that_of_the_loop() -> None:
    pacing = Pacing(None, None)
    run(pacing, looped=4e-3, alone=8e-3, entry=8e-3, calls=3, fed=1)  # the data has just begun to come
    run(pacing, looped=4e-3, alone=8e-3, entry=8e-3, fed=13)
    assert pacing.decided is True


def test_one_lucky_step_does_not_decide() -> None:
    pacing = Pacing(None, None)
    run(pacing, looped=5e-3, alone=5e-3, calls=3)
    assert not pacing.in_loop
    for seconds in (1.0, 1e-6, *([6e-3] * 7)):  # the first one compiles
        pacing.learn(False, 1, seconds)
    assert pacing.decided is True


def test_calls_become_as_long_as_progress_allows() -> None:
    pacing = Pacing(None, None)
    run(pacing, looped=1e-3, alone=1e-3)
    count, capacity = pacing.advise(10**6)
    assert 100 <= count <= capacity == 500
    assert pacing.advise(7) == (7, capacity)


@pytest.mark.parametrize("steps_per_call", [1, 7, 50])
def test_a_number_that_was_asked_for_is_kept(steps_per_call: int) -> None:
    pacing = Pacing(steps_per_call, None)
    run(pacing, looped=0.5, alone=1e-4)
    assert pacing.advise(10**6) == (steps_per_call, steps_per_call)
    assert pacing.decided is None


def test_what_an_earlier_part_of_the_run_found_is_not_measured_again() -> None:
    pacing = Pacing(None, False)
    run(pacing, looped=1e-9, alone=1.0)
    assert pacing.decided is False
    assert pacing.advise(100) == (1, 1)
