"""A bar chart of the benchmark: each contender's step over hand-written JAX's, by workload, on a logarithmic axis."""

import pathlib

import numpy as np

from scenarios.evaluation.plots import figure
from tests.benchmarks.results import BASELINE, Results


def draw(results: Results, path: pathlib.Path) -> None:
    """Draws the ratios of steps into a picture file.

    Raises:
      ImportError: matplotlib is not installed.
    """
    others = [name for name in results.contenders if name != BASELINE]
    workloads = results.workloads
    width, places = 0.8 / max(1, len(others)), np.arange(len(workloads))
    drawn = figure(max(6.0, 1.7 * len(workloads)), 5.0)
    axes = drawn.subplots()
    for index, name in enumerate(others):
        ratios = [results.ratio("step", workload, name) for workload in workloads]
        heights = np.array([np.nan if ratio is None else ratio for ratio in ratios])
        # Bars grow from 1 up or down, so that faster and slower are told apart at a glance.
        bars = axes.bar(places + (index + 0.5) * width - 0.4, heights - 1, width, bottom=1.0, label=name)
        axes.bar_label(bars, ["" if np.isnan(h) else f"{h:.2g}" for h in heights], fontsize=7, padding=2)
    axes.axhline(1.0, color="black", linewidth=1.0, label="hand-written JAX")
    axes.set(
        yscale="log",
        xticks=places,
        xticklabels=[workload.replace("_", "\n", 1) for workload in workloads],
        xlabel="workload",
        ylabel="seconds of a training step over hand-written JAX's",
    )
    axes.margins(y=0.08)
    drawn.legend(loc="outside upper center", ncols=4, fontsize=8)
    drawn.savefig(path, dpi=150)
