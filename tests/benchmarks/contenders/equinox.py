"""Equinox: `eqx.filter_jit` around a step, with donation, and optax."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from tests.benchmarks.contender import Stepwise
from tests.benchmarks.workloads import convnet, fields, lstm, transformer
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


class Fields(eqx.Module):
    """See `workloads.fields`."""

    fields: list[jax.Array]

    def __init__(self, workload: Workload) -> None:
        keys, shape = jax.random.split(jax.random.key(0), workload.sizes[0]), [fields.FEATURES, fields.CLASSES]
        self.fields = [jax.random.normal(key, shape) for key in keys]

    @staticmethod
    def own(params: Params) -> list[jax.Array]:
        """Returns the arrays of `params` as the network's leaves."""
        return [params[f"field_{index}"] for index in range(len(params))]

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the logits."""
        return x @ jnp.concatenate(self.fields)


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


class Block(eqx.Module):
    """See `workloads.transformer`."""

    attention_norm: eqx.nn.LayerNorm
    attention: eqx.nn.MultiheadAttention
    feed_forward_norm: eqx.nn.LayerNorm
    hidden: eqx.nn.Linear
    linear: eqx.nn.Linear

    def __init__(self, key: jax.Array) -> None:
        width, keys = transformer.WIDTH, jax.random.split(key, 3)
        biases = {f"use_{name}_bias": True for name in transformer.PROJECTIONS}
        self.attention_norm = eqx.nn.LayerNorm(width)
        self.attention = eqx.nn.MultiheadAttention(transformer.HEADS, width, key=keys[0], **biases)
        self.feed_forward_norm = eqx.nn.LayerNorm(width)
        self.hidden = eqx.nn.Linear(width, 4 * width, key=keys[1])
        self.linear = eqx.nn.Linear(4 * width, width, key=keys[2])

    @staticmethod
    def own(params: Params) -> list[jax.Array]:
        """Returns the arrays of `params` as the block's leaves."""
        projections = [linear_leaves(params["attention"][name]) for name in transformer.PROJECTIONS]
        return [
            *norm_leaves(params["attention_norm"]),
            *[leaf for leaves in projections for leaf in leaves],
            *norm_leaves(params["feed_forward_norm"]),
            *linear_leaves(params["hidden"]),
            *linear_leaves(params["linear"]),
        ]

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the block's output."""
        normalized = jax.vmap(self.attention_norm)(x)
        x = x + self.attention(normalized, normalized, normalized, mask=jnp.tri(len(x), dtype=bool))
        hidden = jax.nn.gelu(jax.vmap(self.hidden)(jax.vmap(self.feed_forward_norm)(x)))
        return x + jax.vmap(self.linear)(hidden)


class Transformer(eqx.Module):
    """See `workloads.transformer`."""

    embed: eqx.nn.Embedding
    positions: jax.Array
    blocks: list[Block]
    final_norm: eqx.nn.LayerNorm

    def __init__(self, workload: Workload) -> None:
        keys, width = jax.random.split(jax.random.key(0), transformer.LAYERS + 2), transformer.WIDTH
        self.embed = eqx.nn.Embedding(transformer.VOCABULARY, width, key=keys[0])
        self.positions = jax.random.normal(keys[1], [transformer.LENGTH, width])
        self.blocks = [Block(key) for key in keys[2:]]
        self.final_norm = eqx.nn.LayerNorm(width)

    @staticmethod
    def own(params: Params) -> list[jax.Array]:
        """Returns the arrays of `params` as the network's leaves."""
        blocks = [leaf for block in params["blocks"] for leaf in Block.own(block)]
        return [params["embed"], params["positions"], *blocks, *norm_leaves(params["final_norm"])]

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Returns the logits."""
        x = jax.vmap(self.embed)(tokens) + self.positions
        for block in self.blocks:
            x = block(x)
        return jax.vmap(self.final_norm)(x) @ self.embed.weight.T


def norm_leaves(norm: Params) -> list[jax.Array]:
    """Returns the arrays of a normalization."""
    return [norm["scale"], norm["offset"]]


def linear_leaves(layer: Params) -> list[jax.Array]:
    """Returns the arrays of a linear layer."""
    return [layer["w"].T, layer["b"]]


NETWORKS = {"mlp": MLP, "fields": Fields, "convnet": ConvNet, "lstm": LSTM, "transformer": Transformer}


def make_network(workload: Workload, params: Params | None) -> Any:
    """Returns the network, with copies of these weights; with its own for None."""
    network = NETWORKS[workload.kind](workload)
    if params is None:
        return network
    arrays, rest = eqx.partition(network, eqx.is_array)
    own = [jnp.array(leaf) for leaf in network.own(params)]
    return eqx.combine(jax.tree.unflatten(jax.tree.structure(arrays), own), rest)


def make_state(workload: Workload, params: Params | None) -> tuple[Any, Any]:
    """Returns network and optimizer's state."""
    network = make_network(workload, params)
    return network, optax.adam(LEARNING_RATE).init(eqx.filter(network, eqx.is_array))


def mean(network: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """Returns the mean cross-entropy of a batch."""
    return optax.softmax_cross_entropy_with_integer_labels(jax.vmap(network)(x), y).mean()


@eqx.filter_jit(donate="all-except-first")
def train(batch: Any, network: Any, slots: Any) -> tuple[Any, Any, jax.Array]:
    """Takes one step; returns network, optimizer's state, and the loss before it."""
    loss, gradients = eqx.filter_value_and_grad(mean)(network, *batch)
    updates, slots = optax.adam(LEARNING_RATE).update(gradients, slots, network)
    return eqx.apply_updates(network, updates), slots, loss


def make_step(workload: Workload, params: Params | None) -> Callable[[Any, Any], jax.Array]:
    """Returns a compiled step that keeps its state."""
    network, slots = make_state(workload, params)

    def step(x: Any, y: Any) -> jax.Array:
        nonlocal network, slots
        network, slots, loss = train((x, y), network, slots)
        return loss

    return step


def compiled(workload: Workload, x: Any, y: Any) -> jax.stages.Compiled:
    """Returns the compiled program."""
    program: jax.stages.Compiled = train.lower((x, y), *make_state(workload, None)).compile().compiled
    return program


CONTENDER = Stepwise("equinox", "equinox, optax", make_step, kinds=frozenset(NETWORKS), compiled=compiled)
