"""Optimizers: Sonnet's, a wrapper for any optax transformation, and wrappers that clip, accumulate, scale and schedule."""

from modulekit.optimizers.accumulated import Accumulated
from modulekit.optimizers.base import Optimizer, Wrapped
from modulekit.optimizers.clipped import Clipped
from modulekit.optimizers.gradient_descent import SGD, Adam, Momentum, Optax, RMSProp
from modulekit.optimizers.loss_scaled import LossScaled
from modulekit.optimizers.scheduled import Scheduled

__all__ = [
    "SGD",
    "Accumulated",
    "Adam",
    "Clipped",
    "LossScaled",
    "Momentum",
    "Optax",
    "Optimizer",
    "RMSProp",
    "Scheduled",
    "Wrapped",
]
