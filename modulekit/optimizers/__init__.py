"""Optimizers: Sonnet's, and a wrapper for any optax transformation."""

from modulekit.optimizers.base import Optimizer
from modulekit.optimizers.gradient_descent import SGD, Adam, Momentum, Optax, RMSProp

__all__ = ["SGD", "Adam", "Momentum", "Optax", "Optimizer", "RMSProp"]
