"""A convolutional network: twice a convolution, `relu` and the largest of each 2x2 window; then a linear layer."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import modulekit as mk
from tests.benchmarks.workloads.mlp import linear_weights, make_linear
from tests.benchmarks.workloads.workload import Params, Workload, labeled_noise, without_statistics

IMAGE, CLASSES = (28, 28, 1), 10
CHANNELS, KERNEL = (32, 64), 5
FEATURES = 7 * 7 * CHANNELS[-1]


def make_kernel(key: jax.Array, size: int, inputs: int, outputs: int) -> jax.Array:
    """Returns the weight of a convolution, `[size, size, inputs, outputs]`."""
    shape = (size, size, inputs, outputs)
    return jax.random.truncated_normal(key, -2.0, 2.0, shape) / math.sqrt(size * size * inputs)


def convolve(x: jax.Array, w: jax.Array) -> jax.Array:
    """Returns the convolution of images `[batch, height, width, channels]`, of their size."""
    return lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def make_params() -> Params:
    """Returns the weights of the three layers."""
    keys = jax.random.split(jax.random.key(0), 3)
    params: Params = {"linear": make_linear(keys[2], FEATURES, CLASSES)}
    for index, inputs in enumerate((1, CHANNELS[0])):
        w = make_kernel(keys[index], KERNEL, inputs, CHANNELS[index])
        params[f"conv_{index}"] = {"w": w, "b": jnp.zeros([CHANNELS[index]])}
    return params


def forward(params: Params, x: jax.Array) -> jax.Array:
    """Returns the logits."""
    for index in range(2):
        layer = params[f"conv_{index}"]
        x = jax.nn.relu(convolve(x, layer["w"]) + layer["b"])
        x = lax.reduce_window(x, -np.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    return x.reshape(len(x), -1) @ params["linear"]["w"] + params["linear"]["b"]


def make_model() -> mk.Sequential:
    """Returns the network as a module."""
    blocks = [layer for channels in CHANNELS for layer in (mk.Conv2D(channels, KERNEL), jax.nn.relu, mk.MaxPool(2, 2))]
    return mk.Sequential([*blocks, mk.Flatten(), mk.Linear(CLASSES)])


def weights_of(model: mk.Sequential) -> Params:
    """Returns its variables."""
    layers = {"conv_0": model.layers[0], "conv_1": model.layers[3], "linear": model.layers[-1]}
    return {name: linear_weights(layer) for name, layer in layers.items()}


CONVNET = Workload(
    "convnet",
    "convnet",
    64,
    labeled_noise(IMAGE, CLASSES),
    make_params,
    without_statistics(forward),
    make_model,
    weights_of,
)
