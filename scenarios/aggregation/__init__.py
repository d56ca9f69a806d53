"""Gradients computed apart, and fed back as one: per sample, per process, or wherever they come from.

An `Intake` takes contributions, and makes one step of an optimizer of them; with a directory, no kill loses any. A
`GradientServer` lets workers in other processes contribute, each with a `GradientClient`. The rules by which several
gradients become one are functions: `mean`, `median`, `trimmed_mean`, `clipped_mean`. `AggregatedGradients` is the scenario
that does it all in one program, with the gradient of each sample as a contribution.
"""

from scenarios.aggregation.aggregated_gradients import AggregatedGradients
from scenarios.aggregation.client import GradientClient, Weights
from scenarios.aggregation.intake import Intake
from scenarios.aggregation.receipt import Aggregate, Receipt
from scenarios.aggregation.rules import clipped_mean, mean, median, trimmed_mean
from scenarios.aggregation.server import GradientServer

__all__ = [
    "Aggregate",
    "AggregatedGradients",
    "GradientClient",
    "GradientServer",
    "Intake",
    "Receipt",
    "Weights",
    "clipped_mean",
    "mean",
    "median",
    "trimmed_mean",
]
