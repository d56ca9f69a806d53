"""What a report writes is what was measured: strict JSON, tables with gaps, plots that show something."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
from references import normal

from modulekit import metrics
from scenarios.base.strict_json import in_json
from scenarios.evaluation import Evaluate, Report
from scenarios.evaluation.tables import cell, table

SIZE, CLASSES = 30, 4
IMAGES = np.random.default_rng(0).uniform(size=(SIZE, 6, 5, 1)).astype(np.float32)
LABELS = (np.arange(SIZE) % (CLASSES - 1)).astype(np.int32)  # the last class has no example


def logits(x: Any) -> Any:
    return x.reshape(len(x), -1)[:, :CLASSES]


@pytest.fixture(scope="module")
def report() -> Report:
    return Evaluate(batch_size=8, worst=10)(logits, data=(IMAGES, LABELS))


@pytest.fixture(scope="module")
def folder(report: Report, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report.save(tmp_path_factory.mktemp("report")).parent


def strictly(path: Path) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


def test_the_json_holds_what_was_measured(report: Report, folder: Path) -> None:
    content = strictly(folder / "report.json")
    assert content["metrics"] == pytest.approx(report.metrics)
    assert content["samples"] == SIZE
    assert report.confusion is not None
    assert content["confusion_matrix"] == report.confusion.tolist()
    assert sum(row["examples"] for row in content["calibration"]) == SIZE
    assert [row["index"] for row in content["worst"]] == [example.index for example in report.worst]
    predicted = np.asarray(logits(IMAGES)).argmax(axis=1)
    for c, row in enumerate(content["classes"][:-1]):
        assert row["recall"] == pytest.approx((predicted[c == LABELS] == c).mean())
        assert row["precision"] == pytest.approx((LABELS[predicted == c] == c).mean())


def test_a_class_without_examples_is_null_and_a_dash(folder: Path) -> None:
    row = strictly(folder / "report.json")["classes"][-1]
    assert row == {"class": 3, "precision": 0.0, "recall": None, "f1": 0.0, "support": 0, "auroc": None}
    (line,) = re.findall(
        r"^\| 3 .*", (folder / "report.md").read_text().partition("## Classes")[2].partition("##")[0], re.M
    )
    assert [text.strip() for text in line.strip("|").split("|")] == ["3", "0", "-", "0", "0", "-"]
    assert "nan" not in (folder / "report.md").read_text().lower()


def test_the_markdown_links_to_plots_that_exist(folder: Path) -> None:
    linked = re.findall(r"!\[.*?\]\((.*?)\)", (folder / "report.md").read_text())
    assert sorted(linked) == ["calibration.png", "confusion.png", "roc.png", "worst.png"]
    assert sorted(path.name for path in folder.glob("*.png")) == sorted(linked)


@pytest.mark.parametrize("name", ["calibration", "confusion", "roc", "worst"])
def test_a_plot_is_not_blank(folder: Path, name: str) -> None:
    image = matplotlib.image.imread(folder / f"{name}.png")
    assert image.shape[0] > 100 and image.shape[1] > 100
    assert image[..., :3].std() > 0.02 and len(np.unique(image[..., 0])) > 5


def test_reconstructions_are_drawn_below_their_images(tmp_path: Path) -> None:
    evaluation = Evaluate(worst=3)
    text = evaluation(lambda x: 0.5 * x, data=IMAGES).save(tmp_path).read_text()
    assert "![Images of the worst examples](worst.png)" in text
    assert not list(tmp_path.glob("r*.png"))  # there are no classes to rank
    both = matplotlib.image.imread(tmp_path / "worst.png")
    evaluation(logits, data=(IMAGES, LABELS)).save(tmp_path)
    assert both.shape[0] > matplotlib.image.imread(tmp_path / "worst.png").shape[0]


def test_a_metric_that_is_infinite_is_null(tmp_path: Path) -> None:
    perfect = Evaluate()(lambda x: x, data=IMAGES)
    assert perfect.metrics["psnr"] == np.inf
    perfect.save(tmp_path, plots=False)
    assert strictly(tmp_path / "report.json")["metrics"] == {"mse": 0.0, "psnr": None}
    assert "| psnr   | inf   |" in (tmp_path / "report.md").read_text()


def test_without_plots_nothing_is_drawn_or_linked(report: Report, tmp_path: Path) -> None:
    text = report.save(tmp_path / "new" / "folder", plots=False)
    assert "![" not in text.read_text() and not list(text.parent.glob("*.png"))


def test_a_second_report_replaces_the_first(report: Report, tmp_path: Path) -> None:
    Evaluate()(lambda x: x, data=IMAGES).save(tmp_path, plots=False)
    report.save(tmp_path, plots=False)
    assert strictly(tmp_path / "report.json")["metrics"] == pytest.approx(report.metrics)


def test_without_matplotlib_the_numbers_are_written_and_the_error_names_the_extra(
    report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="drawing needs matplotlib") as caught:
        report.save(tmp_path)
    assert "pip install 'modulekit[plot]', or save with plots=False" in str(caught.value)
    assert strictly(tmp_path / "report.json")["samples"] == SIZE
    assert "## Classes" in (tmp_path / "report.md").read_text()


def test_a_report_has_what_its_metrics_say() -> None:
    only = Evaluate({"hit": metrics.Accuracy()}, worst=0)(logits, data=(IMAGES, LABELS))
    assert (only.confusion, only.classes, only.areas, only.calibration, only.roc, only.worst) == (None,) * 4 + ([], [])
    lines = str(only).splitlines()
    assert lines[0].startswith("30 examples in ")
    assert lines[-1].startswith("| hit    | ")


def test_drawing_opens_no_window_and_leaves_pyplot_alone() -> None:
    source = (Path(__file__).parents[1] / "scenarios" / "evaluation" / "plots.py").read_text()
    assert "import matplotlib.pyplot" not in source and "from matplotlib import pyplot" not in source


def test_tables_line_up_and_say_nothing_where_nothing_is_known() -> None:
    lines = table(["a", "long name"], [[1, np.float32("nan")], [None, 0.1234567]]).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[2:] == ["| 1   | -         |", "| -   | 0.123457  |"]
    assert cell("a\nb|c") == "a b\\|c"


def test_json_has_no_number_that_is_none() -> None:
    content = {"a": [np.nan, np.inf, 1.0], "b": np.array([[1, 2]]), 3: (np.float32(0.5), None, "x", True)}
    assert in_json(content) == {"a": [None, None, 1.0], "b": [[1, 2]], "3": [0.5, None, "x", True]}
    json.dumps(in_json(content), allow_nan=False)


def test_bytes_and_colors_are_drawn(tmp_path: Path) -> None:
    images = (255 * np.abs(normal(4, 12, 12, 3)) / 5).clip(0, 255).astype(np.uint8)
    Evaluate()(lambda x: x // 2, data=images).save(tmp_path)
    assert matplotlib.image.imread(tmp_path / "worst.png").std() > 0.02
