"""Rows of the catalogue: whole networks and their blocks, at the smallest sizes that they have."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from catalogue import Row

import modulekit as mk

_generator = np.random.default_rng(5)
IMAGE = _generator.normal(size=(2, 8, 8, 3)).astype(np.float32)
FEATURES = _generator.normal(size=(2, 4, 4, 8)).astype(np.float32)
VECTORS = _generator.normal(size=(5, 3)).astype(np.float32)
NORM = {"create_scale": True, "create_offset": True, "decay_rate": 0.9}


class Quantized(mk.Module):
    """A linear layer, and the nearest entries of a codebook with the codebook's loss."""

    def __init__(self, quantizer: Any) -> None:
        super().__init__()
        self.encode = mk.Linear(3)
        self.quantizer = quantizer

    def __call__(self, x: jax.Array) -> jax.Array:
        result = self.quantizer(self.encode(x), is_training=True)
        return result["quantize"] + result["loss"]


class SmallConvnet(mk.Module):
    """The convolutional network for CIFAR-10, with two of its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.network = mk.nets.Cifar10ConvNet(
            num_classes=3, output_channels=(4, 4), strides=(1, 2), w_init=mk.initializers.TruncatedNormal(stddev=0.2)
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.network(x, is_training=True)["logits"]


def _block(kind: Any, **options: Any) -> Any:
    return kind(channels=8, stride=2, use_projection=True, bn_config=NORM, **options)


ROWS = [
    Row("cifar10_convnet", SmallConvnet, (IMAGE,)),
    Row(
        "resnet",
        lambda: mk.nets.ResNet([1, 0, 0, 0], 3, NORM, resnet_v2=True, channels_per_group_list=(8, 8, 8, 8)),
        (IMAGE,), {"is_training": True},
    ),
    Row("bottleneck_block_v1", lambda: _block(mk.nets.resnet.BottleNeckBlockV1), (FEATURES,), {"is_training": True}),
    Row("vector_quantizer", lambda: Quantized(mk.nets.VectorQuantizer(3, 4, 0.25)), (VECTORS,)),
    Row("vector_quantizer_ema", lambda: Quantized(mk.nets.VectorQuantizerEMA(3, 4, 0.25, 0.9)), (VECTORS,)),
    Row("moving_average_metric", lambda: mk.ExponentialMovingAverage(0.9), (jnp.asarray(VECTORS),), has_weights=False),
]  # fmt: skip
