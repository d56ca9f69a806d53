"""Data: arrays in memory, streams of batches, pipelines, reading ahead, downloads, and two data sets.

`Arrays` holds examples. `batch_indices` says which of them a training step takes, as a pure function of the seed
and the step, so that any step can be replayed; `evaluation_batches` walks over all of them once. What does not fit that
form is a `Stream`: batches one after the other, with a position that can be saved. `stream` adapts what people have,
`pipeline` makes batches of examples, `IndexedBatches` of arrays on the host, and `Prefetch` reads ahead. `download`
gets files; `read_idx` and `mnist` read those that are on disk, and `digits` needs neither files nor network. `padded` makes
arrays of samples of different sizes. Nothing here knows models or JAX.
"""

from modulekit.data.arrays import Arrays
from modulekit.data.digits import digits
from modulekit.data.download import download
from modulekit.data.idx import mnist, read_idx
from modulekit.data.indexed import IndexedBatches
from modulekit.data.order import batch_indices, epoch_order, evaluation_batches
from modulekit.data.padding import padded
from modulekit.data.pipeline import Pipeline, pipeline
from modulekit.data.prefetch import Group, Prefetch
from modulekit.data.stream import Stream, stream

__all__ = [
    "Arrays",
    "Group",
    "IndexedBatches",
    "Pipeline",
    "Prefetch",
    "Stream",
    "batch_indices",
    "digits",
    "download",
    "epoch_order",
    "evaluation_batches",
    "mnist",
    "padded",
    "pipeline",
    "read_idx",
    "stream",
]
