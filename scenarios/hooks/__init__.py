"""Hooks that come with the library: metrics into files, early stopping, profiling. Each serves one run at a time."""

from scenarios.hooks.early_stopping import EarlyStopping
from scenarios.hooks.profile import Profile
from scenarios.hooks.table import CSV
from scenarios.hooks.tensorboard import TensorBoard

__all__ = ["CSV", "EarlyStopping", "Profile", "TensorBoard"]
