"""Metrics: modules that accumulate values over batches.

`Sum`, `Mean` and `ExponentialMovingAverage` are Sonnet's: they take what they are given call by call, and a call counts
once. All others weigh every example the same, however the examples are batched, padded or spread over devices. They work
by one mechanism: an `ExampleMetric` holds statistics, and its value is a function of them. A `Total` adds up one array per
example: integers in int32, real numbers in two float32 numbers, so that no rounding accumulates. A `Collection`, for a
metric that is no function of sums (`AreaUnderROC`), keeps the rows themselves. Statistics of two parts merge into those of
the whole, masked examples reach no statistic, and so `update(..., mask=None)`, `merge`, `reset` and `value` mean the same in
every metric. A metric that is the mean of one number per example is a `PerExample`, and says that number only.
"""

from modulekit.metrics.accuracy import Accuracy, TopKAccuracy, correct
from modulekit.metrics.calibration import CalibrationCurve, CalibrationError
from modulekit.metrics.collection import Collection
from modulekit.metrics.confusion import ClassTable, ConfusionMatrix
from modulekit.metrics.coverage import Coverage
from modulekit.metrics.example_mean import ExampleMean, PerExample
from modulekit.metrics.example_metric import ExampleMetric
from modulekit.metrics.exponential_moving_average import ExponentialMovingAverage
from modulekit.metrics.metric import Metric
from modulekit.metrics.probability_scores import BrierScore, NegativeLogLikelihood
from modulekit.metrics.ranking import AreaUnderROC
from modulekit.metrics.reconstruction import PSNR, MeanSquaredError
from modulekit.metrics.similarity import SSIM
from modulekit.metrics.sums import Mean, Sum
from modulekit.metrics.total import Total

__all__ = [
    "PSNR",
    "SSIM",
    "Accuracy",
    "AreaUnderROC",
    "BrierScore",
    "CalibrationCurve",
    "CalibrationError",
    "ClassTable",
    "Collection",
    "ConfusionMatrix",
    "Coverage",
    "ExampleMean",
    "ExampleMetric",
    "ExponentialMovingAverage",
    "Mean",
    "MeanSquaredError",
    "Metric",
    "NegativeLogLikelihood",
    "PerExample",
    "Sum",
    "TopKAccuracy",
    "Total",
    "correct",
]
