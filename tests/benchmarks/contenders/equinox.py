"""Equinox: `eqx.filter_jit` around a step, with donation, and optax."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from tests.benchmarks.contender import Stepwise
from tests.benchmarks.workloads import convnet, lstm
from tests.benchmarks.workloads.workload import LEARNING_RATE, Params, Workload


class MLP(eqx.Module):
    """See `workloads.mlp`; a network here takes one example, and changes hand-written params to its own by `own`."""

    layers: list[eqx.nn.Linear]

    def __init__(self, workload: Workload) -> None:
        keys = jax.random.split(jax.random.key(0), len(workload.sizes) - 1)
        pairs = zip(keys, workload.sizes, workload.sizes[1:], strict=False)
        self.layers = [eqx.nn.Linear(inputs, outputs, key=key) for key, inputs, outputs in pairs]

    @staticmethod
    def own(params: Params) -> list[jax.Array]:
        """Returns the arrays of `params` as the network's leaves."""
        return [array for index in range(len(params)) for array in linear_leaves(params[f"linear_{index}"])]

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the logits."""
        for layer in self.layers[:-1]:
            x = jax.nn.relu(layer(x))
        return self.layers[-1](x)


class ConvNet(eqx.Module):
    """See `workloads.convnet`; the channels come first, as Equinox wants them."""

    convs: list[eqx.nn.Conv2d]
    pool: eqx.nn.MaxPool2d
    linear: eqx.nn.Linear

    def __init__(self, workload: Workload) -> None:
        keys, (first, second) = jax.random.split(jax.random.key(0), 3), convnet.CHANNELS
        pairs = ((1, first), (first, second))
        self.convs = [
            eqx.nn.Conv2d(*pair, convnet.KERNEL, padding="SAME", key=key)
            for key, pair in zip(keys[:2], pairs, strict=True)
        ]
        self.pool = eqx.nn.MaxPool2d(2, 2)
        self.linear = eqx.nn.Linear(convnet.FEATURES, convnet.CLASSES, key=keys[2])

    @staticmethod
    def own(params: Params) -> list[jax.Array]:
        """Returns the arrays of `params` as the network's leaves; features are flattened with the channels first."""
        convs = [params["conv_0"], params["conv_1"]]
        leaves = [leaf for conv in convs for leaf in (conv["w"].transpose(3, 2, 0, 1), conv["b"][:, None, None])]
        channels = convnet.CHANNELS[-1]
        w = params["linear"]["w"].reshape(-1, channels, convnet.CLASSES).transpose(2, 1, 0)
        return [*leaves, w.reshape(convnet.CLASSES, -1), params["linear"]["b"]]

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the logits."""
        x = x.transpose(2, 0, 1)
        for conv in self.convs:
            x = self.pool(jax.nn.relu(conv(x)))
        return self.linear(x.ravel())


class LSTM(eqx.Module):
    """See `workloads.lstm`."""

    cell: eqx.nn.LSTMCell
    linear: eqx.nn.Linear

    def __init__(self, workload: Workload) -> None:
        keys = jax.random.split(jax.random.key(0), 2)
        self.cell = eqx.nn.LSTMCell(lstm.INPUTS, lstm.HIDDEN, key=keys[0])
        self.linear = eqx.nn.Linear(lstm.HIDDEN, lstm.CLASSES, key=keys[1])

    @staticmethod
    def own(params: Params) -> list[jax.Array]:
        """Returns the arrays of `params` as the network's leaves."""
        gates = params["lstm"]
        return [gates["w_i"].T, gates["w_h"].T, gates["b"], *linear_leaves(params["linear"])]

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the logits."""
        state = jnp.zeros([lstm.HIDDEN]), jnp.zeros([lstm.HIDDEN])
        (hidden, _), _ = jax.lax.scan(lambda state, x: (self.cell(x, state), None), state, x)
        return self.linear(hidden)


def linear_leaves(layer: Params) -> list[jax.Array]:
    """Returns the arrays of a linear layer."""
    return [layer["w"].T, layer["b"]]


NETWORKS = {"mlp": MLP, "convnet": ConvNet, "lstm": LSTM}


def make_network(workload: Workload, params: Params | None) -> Any:
    """Returns the network, with copies of these weights; with its own for None."""
    network = NETWORKS[workload.kind](workload)
    if params is None:
        return network
    arrays, rest = eqx.partition(network, eqx.is_array)
    own = [jnp.array(leaf) for leaf in network.own(params)]
    return eqx.combine(jax.tree.unflatten(jax.tree.structure(arrays), own), rest)


def make_step(workload: Workload, params: Params | None) -> Callable[[Any, Any], jax.Array]:
    """Returns a compiled step that keeps its state."""
    network = make_network(workload, params)
    slots = optax.adam(LEARNING_RATE).init(eqx.filter(network, eqx.is_array))

    def mean(network: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(jax.vmap(network)(x), y).mean()

    @eqx.filter_jit(donate="all-except-first")
    def train(batch: Any, network: Any, slots: Any) -> tuple[Any, Any, jax.Array]:
        loss, gradients = eqx.filter_value_and_grad(mean)(network, *batch)
        updates, slots = optax.adam(LEARNING_RATE).update(gradients, slots, network)
        return eqx.apply_updates(network, updates), slots, loss

    def step(x: Any, y: Any) -> jax.Array:
        nonlocal network, slots
        network, slots, loss = train((x, y), network, slots)
        return loss

    return step


CONTENDER = Stepwise("equinox", "equinox, optax", make_step, kinds=frozenset(NETWORKS))
