"""Rows of the catalogue: convolutions and pooling."""

import numpy as np
from catalogue import Row

import modulekit as mk

_generator = np.random.default_rng(1)
LINE = _generator.normal(size=(2, 5, 2)).astype(np.float32)
IMAGE = _generator.normal(size=(2, 4, 5, 2)).astype(np.float32)
VOLUME = _generator.normal(size=(2, 2, 3, 3, 2)).astype(np.float32)

ROWS = [
    Row("conv1d", lambda: mk.Conv1D(3, 3, padding=mk.pad.causal, rate=2), (LINE,)),
    Row("conv2d", lambda: mk.Conv2D(3, [3, 2], stride=2), (IMAGE,)),
    Row(
        "conv2d_grouped_channels_first", lambda: mk.Conv2D(4, 2, groups=2, data_format="NCHW"), (IMAGE.swapaxes(1, 3),)
    ),
    Row("conv3d", lambda: mk.Conv3D(2, 2, with_bias=False), (VOLUME,)),
    Row("conv1d_transpose", lambda: mk.Conv1DTranspose(3, 3, output_shape=[9], stride=2), (LINE,)),
    Row("conv2d_transpose", lambda: mk.Conv2DTranspose(3, 2, stride=[1, 2], padding="VALID"), (IMAGE,)),
    Row("conv3d_transpose", lambda: mk.Conv3DTranspose(2, 2, data_format="NCDHW"), (VOLUME.swapaxes(1, 4),)),
    Row("depthwise_conv2d", lambda: mk.DepthwiseConv2D(3, channel_multiplier=2), (IMAGE,)),
    Row("avg_pool", lambda: mk.AvgPool(2, 2, "SAME"), (IMAGE,), has_weights=False),
    Row("max_pool", lambda: mk.MaxPool([2, 3], data_format="NCHW"), (IMAGE.swapaxes(1, 3),), has_weights=False),
    Row(
        "convnet",
        lambda: mk.Sequential([mk.Conv2D(3, 3), mk.MaxPool(2, 2, "SAME"), mk.Flatten(), mk.Linear(2)]),
        (IMAGE,),
    ),
]
