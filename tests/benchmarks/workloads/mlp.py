"""MLPs: a matrix product, a bias and `relu` in each layer but the last, which gives the logits."""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

import modulekit as mk
from tests.benchmarks.workloads.workload import Params, Workload, labeled_noise, without_statistics


def make_linear(key: jax.Array, inputs: int, outputs: int) -> Params:
    """Returns the weights of one layer."""
    w = jax.random.truncated_normal(key, -2.0, 2.0, (inputs, outputs)) / math.sqrt(inputs)
    return {"w": w, "b": jnp.zeros([outputs])}


def make_params(sizes: Sequence[int]) -> Params:
    """Returns the weights of all layers."""
    keys = jax.random.split(jax.random.key(0), len(sizes) - 1)
    pairs = zip(keys, itertools.pairwise(sizes), strict=True)
    return {f"linear_{index}": make_linear(key, *pair) for index, (key, pair) in enumerate(pairs)}


def forward(params: Params, x: jax.Array) -> jax.Array:
    """Returns the logits."""
    for index in range(len(params)):
        layer = params[f"linear_{index}"]
        x = x @ layer["w"] + layer["b"]
        if index < len(params) - 1:
            x = jax.nn.relu(x)
    return x


def loss_of(params: Params, x: jax.Array, y: jax.Array) -> jax.Array:
    """Returns the mean cross-entropy of a batch."""
    return optax.softmax_cross_entropy_with_integer_labels(forward(params, x), y).mean()


def linear_weights(layer: Any) -> Params:
    """Returns the variables of a `Linear`."""
    return {"w": layer.w, "b": layer.b}


def weights_of(model: mk.nets.MLP) -> Params:
    """Returns the variables of all layers."""
    return {layer.name: linear_weights(layer) for layer in model.layers}


def params_of(model: mk.nets.MLP) -> Params:
    """Returns copies of the model's weights, as hand-written JAX keeps them."""
    return jax.tree.map(lambda variable: jnp.array(variable.numpy()), weights_of(model))


def mlp(name: str, sizes: Sequence[int], batch_size: int, is_huge: bool = False) -> Workload:
    """Returns the workload of an MLP with these numbers of inputs, of hidden units, and of classes."""
    return Workload(
        name,
        "mlp",
        batch_size,
        labeled_noise((sizes[0],), sizes[-1]),
        functools.partial(make_params, sizes),
        without_statistics(forward),
        lambda: mk.nets.MLP(sizes[1:]),
        weights_of,
        sizes=tuple(sizes),
        is_huge=is_huge,
    )


def narrow(name: str, depth: int, is_huge: bool = False) -> Workload:
    """Returns the workload of `depth` layers of 16 units, where a step is little else than overhead."""
    return mlp(name, [16] * (depth + 1), 32, is_huge)
