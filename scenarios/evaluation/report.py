"""What an evaluation found: numbers, and the files that show them."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from modulekit.checkpoints import write_json
from modulekit.metrics import (
    AreaUnderROC,
    CalibrationCurve,
    CalibrationError,
    ClassTable,
    ConfusionMatrix,
    ExampleMetric,
)
from scenarios.base.strict_json import in_json
from scenarios.evaluation.plots import draw_calibration, draw_confusion, draw_roc, draw_worst
from scenarios.evaluation.tables import table
from scenarios.evaluation.worst import Example

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Report:
    """The outcome of an evaluation.

    Attributes:
      metrics: the value of each metric that is one number; NaN where the examples say nothing.
      samples: how many examples there were.
      seconds: how long it took, compilation included.
      confusion: `[classes, classes]`, counts, a row for each true class; None without such a metric.
      classes: precision, recall, F1 and support of each class; None likewise.
      areas: `[classes]`, the area under each class's ROC curve; None likewise.
      calibration: the reliability diagram; None likewise.
      roc: the ROC curve of each class, false and true positive rates; empty without such a metric.
      worst: the examples with the highest loss.

    >>> import numpy as np
    >>> from scenarios.evaluation import Evaluate
    >>> report = Evaluate()(lambda x: x, data=(np.eye(3, dtype=np.float32), np.array([0, 1, 1])))
    >>> report.confusion.tolist()
    [[1, 0, 0], [0, 1, 1], [0, 0, 0]]
    """

    metrics: Mapping[str, float]
    samples: int
    seconds: float
    confusion: Array | None = field(default=None, repr=False)
    classes: ClassTable | None = field(default=None, repr=False)
    areas: Array | None = field(default=None, repr=False)
    calibration: CalibrationCurve | None = field(default=None, repr=False)
    roc: list[tuple[Array, Array]] = field(default_factory=list, repr=False)
    worst: list[Example] = field(default_factory=list, repr=False)

    def save(self, directory: str | os.PathLike[str], plots: bool = True) -> Path:
        """Writes `report.json`, `report.md` and the plots that it links to.

        Args:
          directory: made if missing; files of an earlier report are replaced.
          plots: whether to draw; needs matplotlib.

        Returns:
          The path of `report.md`.

        Raises:
          ImportError: matplotlib is not installed; the numbers are written nevertheless.
        """
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "report.json", self.in_json())
        text = folder / "report.md"
        text.write_text(self._markdown([]), encoding="utf-8")
        if plots:
            text.write_text(self._markdown(self._draw(folder)), encoding="utf-8")
        return text

    def in_json(self) -> dict[str, Any]:
        """Returns all numbers as strict JSON has them; null where there is none."""
        content: dict[str, Any] = {"samples": self.samples, "seconds": self.seconds, "metrics": dict(self.metrics)}
        content["confusion_matrix"] = self.confusion
        content["classes"] = [dict(zip(CLASS_COLUMNS, row, strict=True)) for row in self._class_rows()]
        content["calibration"] = [dict(zip(BIN_COLUMNS, row, strict=True)) for row in self._bin_rows()]
        content["worst"] = [
            {"index": e.index, "score": e.score, "target": e.target, "prediction": e.prediction} for e in self.worst
        ]
        strict: dict[str, Any] = in_json(content)
        return strict

    def __str__(self) -> str:
        """Shows the metrics as a table."""
        return f"{self._summary()}\n\n{table(['metric', 'value'], self.metrics.items())}"

    def _summary(self) -> str:
        return f"{self.samples} examples in {self.seconds:.3g} seconds"

    def _class_rows(self) -> list[list[Any]]:
        if self.classes is None:
            return []
        areas = self.areas if self.areas is not None and len(self.areas) == len(self.classes.support) else None
        rest = [np.full(len(self.classes.support), np.nan) if areas is None else areas]
        return [[c, *row] for c, row in enumerate(zip(*self.classes, *rest, strict=True))]

    def _bin_rows(self) -> list[list[Any]]:
        if self.calibration is None:
            return []
        bins = len(self.calibration.examples)
        return [[b / bins, (b + 1) / bins, *row] for b, row in enumerate(zip(*self.calibration, strict=True))]

    def _markdown(self, plots: list[tuple[str, str]]) -> str:
        parts = ["# Evaluation", self._summary(), table(["metric", "value"], self.metrics.items())]
        if self.classes is not None:
            parts += ["## Classes", table(CLASS_COLUMNS, self._class_rows())]
        if self.calibration is not None:
            parts += ["## Calibration", table(BIN_COLUMNS, self._bin_rows())]
        if self.worst:
            rows = [[e.index, e.score, e.target, e.prediction] for e in self.worst]
            parts += ["## Worst examples", table(["index", "loss", "target", "prediction"], rows)]
        parts += [f"## {title}\n\n![{title}]({name})" for title, name in plots]
        return "\n\n".join(parts) + "\n"

    def _draw(self, folder: Path) -> list[tuple[str, str]]:
        drawn = []
        if self.confusion is not None:
            draw_confusion(self.confusion, folder / "confusion.png")
            drawn.append(("Confusion matrix", "confusion.png"))
        if self.calibration is not None:
            draw_calibration(self.calibration, folder / "calibration.png")
            drawn.append(("Reliability diagram", "calibration.png"))
        if self.roc:
            draw_roc(self.roc, folder / "roc.png")
            drawn.append(("ROC curves", "roc.png"))
        if self.worst and self.worst[0].image is not None:
            draw_worst(self.worst, folder / "worst.png")
            drawn.append(("Images of the worst examples", "worst.png"))
        return drawn


CLASS_COLUMNS = ("class", "precision", "recall", "f1", "support", "auroc")
BIN_COLUMNS = ("above", "up_to", "examples", "confidence", "accuracy")


def report_of(metrics: Mapping[str, ExampleMetric], samples: int, seconds: float, worst: list[Example]) -> Report:
    """Returns the report of metrics that have seen all examples."""
    kinds: dict[type, Any] = {type(metric): metric for metric in reversed(list(metrics.values()))}
    confusion, calibration, ranking = (kinds.get(k) for k in (ConfusionMatrix, CalibrationError, AreaUnderROC))
    values = {name: np.asarray(metric.value) for name, metric in metrics.items()}
    return Report(
        metrics={name: float(value) for name, value in values.items() if value.ndim == 0},
        samples=samples,
        seconds=seconds,
        confusion=None if confusion is None else np.asarray(confusion.value),
        classes=None if confusion is None else confusion.per_class(),
        areas=None if ranking is None else ranking.per_class(),
        calibration=None if calibration is None else calibration.curve(),
        roc=[] if ranking is None else ranking.curves(),
        worst=worst,
    )
