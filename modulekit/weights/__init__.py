"""Weights for exchange: safetensors files that other frameworks read, written from modules and planned into modules."""

from modulekit.core.plan import Line, Plan
from modulekit.weights.assignment import load, plan
from modulekit.weights.reading import SavedArray, WeightsFile, read
from modulekit.weights.writing import save

__all__ = ["Line", "Plan", "SavedArray", "WeightsFile", "load", "plan", "read", "save"]
