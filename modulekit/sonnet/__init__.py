"""Checkpoints that Sonnet 2 wrote with TensorFlow, read without TensorFlow and assigned to modules."""

from modulekit.core.plan import Line, Plan
from modulekit.sonnet.assignment import plan
from modulekit.sonnet.checkpoint import Checkpoint, SavedTensor, read_checkpoint

__all__ = ["Checkpoint", "Line", "Plan", "SavedTensor", "plan", "read_checkpoint"]
