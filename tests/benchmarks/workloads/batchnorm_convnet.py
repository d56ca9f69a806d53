"""A convolutional network with batch normalization, whose training moves statistics beside the weights.

The rule is that of `mk.BatchNorm`: `h <- h - (1 - decay) (h - value)` and `average = h / (1 - decay^t)`, for the mean and
for the unbiased variance, with a count of updates for each.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import modulekit as mk
from tests.benchmarks.workloads.convnet import CLASSES, IMAGE, convolve, make_kernel
from tests.benchmarks.workloads.mlp import linear_weights, make_linear
from tests.benchmarks.workloads.workload import Params, Workload, labeled_noise

CHANNELS, KERNEL = (16, 32), 3
DECAY, EPS = 0.999, 1e-5


def make_params() -> Params:
    """Returns the weights."""
    keys = jax.random.split(jax.random.key(0), 3)
    params: Params = {"linear": make_linear(keys[2], CHANNELS[-1], CLASSES)}
    for index, inputs in enumerate((1, CHANNELS[0])):
        outputs = CHANNELS[index]
        params[f"conv_{index}"] = {"w": make_kernel(keys[index], KERNEL, inputs, outputs)}
        params[f"norm_{index}"] = {"scale": jnp.ones([outputs]), "offset": jnp.zeros([outputs])}
    return params


def make_average(channels: int) -> Params:
    """Returns a moving average that has seen nothing yet."""
    return {
        "count": jnp.zeros([], jnp.int32),
        "hidden": jnp.zeros([1, 1, 1, channels]),
        "average": jnp.zeros([1, 1, 1, channels]),
    }


def make_statistics() -> Params:
    """Returns the moving averages of both normalizations."""
    return {
        f"norm_{index}": {"mean": make_average(channels), "variance": make_average(channels)}
        for index, channels in enumerate(CHANNELS)
    }


def moved(average: Params, value: jax.Array) -> Params:
    """Returns a moving average after one more value."""
    count = average["count"] + 1
    hidden = average["hidden"] - (1 - DECAY) * (average["hidden"] - value)
    return {"count": count, "hidden": hidden, "average": hidden / (1 - jnp.float32(DECAY) ** count.astype(jnp.float32))}


def normalize(params: Params, averages: Params, x: jax.Array) -> tuple[jax.Array, Params]:
    """Returns inputs that are normalized over the batch, and the moving averages after it."""
    mean = jnp.mean(x, axis=(0, 1, 2), keepdims=True)
    variance = jnp.mean(jnp.square(x - lax.stop_gradient(mean)), axis=(0, 1, 2), keepdims=True)
    count = x.size // x.shape[-1]
    seen = {"mean": mean, "variance": variance * (count / (count - 1))}
    averages = {name: moved(averages[name], lax.stop_gradient(value)) for name, value in seen.items()}
    return (x - mean) * lax.rsqrt(variance + EPS) * params["scale"] + params["offset"], averages


def forward(params: Params, statistics: Params, x: jax.Array) -> tuple[jax.Array, Params]:
    """Returns the logits, and the statistics after the batch."""
    moved_statistics = {}
    for index in range(2):
        norm = f"norm_{index}"
        x = convolve(x, params[f"conv_{index}"]["w"])
        x, moved_statistics[norm] = normalize(params[norm], statistics[norm], x)
        x = lax.reduce_window(jax.nn.relu(x), np.float32(0), lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID") / 4
    return x.mean(axis=(1, 2)) @ params["linear"]["w"] + params["linear"]["b"], moved_statistics


class BatchNormConvNet(mk.Module):
    """The network as a module."""

    def __init__(self, name: str | None = None) -> None:
        super().__init__(name=name)
        self.convs = [mk.Conv2D(channels, KERNEL, with_bias=False) for channels in CHANNELS]
        self.norms = [mk.BatchNorm(create_scale=True, create_offset=True, decay_rate=DECAY, eps=EPS) for _ in CHANNELS]
        self.linear = mk.Linear(CLASSES)

    def __call__(self, x: Any, is_training: bool) -> jax.Array:
        """Returns the logits."""
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = mk.avg_pool(jax.nn.relu(norm(conv(x), is_training)), 2, 2)
        return self.linear(x.mean(axis=(1, 2)))


def weights_of(model: BatchNormConvNet) -> Params:
    """Returns its trainable variables."""
    weights: Params = {"linear": linear_weights(model.linear)}
    for index, (conv, norm) in enumerate(zip(model.convs, model.norms, strict=True)):
        weights[f"conv_{index}"] = {"w": conv.w}
        weights[f"norm_{index}"] = {"scale": norm.scale, "offset": norm.offset}
    return weights


BATCHNORM_CONVNET = Workload(
    "batchnorm_convnet",
    "batchnorm_convnet",
    64,
    labeled_noise(IMAGE, CLASSES),
    make_params,
    forward,
    BatchNormConvNet,
    weights_of,
    make_statistics=make_statistics,
)
