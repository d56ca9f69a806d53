"""Rows of the catalogue: normalization, in training and with running statistics."""

import numpy as np
from catalogue import Row

import modulekit as mk

_generator = np.random.default_rng(4)
X = _generator.normal(1.0, 2.0, size=(4, 6)).astype(np.float32)
IMAGE = _generator.normal(1.0, 2.0, size=(2, 4, 3, 4)).astype(np.float32)
TRAINING = {"is_training": True}

ROWS = [
    Row("batch_norm", lambda: mk.BatchNorm(True, True), (X,), TRAINING),
    Row("batch_norm_of_images", lambda: mk.BatchNorm(True, False), (IMAGE,), TRAINING | {"test_local_stats": True}),
    Row("batch_norm_channels_first", lambda: mk.BatchNorm(False, True, data_format="NCHW"), (IMAGE,), TRAINING),
    Row(
        "base_batch_norm",
        lambda: mk.BaseBatchNorm(True, True, mk.ExponentialMovingAverage(0.9), mk.ExponentialMovingAverage(0.9)),
        (X,), TRAINING,
    ),
    Row("layer_norm", lambda: mk.LayerNorm(-1, True, True), (X,)),
    Row("instance_norm", lambda: mk.InstanceNorm(True, True), (IMAGE,)),
    Row("group_norm", lambda: mk.GroupNorm(2), (IMAGE,)),
    Row("group_norm_channels_first", lambda: mk.GroupNorm(2, data_format="NCHW"), (IMAGE.swapaxes(1, 3),)),
    Row("rms_norm", mk.RMSNorm, (X,)),
]  # fmt: skip
