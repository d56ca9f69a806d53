"""Laws of what runs carry along beside the weights: averages of weights, the memory of hooks, the time ledger."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from interrupted_runs import start, states
from scenario_catalogue import ROW, assert_bitwise, log_lines

from scenarios import Stop, events
from scenarios.base import ledger
from scenarios.base.feeding import Fed
from scenarios.base.ledger import ACCOUNTS, Ledger

STEPS, DECAY = 40, 0.9


def average(steps: int) -> np.ndarray:
    """Returns `a <- a + (1 - decay) (w - a)` over the weights after each step, in float64, from the first of them."""
    weights = [states()[step]["memory.w"].astype(np.float64) for step in range(1, steps + 1)]
    found = weights[0]
    for w in weights[1:]:
        found = found + (1 - DECAY) * (w - found)
    return found


@pytest.mark.parametrize("steps_per_call", [1, 7, 50])
def test_the_averages_are_the_recursion_and_the_weights_those_of_a_run_without(steps_per_call: int) -> None:
    result, state = start(steps=STEPS, ema_decay=DECAY, steps_per_call=steps_per_call)
    for name, expected in states()[STEPS].items():
        np.testing.assert_allclose(state[name], expected, rtol=1e-6, atol=1e-6)  # XLA rounds by what it fuses
    np.testing.assert_allclose(result.ema["memory.w"], average(STEPS), rtol=1e-5, atol=1e-6)
    assert start(steps=2)[0].ema is None


def test_every_evaluation_reports_the_weights_and_their_averages(tmp_path: Path) -> None:
    same: dict[str, Any] = {"steps": STEPS, "eval_interval": 10, "steps_per_call": 5}
    result, _ = start(**same, ema_decay=DECAY, save_dir=tmp_path)
    plain, _ = start(**same)
    assert set(result.metrics) == {"loss", "ema_loss"}
    assert result.metrics["loss"] == pytest.approx(plain.metrics["loss"], rel=1e-7)  # XLA rounds by what it fuses
    np.testing.assert_allclose(result.column("eval_loss"), plain.column("eval_loss"), rtol=1e-7)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=[2, 45, 5]).astype(np.float32)[1], rng.normal(size=[2, 45]).astype(np.float32)[1]
    steps, losses = result.column("eval_ema_loss")
    assert steps == [10, 20, 30, 40]
    for step, loss in zip(steps, losses, strict=True):
        np.testing.assert_allclose(loss, np.square(x @ average(step) - y).mean(), rtol=1e-5)
    told = [line["metrics"] for line in log_lines(tmp_path) if line["event"] == "evaluated"]
    assert told[-1] == result.metrics


def stop_at(step: int) -> Any:
    return lambda event: Stop("cut") if isinstance(event, events.Progressed) and event.step >= step else None


class Cut(Exception):
    """What ends a run in the middle."""


def cutting(event: events.Event) -> None:
    if isinstance(event, events.Progressed) and event.step > 13:
        raise Cut


def test_averages_resume_exactly(tmp_path: Path) -> None:
    settings = {"steps": STEPS, "ema_decay": DECAY, "eval_interval": 10}
    with pytest.raises(Cut):
        start([cutting], save_dir=tmp_path, save_interval=13, **settings)
    result, state = start(save_dir=tmp_path, **settings)
    straight, expected = start(**settings)
    assert_bitwise(state, expected)
    assert result.history == straight.history
    assert result.metrics == straight.metrics
    assert result.ema["memory.w"].numpy().tobytes() == straight.ema["memory.w"].numpy().tobytes()


def test_averages_of_a_run_on_layers_resume_exactly(tmp_path: Path) -> None:
    row = ROW["classification_with_dropout"]
    row.start([stop_at(14)], ema_decay=DECAY, save_dir=tmp_path)
    result, state = row.start(ema_decay=DECAY, save_dir=tmp_path, seed=99)
    straight, expected = row.start(ema_decay=DECAY)
    assert_bitwise(state, expected)
    assert result.metrics == straight.metrics


class Tally:
    """A hook that remembers the losses that it heard, each time with another factor."""

    def __init__(self, factor: float) -> None:
        self.factor, self.heard = factor, [0.0]

    def __call__(self, event: events.Event) -> None:
        if isinstance(event, events.Logged):
            self.heard.append(self.heard[-1] + self.factor * event.metrics["loss"])

    def get_state(self) -> list[float]:
        return self.heard

    def set_state(self, state: list[float]) -> None:
        self.heard = state


@pytest.mark.parametrize("cut", [5, 14, 30])
def test_hooks_remember_what_they_heard_before_an_interruption_also_two_of_one_class(cut: int, tmp_path: Path) -> None:
    straight = [Tally(1.0), Tally(2.0)]
    start(straight, steps=STEPS)
    first = [Tally(1.0), Tally(2.0)]
    start([*first, stop_at(cut)], steps=STEPS, save_dir=tmp_path, steps_per_call=1)
    assert len(first[0].heard) == 1 + cut // 7
    second = [Tally(1.0), Tally(2.0)]
    start([second[0], lambda event: None, second[1]], steps=STEPS, save_dir=tmp_path)
    assert [hook.heard for hook in second] == [hook.heard for hook in straight]


# The ledger.


class Clock:
    """A clock that moves when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_accounts_add_up_to_the_time_that_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(ledger, "perf_counter", clock)
    book = Ledger({"data": 5.0, "other": 1.0})
    for index, account in enumerate(["data", "stepping", "data", "saving"], 1):
        with book.charge(account):
            clock.now += index
        clock.now += 0.5
    assert book.seconds() == {"data": 9.0, "stepping": 2.0, "evaluating": 0.0, "saving": 4.0, "other": 3.0}
    assert tuple(book.seconds()) == ACCOUNTS


def test_an_error_is_charged_too(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(ledger, "perf_counter", clock)
    book = Ledger()
    with pytest.raises(KeyError), book.charge("data"):
        clock.now += 2.0
        raise KeyError
    assert book.seconds()["data"] == 2.0


def test_a_run_with_slow_data_says_so_and_its_seconds_are_those_that_passed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    clock, take = Clock(), Fed.take

    def slow_take(self: Fed, step: int, count: int, capacity: int) -> Any:
        clock.now += 3.0
        return take(self, step, count, capacity)

    def hook(event: events.Event) -> None:
        clock.now += 0.25

    monkeypatch.setattr(ledger, "perf_counter", clock)
    monkeypatch.setattr(Fed, "take", slow_take)
    told: list[events.Event] = []
    settings = {"steps": 10, "steps_per_call": 1, "log_interval": 100, "save_dir": tmp_path, "data_on_device": False}
    cut, _ = start([hook, told.append, stop_at(4)], eval_interval=None, **settings)
    passed = clock.now - 100.0
    assert sum(cut.seconds.values()) == pytest.approx(passed - 0.25, rel=0.05)  # less the event that tells them
    assert cut.seconds["data"] == 12.0
    assert told[-1].seconds == cut.seconds
    result, _ = start([hook], eval_interval=None, **settings)
    assert result.seconds["data"] == 30.0  # those of both parts of the run
    assert sum(result.seconds.values()) == pytest.approx(clock.now - 100.0 - 0.5, rel=0.05)
    assert [line["seconds"] for line in log_lines(tmp_path) if line["event"] == "finished"][-1] == result.seconds
