"""Plots of reports, as PNG files.

matplotlib is an optional dependency and slow to import: the figures import it when they are drawn. They are objects of their
own, without pyplot, so that drawing touches no window and no state of the program around it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from modulekit.metrics import CalibrationCurve
from scenarios.evaluation.worst import Example

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = np.ndarray[Any, Any]
Curves = Mapping[str, tuple[Sequence[float], Sequence[float]]]

NAMED = 10  # curves that a legend can tell apart
PRINTED = 20  # classes whose counts can be read in a picture


def figure(width: float, height: float) -> "Figure":
    """Returns an empty figure, in inches.

    Raises:
      ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "drawing needs matplotlib: pip install 'modulekit[plot]', or save with plots=False"
        ) from error
    return Figure(figsize=(width, height), layout="constrained")


def draw_confusion(matrix: Array, path: Path) -> None:
    """Draws a confusion matrix, `[classes, classes]`: in each row the shares of its class."""
    size = min(3 + 0.35 * len(matrix), 12)
    drawn = figure(size, size)
    axes = drawn.subplots()
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    axes.set(xlabel="predicted class", ylabel="true class", title="Confusion matrix")
    if len(matrix) <= PRINTED:
        axes.set(xticks=range(len(matrix)), yticks=range(len(matrix)))
        for (row, column), count in np.ndenumerate(matrix):
            color = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(count), ha="center", va="center", color=color, fontsize=8)
    drawn.savefig(path)


def draw_calibration(curve: CalibrationCurve, path: Path) -> None:
    """Draws a reliability diagram, and below it how many examples each bin has."""
    drawn = figure(5, 6)
    upper, lower = drawn.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    bins = len(curve.examples)
    centers = (np.arange(bins) + 0.5) / bins
    upper.bar(centers, np.nan_to_num(curve.accuracy), width=1 / bins, edgecolor="black", label="accuracy")
    upper.plot([0, 1], [0, 1], "k--", label="calibrated")
    upper.plot(curve.confidence, curve.accuracy, "o", color="tab:red", label="mean confidence")
    upper.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy", title="Reliability")
    upper.legend(loc="upper left")
    lower.bar(centers, curve.examples, width=1 / bins, edgecolor="black", color="gray")
    lower.set(xlabel="confidence", ylabel="examples")
    drawn.savefig(path)


def draw_roc(curves: Sequence[tuple[Array, Array]], path: Path) -> None:
    """Draws the ROC curves of all classes that have one."""
    drawn = figure(5, 5)
    axes = drawn.subplots()
    known = {c: pair for c, pair in enumerate(curves) if np.isfinite(pair).all()}
    for c, (false, true) in known.items():
        axes.plot(false, true, label=f"class {c}", linewidth=1.5 if len(known) <= NAMED else 0.5)
    axes.plot([0, 1], [0, 1], "k--", linewidth=1)
    axes.set(xlabel="false positive rate", ylabel="true positive rate", title="ROC", aspect="equal")
    if 0 < len(known) <= NAMED:
        axes.legend(loc="lower right")
    drawn.savefig(path)


def draw_worst(examples: Sequence[Example], path: Path) -> None:
    """Draws the images of examples, each above the model's image of it, if it makes one."""
    columns = min(len(examples), 8)
    height = 2 if examples[0].output is not None else 1
    rows = -(-len(examples) // columns) * height
    drawn = figure(1.3 * columns, 1.6 * rows)
    grid = drawn.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for place, example in enumerate(examples):
        row, column = place // columns * height, place % columns
        _show(grid[row, column], example.image)
        title = f"{example.score:.3g}" if example.target is None else f"{example.target}, not {example.prediction}"
        if example.target is not None and example.target == example.prediction:
            title = f"{example.target}"
        grid[row, column].set_title(title, fontsize=8)
        if example.output is not None:
            _show(grid[row + 1, column], example.output)
    drawn.savefig(path)


def draw_curves(panels: Mapping[str, Curves], path: Path) -> None:
    """Draws one panel of curves of steps for each metric; several curves of it share the panel."""
    drawn = figure(7, max(2.2 * len(panels), 2.2))
    for axes, (title, curves) in zip(drawn.subplots(len(panels), 1, squeeze=False).flat, panels.items(), strict=True):
        for name, (steps, values) in curves.items():
            axes.plot(steps, values, marker="." if len(steps) < 50 else None, label=name)
        axes.set(xlabel="step", ylabel=title)
        axes.legend()
    drawn.savefig(path)


def _show(axes: Any, image: Array | None) -> None:
    if image is None:
        return
    values = np.asarray(image, np.float32)
    top = 255.0 if image.dtype == np.uint8 else 1.0
    values = np.clip(values / top, 0, 1)
    axes.imshow(values[..., 0] if values.shape[-1] == 1 else values, cmap="gray", vmin=0, vmax=1)


def draw_ensemble(accuracies: Mapping[str, float], disagreement: Array, curve: tuple[Array, Array], path: Path) -> None:
    """Draws the accuracy of each member and of the average, who disagrees with whom, and the risk by coverage."""
    drawn = figure(12, 4)
    bars, matrix, risk = drawn.subplots(1, 3)
    names = list(accuracies)
    colors = ["tab:orange" if name == names[-1] else "tab:blue" for name in names]
    bars.barh(range(len(names)), list(accuracies.values()), color=colors)
    bars.set(yticks=range(len(names)), yticklabels=names, xlabel="accuracy", title="Members and average")
    lowest = min(accuracies.values())
    bars.set_xlim(max(0.0, lowest - 0.5 * (1 - lowest) - 0.01), 1)
    bars.invert_yaxis()
    image = matrix.imshow(disagreement, vmin=0, cmap="viridis")
    matrix.set(xlabel="member", ylabel="member", title="Disagreement")
    drawn.colorbar(image, ax=matrix)
    risk.plot(*curve)
    risk.set(xlim=(0, 1), ylim=(0, None), xlabel="coverage", ylabel="risk", title="Risk of the average, by coverage")
    drawn.savefig(path)
