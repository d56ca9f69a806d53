"""Runs told and compared by what they left on disk: real runs, killed runs, runs without a manifest."""

import json
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
from references import normal

import modulekit as mk
import scenarios
from scenarios.evaluation import Evaluate, Row, compare, run_report
from scenarios.evaluation.record import read_record

X = normal(32, 3)
Y = X @ np.array([[1.0], [2.0], [3.0]], np.float32)


def train(directory: Path, rate: float, steps: int) -> Path:
    mk.seed(0)
    model = mk.Linear(1)
    fit = scenarios.Supervised(
        steps, batch_size=16, log_interval=2, eval_interval=4, save_dir=directory, progress=False
    )
    fit(model, mk.optimizers.SGD(rate), mk.losses.squared_error, data=(X, Y), eval_data=(X, Y))
    manifest = {"settings": {"steps": steps, "batch_size": 16}, "rate": rate, "devices": ["cpu"]}
    (directory / "manifest.json").write_text(json.dumps(manifest))
    Evaluate()(model, data=(X, Y)).save(directory / "report", plots=False)
    return directory


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("runs")
    return train(folder / "slow", 0.01, 8), train(folder / "fast", 0.1, 12)


def log_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def at(run: Path, event: str, step: int) -> float:
    return next(line["metrics"]["loss"] for line in log_of(run) if line["event"] == event and line["step"] == step)


def write(run: Path, *events: Any, rest: str = "") -> Path:
    run.mkdir(exist_ok=True)
    (run / "log.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events) + rest)
    return run


def logged(step: int, **values: float | None) -> dict[str, Any]:
    return {"event": "logged", "step": step, "metrics": values}


def test_a_comparison_says_what_differed_and_what_came_of_it(runs: tuple[Path, Path]) -> None:
    slow, fast = runs
    comparison = compare(slow, fast)
    assert comparison.differing == {"settings.steps": (8, 12), "rate": (0.01, 0.1)}  # and no batch size, no devices
    rows = {(row.metric, row.step): row for row in comparison.steps}
    assert [step for metric, step in rows if metric == "loss"] == [2, 4, 6, 8]
    assert [step for metric, step in rows if metric == "eval_loss"] == [4, 8]
    found = rows["eval_loss", 8]
    assert (found.a, found.b) == (at(slow, "evaluated", 8), at(fast, "evaluated", 8))
    assert found.difference == at(fast, "evaluated", 8) - at(slow, "evaluated", 8) < 0
    end = {row.metric: row for row in comparison.end}
    assert (end["last_step"].a, end["last_step"].b, end["last_step"].difference) == (8, 12, 4)
    assert (end["eval_loss"].a, end["eval_loss"].b) == (at(slow, "evaluated", 8), at(fast, "evaluated", 12))
    assert end["report_mse"].b == pytest.approx(at(fast, "evaluated", 12), rel=1e-5)


def test_a_comparison_prints_and_saves_readable_tables(runs: tuple[Path, Path], tmp_path: Path) -> None:
    comparison = compare(*runs)
    text = str(comparison)
    assert "| rate           | 0.01 | 0.1  |" in text
    assert "| last_step  | 8" in text
    saved = comparison.save(tmp_path / "out").read_text()
    assert saved.startswith("# Comparison\n") and "![Curves of both runs](comparison.png)" in saved
    assert "| rate           | 0.01 | 0.1  |" in saved
    image = matplotlib.image.imread(tmp_path / "out" / "comparison.png")
    assert image[..., :3].std() > 0.02
    plain = comparison.save(tmp_path / "plain", plots=False)
    assert "![" not in plain.read_text() and [p.name for p in plain.parent.iterdir()] == ["comparison.md"]


def test_a_run_compared_with_itself_differs_in_nothing(runs: tuple[Path, Path]) -> None:
    comparison = compare(runs[0], runs[0])
    assert comparison.differing == {}
    assert {row.difference for row in [*comparison.steps, *comparison.end]} == {0}
    assert "no difference in what the manifests say" in str(comparison)


def test_what_one_run_lacks_is_left_open(tmp_path: Path) -> None:
    a = write(tmp_path / "a", logged(1, loss=2.0, extra=1.0))
    b = write(tmp_path / "b", logged(1, loss=1.5), logged(2, loss=None))
    (b / "manifest.json").write_text('{"git": {"commit": "abc"}}')
    comparison = compare(a, b)
    assert comparison.differing == {"git.commit": ("(none)", "abc")}
    assert comparison.steps == [Row("loss", 1, 2.0, 1.5)]
    (extra,) = [row for row in comparison.end if row.metric == "extra"]
    assert (extra.a, extra.b, extra.difference) == (1.0, None, None)
    assert "| extra" in str(comparison) and "None" not in str(comparison)


def test_a_run_report_tells_a_run_that_ended(runs: tuple[Path, Path]) -> None:
    path = run_report(runs[1])
    text = path.read_text()
    assert path == runs[1] / "report" / "run.md"
    assert text.startswith("# Supervised\n\nThe run ended after step 12 of 12: done.")
    losses = {step: at(runs[1], "evaluated", step) for step in (4, 8, 12)}
    best = min(losses, key=lambda step: losses[step])
    assert f"Best evaluation: loss {losses[best]:.6g} after step {best}." in text
    assert "| eval_loss |" in text
    assert "| setting    | value |" in text and "| batch_size | 16    |" in text
    assert "![Curves](run.png)" in text
    assert matplotlib.image.imread(path.parent / "run.png")[..., :3].std() > 0.02


def test_a_run_that_was_killed_in_the_middle_of_a_line_can_be_told(runs: tuple[Path, Path], tmp_path: Path) -> None:
    whole = (runs[0] / "log.jsonl").read_text()
    place = whole.index('"evaluated"')
    write(tmp_path, rest=whole[: place + 5])
    text = run_report(tmp_path, plots=False).read_text()
    assert "The log ends at step 4 of 8, without a word that the run is over" in text
    assert "Unreadable lines of the log: 1." in text
    assert "| loss   |" in text and "Best evaluation" not in text
    assert compare(tmp_path, runs[0]).steps


def test_where_time_went_is_told_if_the_log_says_it(tmp_path: Path) -> None:
    ledger = {"waiting": 1.0, "stepping": 3.0}
    write(tmp_path, logged(5, loss=1.0), {"event": "finished", "step": 5, "reason": "done", "seconds": ledger})
    text = run_report(tmp_path, to=tmp_path / "told", plots=False).read_text()
    assert "| stepping | 3       | 75.0 % |" in text
    write(tmp_path, {"event": "finished", "step": 5, "reason": "done", "seconds": 2.5})
    assert "| all      | 2.5     | 100.0 % |" in run_report(tmp_path, plots=False).read_text()


def test_the_best_evaluation_is_the_lowest_loss_and_a_gap_is_none(tmp_path: Path) -> None:
    values = [(10, 0.5), (20, 0.25), (30, None), (40, 0.75)]
    write(tmp_path, *({"event": "evaluated", "step": s, "metrics": {"loss": v}} for s, v in values))
    assert "Best evaluation: loss 0.25 after step 20." in run_report(tmp_path, plots=False).read_text()


def test_nested_metrics_have_paths_and_a_step_told_twice_counts_as_told_last(tmp_path: Path) -> None:
    event = {"event": "evaluated", "step": 3, "metrics": {"raw": {"loss": 1.0}, "ema": {"loss": 0.5}}}
    write(tmp_path, logged(2, loss=9.0), logged(2, loss=4.0), event)
    record = read_record(tmp_path)
    assert record.curves("evaluated") == {"raw.loss": {3: 1.0}, "ema.loss": {3: 0.5}}
    assert record.curves("logged") == {"loss": {2: 4.0}}


def test_a_run_that_has_only_begun_can_be_told(tmp_path: Path) -> None:
    write(tmp_path, {"event": "started", "scenario": "Fit", "step": 0, "steps": 9}, {"event": "started", "step": 0})
    text = run_report(tmp_path).read_text()
    assert "The log ends at step 0 of 9" in text and "It was started 2 times." in text
    assert not (tmp_path / "report" / "run.png").exists()
    assert "The log ends at step 0" in run_report(write(tmp_path / "empty")).read_text()


def test_directories_that_are_no_runs_are_refused(tmp_path: Path) -> None:
    for call in (lambda: compare(tmp_path, tmp_path), lambda: run_report(tmp_path)):
        with pytest.raises(FileNotFoundError) as caught:
            call()
        assert str(caught.value) == f"{tmp_path} holds no log.jsonl: expected the save_dir of a run"


@pytest.mark.parametrize(("content", "text"), [("[1]", "must hold a JSON object, not a list"), ("{", "is no JSON")])
def test_a_broken_manifest_is_named(tmp_path: Path, content: str, text: str) -> None:
    write(tmp_path, logged(1, loss=1.0))
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(ValueError, match="JSON") as caught:
        compare(tmp_path, tmp_path)
    assert str(tmp_path / "manifest.json") in str(caught.value) and text in str(caught.value)
