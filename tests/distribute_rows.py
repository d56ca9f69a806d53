"""Rows of the catalogue: layers for several devices, each on one."""

import numpy as np
from catalogue import Row

import modulekit as mk

IMAGE = np.random.default_rng(4).normal(size=(3, 4, 3, 2)).astype(np.float32)


def cross_replica_batch_norm() -> mk.BaseBatchNorm:
    return mk.distribute.CrossReplicaBatchNorm(
        True, True, mk.ExponentialMovingAverage(0.9, name="mean"), mk.ExponentialMovingAverage(0.9, name="variance")
    )


ROWS = [
    Row("cross_replica_batch_norm_in_training", cross_replica_batch_norm, (IMAGE,), {"is_training": True}),
]
