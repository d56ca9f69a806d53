"""Laws of events and hooks: what is told, in which order, and what a hook can do."""

import dataclasses
import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from scenario_catalogue import ROW, STEPS, assert_bitwise, log_lines, uninterrupted

import scenarios
from modulekit.checkpoints import CheckpointStore
from scenarios import Stop, events
from scenarios.base.progress import ProgressBar, ProgressLines, progress_hook, text_of

ROW_OF_ALL = ROW["regression"]


def told(**settings: Any) -> list[events.Event]:
    heard: list[events.Event] = []
    ROW_OF_ALL.start([heard.append], **settings)
    return heard


def test_events_come_in_order(tmp_path: Path) -> None:
    heard = told(steps=20, steps_per_call=7, log_interval=7, eval_interval=10, save_interval=10, save_dir=tmp_path)
    places = [(type(event).__name__, event.step) for event in heard]
    saved = [place for place in places if place[0] == "Saved"]
    assert saved == [("Saved", 10), ("Saved", 20)]  # written while the run goes on, and told when complete
    assert all(places.index(place) > places.index(("Progressed", place[1])) for place in saved)
    assert [place for place in places if place[0] != "Saved"] == [
        ("Started", 0),
        ("Logged", 7),
        ("Progressed", 7),
        ("Progressed", 10),
        ("Evaluated", 10),
        ("Logged", 14),
        ("Progressed", 17),
        ("Progressed", 20),
        ("Evaluated", 20),
        ("Finished", 20),
    ]


def test_events_say_what_the_result_says(tmp_path: Path) -> None:
    heard: list[events.Event] = []
    result, _ = ROW_OF_ALL.start([heard.append], save_dir=tmp_path, eval_interval=30)
    rows: dict[int, dict[str, float]] = {}
    for event in heard:
        if isinstance(event, events.Logged):
            rows.setdefault(event.step, {}).update(event.metrics)
        if isinstance(event, events.Evaluated):
            rows.setdefault(event.step, {}).update({f"eval_{name}": value for name, value in event.metrics.items()})
    assert [{"step": step, **row} for step, row in rows.items()] == result.history
    assert heard[0] == events.Started("Supervised", 0, STEPS, tmp_path)
    assert heard[-1] == events.Finished(STEPS, "done")
    assert heard[-2] == events.Saved(STEPS, tmp_path)


def test_the_log_file_holds_all_events_but_the_progress(tmp_path: Path) -> None:
    heard = [event for event in told(save_dir=tmp_path, save_interval=30) if not isinstance(event, events.Progressed)]
    expected = [
        {"event": type(event).__name__.lower(), **dataclasses.asdict(event), **_directory(event)} for event in heard
    ]
    lines = log_lines(tmp_path)
    assert [{key: value for key, value in line.items() if key != "time"} for line in lines] == expected
    assert [line["time"] for line in lines] == sorted(line["time"] for line in lines)


def _directory(event: events.Event) -> dict[str, str]:
    return {"directory": str(event.directory)} if isinstance(event, events.Started | events.Saved) else {}


def stopping(kind: type[events.Event], step: int, reason: str = "enough") -> Any:
    """Returns a hook that asks to stop at the first event of a kind from a step on."""

    def hook(event: events.Event) -> Stop | None:
        return Stop(reason) if isinstance(event, kind) and event.step >= step else None

    return hook


@pytest.mark.parametrize(
    ("kind", "step", "end"),
    [
        (events.Started, 0, 0),
        (events.Logged, 14, 15),
        (events.Progressed, 13, 15),
        (events.Evaluated, 20, 20),
    ],
)
def test_a_hook_that_asks_to_stop_ends_the_run_after_the_program(
    kind: type[events.Event], step: int, end: int, tmp_path: Path
) -> None:
    heard: list[events.Event] = []
    options = {"steps_per_call": 5, "eval_interval": 20, "save_interval": 30}
    result, state = ROW_OF_ALL.start([stopping(kind, step), heard.append], save_dir=tmp_path, **options)
    assert (result.step, result.reason) == (end, "enough")
    assert heard[-1] == events.Finished(end, "enough")
    store = CheckpointStore(tmp_path / "states")
    assert store.latest() == end
    assert_bitwise(store.restore(end)[0], state)
    store.close()
    expected, expected_state = ROW_OF_ALL.start(steps=end)
    assert_bitwise(state, expected_state)
    assert result.metrics == expected.metrics
    _, final = ROW_OF_ALL.start(save_dir=tmp_path)
    assert_bitwise(final, uninterrupted(ROW_OF_ALL)[1])


def test_the_first_reason_counts() -> None:
    hooks = [stopping(events.Logged, 14, "logged"), stopping(events.Progressed, 14, "progressed")]
    assert ROW_OF_ALL.start(hooks)[0].reason == "logged"


def test_a_request_to_stop_at_the_end_changes_nothing_but_the_reason() -> None:
    result, state = ROW_OF_ALL.start([stopping(events.Evaluated, STEPS)])
    assert result == dataclasses.replace(uninterrupted(ROW_OF_ALL)[0], reason="enough")
    assert_bitwise(state, uninterrupted(ROW_OF_ALL)[1])


class Broken(Exception):
    """What a broken hook raises."""


@pytest.mark.parametrize("kind", [events.Started, events.Progressed, events.Logged, events.Evaluated, events.Saved])
def test_a_hook_that_raises_ends_the_run_and_the_others_hear_the_end(kind: type[events.Event], tmp_path: Path) -> None:
    before: list[events.Event] = []
    after: list[events.Event] = []

    def broken(event: events.Event) -> None:
        if isinstance(event, kind | events.Finished):
            raise Broken(type(event).__name__)

    with pytest.raises(Broken, match=f"^{kind.__name__}$"):
        ROW_OF_ALL.start([before.append, broken, after.append], save_dir=tmp_path, eval_interval=10, save_interval=10)
    assert before[-1] == after[-1]
    assert isinstance(before[-1], events.Finished)
    assert before[-1].reason == "ended by Broken"
    assert [event for event in before if isinstance(event, kind)]
    _, state = ROW_OF_ALL.start(save_dir=tmp_path)
    assert_bitwise(state, uninterrupted(ROW_OF_ALL)[1])


def test_a_hook_that_raises_at_the_end_is_heard_after_all_others_were_told() -> None:
    after: list[events.Event] = []

    def broken(event: events.Event) -> None:
        if isinstance(event, events.Finished):
            raise Broken

    with pytest.raises(Broken):
        ROW_OF_ALL.start([broken, after.append])
    assert after[-1] == events.Finished(STEPS, "done")


def test_an_update_that_fails_is_told_to_the_hooks() -> None:
    class Failing(scenarios.Scenario):
        def update(self, batch: Any, *, model: Any, optimizer: Any, loss: Any) -> Any:
            raise Broken

        def evaluate(self, batch: Any, *, model: Any, optimizer: Any, loss: Any) -> Any:
            raise Broken

    with pytest.raises(Broken):
        ROW_OF_ALL.fresh().replace(scenario=Failing).run()


def test_a_best_metric_that_is_none_is_named_with_those_there_are(tmp_path: Path) -> None:
    message = r"^best_metric='acuracy' is no metric of the evaluation, which has loss$"
    with pytest.raises(ValueError, match=message):
        ROW_OF_ALL.start(save_dir=tmp_path, eval_interval=10, best_metric="acuracy")


def test_hooks_do_not_change_a_run() -> None:
    result, state = ROW_OF_ALL.start([lambda event: None, lambda event: None])
    assert result == uninterrupted(ROW_OF_ALL)[0]
    assert_bitwise(state, uninterrupted(ROW_OF_ALL)[1])


# Progress.

EVENTS = [
    events.Started("Supervised", 10, 40),
    events.Logged(20, {"loss": 0.25}),
    events.Progressed(20, {"loss": 0.25}),
    events.Evaluated(20, {"loss": 1e-5, "accuracy": 0.5}),
    events.Saved(20, Path("run")),
    events.Finished(20, "enough"),
]


def shown(kind: Any, force_terminal: bool) -> str:
    console = Console(file=io.StringIO(), force_terminal=force_terminal, width=160)
    hook = kind(console)
    for event in EVENTS:
        assert hook(event) is None
    text = console.file.getvalue()
    assert isinstance(text, str)
    return text


@pytest.mark.parametrize("force_terminal", [False, True])
def test_progress_lines_are_plain(force_terminal: bool) -> None:
    assert shown(ProgressLines, force_terminal).splitlines() == [
        "Supervised: step 10 of 40",
        "step 20 of 40: evaluation loss 1e-05  accuracy 0.5000",
        "step 20: enough",
    ]


def test_progress_lines_print_markup_as_it_is() -> None:
    console = Console(file=io.StringIO(), width=20)
    hook = ProgressLines(console)
    hook(events.Started("[red]Mine", 0, 10))
    hook(events.Finished(10, "a reason that is longer than the terminal is wide"))
    assert console.file.getvalue() == (
        "[red]Mine: step 0 of 10\nstep 10: a reason that is longer than the terminal is wide\n"
    )


def test_the_progress_bar_shows_steps_and_metrics_on_a_terminal() -> None:
    text = shown(ProgressBar, force_terminal=True)
    for part in ("Supervised", "20/40", "loss 0.2500", "eval loss 1e-05  accuracy 0.5000"):
        assert part in text
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1  # the cursor was hidden, and is back


def test_the_progress_bar_off_a_terminal_moves_no_cursor() -> None:
    assert "\x1b" not in shown(ProgressBar, force_terminal=False)


def test_the_progress_bar_gives_the_cursor_back_when_the_run_fails() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=160)

    def broken(event: events.Event) -> None:
        if isinstance(event, events.Logged):
            raise Broken

    with pytest.raises(Broken):
        ROW_OF_ALL.start([ProgressBar(console), broken])
    assert console.file.getvalue().count("\x1b[?25h") == 1


def test_off_a_terminal_progress_is_lines_on_the_error_stream(capsys: pytest.CaptureFixture[str]) -> None:
    assert isinstance(progress_hook(), ProgressLines)
    result, _ = ROW_OF_ALL.start(progress=True)
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.splitlines() == [
        f"Supervised: step 0 of {STEPS}",
        f"step {STEPS} of {STEPS}: evaluation {text_of(result.metrics)}",
        f"step {STEPS}: done",
    ]


def test_without_progress_nothing_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    ROW_OF_ALL.start(progress=False)
    assert capsys.readouterr() == ("", "")
