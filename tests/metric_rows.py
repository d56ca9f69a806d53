"""The table of metrics that weigh every example the same: a new row enrols a metric in every law of metrics."""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from modulekit import metrics
from modulekit.metrics import ExampleMetric

CLASSES = 7
Batch = tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class MetricRow:
    """A metric, and arguments of its `update` for some number of examples."""

    name: str
    make: Callable[[], ExampleMetric]
    examples: Callable[[int, np.random.Generator], Batch]


def classified(size: int, random: np.random.Generator) -> Batch:
    logits = 2 * random.normal(size=(size, CLASSES)).astype(np.float32)
    return logits, random.integers(CLASSES, size=size).astype(np.int32)


def binary(size: int, random: np.random.Generator) -> Batch:
    return random.integers(5, size=size).astype(np.float32), random.integers(2, size=size).astype(np.int32)


def values(size: int, random: np.random.Generator) -> Batch:
    return (random.exponential(size=size).astype(np.float32),)


def reals(size: int, random: np.random.Generator) -> Batch:
    return random.normal(size=(size, 3)).astype(np.float32), random.normal(size=(size, 3)).astype(np.float32)


def images(size: int, random: np.random.Generator) -> Batch:
    targets = random.uniform(size=(size, 12, 13, 2)).astype(np.float32)
    return (targets + 0.1 * random.normal(size=targets.shape)).astype(np.float32), targets


def intervals(size: int, random: np.random.Generator) -> Batch:
    centers = random.normal(size=(size, 2)).astype(np.float32)
    return (centers - 1, centers + 1), random.normal(size=(size, 2)).astype(np.float32)


METRICS = [
    MetricRow("mean", metrics.ExampleMean, values),
    MetricRow("accuracy", metrics.Accuracy, classified),
    MetricRow("top 3", lambda: metrics.TopKAccuracy(3), classified),
    MetricRow("nll", metrics.NegativeLogLikelihood, classified),
    MetricRow("brier", metrics.BrierScore, classified),
    MetricRow("calibration", lambda: metrics.CalibrationError(5), classified),
    MetricRow("confusion", lambda: metrics.ConfusionMatrix(CLASSES), classified),
    MetricRow("roc of classes", metrics.AreaUnderROC, classified),
    MetricRow("roc of scores", metrics.AreaUnderROC, binary),
    MetricRow("mse", metrics.MeanSquaredError, reals),
    MetricRow("psnr", metrics.PSNR, images),
    MetricRow("ssim", metrics.SSIM, images),
    MetricRow("coverage", metrics.Coverage, intervals),
]


def part(arrays: Any, start: int, stop: int) -> Any:
    """Returns some examples of arguments."""
    if isinstance(arrays, tuple):
        return tuple(part(array, start, stop) for array in arrays)
    return arrays[start:stop]


def padded(arrays: Any, size: int, filling: float) -> Any:
    """Returns arguments with more examples, whose every number is the filling, or 0 in integers."""
    if isinstance(arrays, tuple):
        return tuple(padded(array, size, filling) for array in arrays)
    more = np.full((size - len(arrays), *arrays.shape[1:]), filling if arrays.dtype.kind == "f" else 0, arrays.dtype)
    return np.concatenate([arrays, more])


def of(row: MetricRow, arrays: Batch, edges: Sequence[int]) -> ExampleMetric:
    """Returns a metric that has seen the examples between the edges, in batches from each to the next."""
    metric = row.make()
    for start, stop in itertools.pairwise(edges):
        metric.update(*part(arrays, start, stop))
    return metric


def value(metric: ExampleMetric) -> np.ndarray:
    return np.asarray(metric.value, np.float64)
