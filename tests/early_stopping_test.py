"""Laws of early stopping: what counts as better, when it stops, and that a resume changes nothing."""

import json
import math
import warnings
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scenario_catalogue import ROW

import scenarios
from scenarios import Stop, events
from scenarios.hooks import EarlyStopping

VALUES = st.one_of(st.floats(-10, 10, width=32), st.sampled_from([math.nan, math.inf, -math.inf]))


def answers(hook: EarlyStopping, values: list[float], first: int = 0) -> list[Any]:
    return [hook(events.Evaluated(10 * (first + i + 1), {"loss": v})) for i, v in enumerate(values)]


def started(hook: EarlyStopping, step: int = 0) -> Any:
    return hook(events.Started("Supervised", step, 1000))


def stops_at(values: list[float], patience: int, mode: str, min_delta: float) -> int | None:
    """Returns the index of the evaluation that ends the run, by the definition."""
    sign = 1 if mode == "min" else -1
    best, waited = math.inf, 0
    for index, value in enumerate(values):
        is_better = math.isfinite(value) and (best == math.inf or sign * value < best - min_delta)
        best, waited = (sign * value, 0) if is_better else (best, waited + 1)
        if waited == patience:
            return index
    return None


@given(
    st.lists(VALUES, min_size=1, max_size=30),
    st.integers(1, 4),
    st.sampled_from(["min", "max"]),
    st.sampled_from([0.0, 0.5, 3.0]),
    st.integers(0, 30),
)
@settings(max_examples=200, deadline=None)
def test_it_stops_where_its_definition_says_and_a_resume_changes_nothing(
    values: list[float], patience: int, mode: str, min_delta: float, cut: int
) -> None:
    make = lambda: EarlyStopping("loss", patience, mode, min_delta)  # noqa: E731
    whole = make()
    assert started(whole) is None
    heard = answers(whole, values)
    expected = stops_at(values, patience, mode, min_delta)
    first = next((i for i, answer in enumerate(heard) if answer is not None), None)
    assert first == expected

    cut = min(cut, len(values))
    before, after = make(), make()
    started(before)
    head = answers(before, values[:cut])
    after.set_state(json.loads(json.dumps(before.get_state(), allow_nan=False)))
    assert started(after, 10 * cut) == (head[-1] if head else None)
    assert head + answers(after, values[cut:], cut) == heard
    assert after.get_state() == whole.get_state()


def test_the_reason_says_what_was_best_and_when() -> None:
    hook = EarlyStopping("accuracy", patience=2, mode="max")
    started(hook)
    said = [hook(events.Evaluated(s, {"accuracy": a})) for s, a in ((10, 0.5), (20, 0.75), (30, 0.75), (40, math.nan))]
    assert said == [None, None, None, Stop("no better accuracy than 0.75 (step 20) in 2 evaluations")]
    never = EarlyStopping(patience=2)
    started(never)
    assert answers(never, [math.nan, math.inf])[-1] == Stop("no finite loss in 2 evaluations")


def test_a_stopped_run_stays_stopped_unless_it_has_more_patience() -> None:
    hook = EarlyStopping(patience=2)
    started(hook)
    stop = answers(hook, [1.0, 2.0, 3.0])[-1]
    again, patient = EarlyStopping(patience=2), EarlyStopping(patience=3)
    for other in (again, patient):
        other.set_state(hook.get_state())
    assert started(again, 30) == stop
    assert started(patient, 30) is None
    assert answers(patient, [4.0], first=3)[-1] is not None


def test_an_evaluation_that_is_told_again_counts_once_and_another_run_begins_anew() -> None:
    hook = EarlyStopping(patience=2)
    started(hook)
    for _ in range(3):
        assert answers(hook, [1.0, 2.0])[-1] is None
    assert answers(hook, [3.0], first=2)[-1] is not None
    assert started(hook) is None
    assert hook.get_state() == EarlyStopping().get_state()


def test_a_run_ends_after_the_evaluation_that_was_one_too_many() -> None:
    row = ROW["regression"]
    full = row.start(eval_interval=5)[0]
    losses = [entry["eval_loss"] for entry in full.history if "eval_loss" in entry]
    index = stops_at(losses, 1, "min", 0.3)
    assert index is not None
    result, state = row.start([EarlyStopping(patience=1, min_delta=0.3)], eval_interval=5)
    assert result.step == 5 * (index + 1)
    assert result.reason.startswith("no better loss than ")
    assert state.keys() == row.start(steps=result.step)[1].keys()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"patience": 0}, "^patience=0: expected an integer of at least 1, a number of evaluations$"),
        ({"patience": 2.5}, r"^patience=2\.5: expected an integer"),
        ({"mode": "lower"}, "^mode='lower': expected 'min', where less is better, or 'max'$"),
        ({"min_delta": -1.0}, r"^min_delta=-1\.0: expected a number of at least 0$"),
        ({"min_delta": math.nan}, "^min_delta=nan: expected a number"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        EarlyStopping(**arguments)


def test_a_metric_that_is_not_there_is_refused_with_those_that_are() -> None:
    hook = EarlyStopping("lss")
    started(hook)
    with pytest.raises(
        ValueError, match=r"metric='lss'\): evaluations have no such metric; there are: loss, ema_loss$"
    ):
        hook(events.Evaluated(10, {"loss": 1.0, "ema_loss": 2.0}))
    with pytest.raises(ValueError, match="there are: loss"):
        ROW["regression"].start([EarlyStopping("error")], steps=5)


def test_a_run_without_evaluations_is_told_so() -> None:
    case = ROW["regression"].fresh().replace(eval_data=None)
    with pytest.warns(UserWarning, match=r"^EarlyStopping heard no evaluation in this run: give it eval_data, and an "):
        case.run([EarlyStopping()], steps=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ROW["regression"].start([EarlyStopping()], steps=3)
    assert "EarlyStopping" in scenarios.hooks.__all__
