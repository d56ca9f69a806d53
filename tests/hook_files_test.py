"""Laws of the files that hooks write: what stands in them, read by others, after a resume and a kill as well."""

import builtins
import csv
import math
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scenario_catalogue import ROW, STEPS
from tensorboardX.proto import event_pb2

from modulekit.sonnet.crc32c import crc32c, masked
from scenarios import events
from scenarios.hooks import CSV, Profile, TensorBoard

ROW_OF_ALL = ROW["regression"]
METRICS = st.dictionaries(st.sampled_from(["loss", "accuracy", "a,b", 'quo"te']), st.floats(width=32), max_size=3)


def started(step: int = 0, directory: Path | None = None) -> events.Started:
    return events.Started("Supervised", step, 1000, directory)


class Killed(Exception):
    """What ends a run without a saved state."""


def run_until(step: int, hook: Any, directory: Path, **options: Any) -> None:
    def kill(event: events.Event) -> None:
        if event.step >= step and not isinstance(event, events.Finished):
            raise Killed

    with pytest.raises(Killed):
        ROW_OF_ALL.start([hook, kill], save_dir=directory, **options)


def tell(hook: Any, heard: list[events.Event]) -> None:
    for event in heard:
        assert hook(event) is None


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def numbers(path: Path) -> list[dict[str, float]]:
    return [{name: float(cell) for name, cell in row.items() if cell} for row in table(path)]


# The table.


def test_the_table_holds_the_history_of_the_run(tmp_path: Path) -> None:
    result, _ = ROW_OF_ALL.start([CSV(tmp_path / "new" / "log.csv")], eval_interval=10)
    assert numbers(tmp_path / "new" / "log.csv") == result.history
    assert (tmp_path / "new" / "log.csv").read_text().splitlines()[0] == "step,loss,eval_loss"
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["log.csv"]


@pytest.mark.parametrize("cut", [7, 20, STEPS])
def test_the_table_of_a_resumed_run_is_that_of_an_uninterrupted_one(cut: int, tmp_path: Path) -> None:
    options = {"eval_interval": 10, "save_interval": 4}
    ROW_OF_ALL.start([CSV(tmp_path / "whole.csv")], save_dir=tmp_path / "other", **options)
    parts, run = tmp_path / "parts.csv", tmp_path / "run"
    run_until(cut, CSV(parts), run, **options)
    with parts.open("a") as file:
        file.write("59,0.25,\n60,0.1")  # of a process that was killed later than the state was saved
    ROW_OF_ALL.start([CSV(parts)], save_dir=run, **options)
    assert parts.read_bytes() == (tmp_path / "whole.csv").read_bytes()


@given(st.lists(st.tuples(st.booleans(), METRICS), max_size=12), st.integers(0, 12), st.integers(0, 4))
@settings(max_examples=60, deadline=None)
def test_any_metrics_come_back_and_any_cut_is_mended(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[bool, dict[str, float]]], cut: int, later: int
) -> None:
    directory = tmp_path_factory.mktemp("table")
    heard: list[events.Event] = [
        (events.Evaluated if is_evaluation else events.Logged)(index + 1, metrics)
        for index, (is_evaluation, metrics) in enumerate(rows)
    ]
    tell(CSV(directory / "whole.csv"), [started(), *heard, events.Finished(99, "done")])
    expected = [
        {
            "step": event.step,
            **{("eval_" if isinstance(event, events.Evaluated) else "") + n: v for n, v in event.metrics.items()},
        }
        for event in heard
    ]
    for row, wanted in zip(numbers(directory / "whole.csv"), expected, strict=True):
        assert row.keys() == wanted.keys()
        assert all(
            row[name] == value or (math.isnan(row[name]) and math.isnan(value)) for name, value in wanted.items()
        )
    path = directory / "parts.csv"
    tell(CSV(path), [started(), *heard[: cut + later]])
    with path.open("a") as file:
        file.write("98,0.5\n99,0.1")
    cut = min(cut, len(heard))
    tell(CSV(path), [started(cut), *heard[cut:], events.Finished(99, "done")])
    assert path.read_bytes() == (directory / "whole.csv").read_bytes()


def test_each_row_is_in_the_file_before_the_run_goes_on(tmp_path: Path) -> None:
    hook, path = CSV(), tmp_path / "log.csv"
    hook(started(directory=tmp_path))
    assert path.read_text() == "step\n"
    hook(events.Logged(5, {"loss": 0.5}))
    assert path.read_text() == "step,loss\n5,0.5\n"
    hook(events.Evaluated(5, {"loss": 0.25}))
    assert path.read_text() == "step,loss,eval_loss\n5,0.5,0.25\n"
    hook(events.Logged(10, {"loss": math.nan, "rate": 1e-30}))
    assert path.read_text() == "step,loss,eval_loss,rate\n5,0.5,0.25,\n10,nan,,1e-30\n"
    hook(events.Progressed(11, {"loss": 1.0}))
    hook(events.Saved(11, tmp_path))
    assert len(table(path)) == 2


def test_another_run_in_the_same_place_begins_anew(tmp_path: Path) -> None:
    hook = CSV(tmp_path / "log.csv")
    tell(hook, [started(), events.Logged(5, {"loss": 0.5}), events.Finished(5, "done")])
    tell(
        hook,
        [started(), events.Logged(5, {"other": 1.0}), events.Finished(5, "done"), events.Logged(6, {"other": 2.0})],
    )
    assert (tmp_path / "log.csv").read_text() == "step,other\n5,1.0\n"


@pytest.mark.parametrize("content", ["name,value\n1,2\n", "step,loss\n5,0.5\nfive,1.0\n"])
def test_a_file_that_is_no_table_of_a_run_is_left_alone(content: str, tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"log\.csv is no table of a run, whose first column is 'step': "):
        CSV(path)(started())
    assert path.read_text() == content


# TensorBoard's event files.


def records(file: Path) -> Iterator[Any]:
    """Yields the events of a file after a check of both checksums of each record, by the format's description."""
    data = file.read_bytes()
    while data:
        length, checksum = struct.unpack("<QI", data[:12])
        assert checksum == masked(crc32c(data[:8]))
        content, tail = data[12 : 12 + length], data[12 + length : 16 + length]
        assert struct.unpack("<I", tail)[0] == masked(crc32c(content))
        yield event_pb2.Event.FromString(content)
        data = data[16 + length :]


def scalars(directory: Path) -> dict[str, dict[int, float]]:
    """Returns the scalars that TensorBoard would show: a file that starts at a step purges what others say from there on."""
    shown: dict[str, dict[int, float]] = {}
    for file in sorted(directory.glob("events.out.tfevents.*")):
        for index, event in enumerate(records(file)):
            if index == 0:
                assert event.file_version == "brain.Event:2"
            if event.HasField("session_log") and event.session_log.status == event_pb2.SessionLog.START:
                for series in shown.values():
                    for step in [step for step in series if step >= event.step]:
                        del series[step]
            for value in event.summary.value:
                shown.setdefault(value.tag, {})[event.step] = value.simple_value
    return shown


def history_of(result: Any) -> dict[str, dict[int, Any]]:
    found: dict[str, dict[int, Any]] = {}
    for row in result.history:
        for name, value in row.items():
            tag = f"eval/{name[5:]}" if name.startswith("eval_") else f"train/{name}"
            if name != "step":
                found.setdefault(tag, {})[row["step"]] = pytest.approx(value, rel=1e-6)
    return found


def test_tensorboard_reads_the_history_of_the_run(tmp_path: Path) -> None:
    result, _ = ROW_OF_ALL.start([TensorBoard(tmp_path / "board")], eval_interval=10)
    assert scalars(tmp_path / "board") == history_of(result)


@pytest.mark.parametrize("cut", [12, STEPS])
def test_tensorboard_forgets_what_came_after_the_saved_step(cut: int, tmp_path: Path) -> None:
    options = {"eval_interval": 10, "save_interval": 4}
    run, board = tmp_path / "run", TensorBoard(tmp_path)
    run_until(cut, board, run, **options)
    tell(
        TensorBoard(tmp_path), [started(cut), events.Logged(cut + 1, {"loss": 99.0}), events.Logged(99, {"loss": 99.0})]
    )
    result, _ = ROW_OF_ALL.start([board], save_dir=run, **options)
    assert scalars(tmp_path) == history_of(result)
    assert len(list(tmp_path.glob("events.*"))) == 3


def test_events_are_in_the_file_before_the_run_goes_on(tmp_path: Path) -> None:
    hook = TensorBoard()
    hook(started(directory=tmp_path))
    hook(events.Logged(5, {"loss": 0.5}))
    hook(events.Evaluated(5, {"loss": math.inf, "accuracy": 0.25}))
    assert scalars(tmp_path / "tensorboard") == {
        "train/loss": {5: 0.5}, "eval/loss": {5: math.inf}, "eval/accuracy": {5: 0.25},
    }  # fmt: skip
    tell(hook, [events.Finished(5, "done"), events.Logged(6, {"loss": 1.0})])
    assert 6 not in scalars(tmp_path / "tensorboard")["train/loss"]


def test_without_tensorboardx_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("tensorboardX"):
            raise ImportError(name)
        return plain(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(
        ImportError, match=r"^TensorBoard\(\) needs tensorboardX: pip install 'modulekit\[tensorboard\]'$"
    ):
        TensorBoard()


@pytest.mark.parametrize(
    ("make", "name"), [(CSV, "log.csv"), (TensorBoard, "tensorboard"), (lambda: Profile(0, 1), "profile")]
)
def test_without_a_place_to_write_to_the_run_does_not_begin(make: Any, name: str) -> None:
    hook = make()
    kind = type(hook).__name__
    with pytest.raises(
        ValueError, match=rf"^{kind}\(\) has no place to write to, .* as in {kind}\('{name}'\), or the run a"
    ):
        ROW_OF_ALL.start([hook])
    assert hook(events.Finished(0, "ended by ValueError")) is None


# Profiles.


class Tracer:
    """Stands for JAX's profiler, and notes when it is told what."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.said: list[str] = []
        monkeypatch.setattr(jax.profiler, "start_trace", lambda place: self.said.append(f"start {Path(place).name}"))
        monkeypatch.setattr(jax.profiler, "stop_trace", lambda: self.said.append("stop"))

    def hear(self, hook: Profile, *steps: int, first: int = 0) -> list[list[str]]:
        """Returns what was said at the start, at each event and at the end."""
        heard = [started(first, Path("run")), *(events.Progressed(step, {}) for step in steps)]
        said = []
        for event in [*heard, events.Finished(steps[-1] if steps else first, "done")]:
            self.said.clear()
            hook(event)
            said.append(list(self.said))
        return said


BEGIN, END, NOTHING = ["start profile"], ["stop"], []  # type: ignore[var-annotated]


@pytest.mark.parametrize(
    ("start", "steps", "first", "heard", "said"),
    [
        (10, 5, 0, [7, 14, 21, 28], [NOTHING, NOTHING, BEGIN, END, NOTHING, NOTHING]),
        (0, 5, 0, [3, 5, 9], [BEGIN, NOTHING, END, NOTHING, NOTHING]),
        (10, 100, 0, [10, 20], [NOTHING, BEGIN, NOTHING, END]),
        (10, 5, 40, [42, 47], [BEGIN, NOTHING, END, NOTHING]),
        (3, 1, 0, [3], [NOTHING, BEGIN, END]),
    ],
)
def test_a_profile_covers_its_updates_and_ends_with_the_run(
    start: int,
    steps: int,
    first: int,
    heard: list[int],
    said: list[list[str]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    tracer, hook = Tracer(monkeypatch), Profile(start, steps)
    for _ in range(2):  # a hook serves one run after the other
        assert tracer.hear(hook, *heard, first=first) == said


def test_a_profile_of_a_run_that_fails_is_ended_and_can_be_opened(tmp_path: Path) -> None:
    run_until(14, Profile(7, 1000, tmp_path), tmp_path / "run")
    (trace,) = tmp_path.rglob("*.xplane.pb")
    planes = {plane.name for plane in jax.profiler.ProfileData.from_file(str(trace)).planes}
    assert "/host:CPU" in planes
    with pytest.raises(RuntimeError):
        jax.profiler.stop_trace()  # there is none


def test_a_run_that_ends_before_its_profile_begins_says_so(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"^Profile\(start=1000\) has traced nothing: the run ended after update 60$"):
        ROW_OF_ALL.start([Profile(1000, 5, tmp_path)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tell(Profile(0, 5, tmp_path), [events.Finished(0, "ended by ValueError")])


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((-1, 5), "^start=-1: expected an integer of at least 0, a number of updates$"),
        ((0, 0), "^steps=0: expected an integer of at least 1, a number of updates$"),
        ((1.5, 5), r"^start=1\.5: expected an integer"),
    ],
)
def test_a_profile_of_no_updates_is_refused(arguments: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Profile(*arguments)
