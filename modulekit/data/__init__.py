"""Data in memory: arrays that share their first axis, the order in which training meets them, and two data sets.

`Arrays` holds the examples. `batch_indices` says which of them a training step takes, as a pure function of the seed
and the step, so that any step can be replayed; `evaluation_batches` walks over all of them once. `read_idx` and `mnist`
read files that are already on disk, and `digits` needs neither files nor network. Nothing here knows models or JAX.
"""

from modulekit.data.arrays import Arrays
from modulekit.data.digits import digits
from modulekit.data.idx import mnist, read_idx
from modulekit.data.order import batch_indices, epoch_order, evaluation_batches

__all__ = ["Arrays", "batch_indices", "digits", "epoch_order", "evaluation_batches", "mnist", "read_idx"]
