"""Haiku: `hk.transform_with_state`, `jax.jit` around a step, with donation, and optax."""

import functools
from collections.abc import Callable
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import optax

from tests.benchmarks.contender import Step, Stepwise
from tests.benchmarks.workloads import batchnorm_convnet, convnet, fields, lstm, transformer
from tests.benchmarks.workloads.workload import LEARNING_RATE, Params, Workload

State = tuple[Params, Params, Any]  # weights, statistics, Adam's slots
WINDOW = (2, 2, 1)  # of a pooling, in which whole numbers draw a warning about `jax.vmap`


# The networks. Where a layer has the name of its hand-written weights, it takes them as they are.


def mlp(workload: Workload, x: jax.Array) -> jax.Array:
    """See `workloads.mlp`."""
    return hk.nets.MLP(workload.sizes[1:], name="mlp")(x)


def by_field(workload: Workload, x: jax.Array) -> jax.Array:
    """See `workloads.fields`."""
    shape, init = [fields.FEATURES, fields.CLASSES], hk.initializers.RandomNormal()
    return x @ jnp.concatenate([hk.get_parameter(f"field_{k}", shape, init=init) for k in range(workload.sizes[0])])


def conv_net(workload: Workload, x: jax.Array) -> jax.Array:
    """See `workloads.convnet`."""
    for index, channels in enumerate(convnet.CHANNELS):
        x = jax.nn.relu(hk.Conv2D(channels, convnet.KERNEL, name=f"conv_{index}")(x))
        x = hk.max_pool(x, WINDOW, WINDOW, "VALID")
    return hk.Linear(convnet.CLASSES, name="linear")(hk.Flatten()(x))


def batchnorm_conv_net(workload: Workload, x: jax.Array) -> jax.Array:
    """See `workloads.batchnorm_convnet`; the variance is the mean square less the square of the mean, and is biased."""
    for index, channels in enumerate(batchnorm_convnet.CHANNELS):
        x = hk.Conv2D(channels, batchnorm_convnet.KERNEL, with_bias=False, name=f"conv_{index}")(x)
        norm = hk.BatchNorm(True, True, batchnorm_convnet.DECAY, batchnorm_convnet.EPS, name=f"norm_{index}")
        x = hk.avg_pool(jax.nn.relu(norm(x, is_training=True)), WINDOW, WINDOW, "VALID")
    return hk.Linear(convnet.CLASSES, name="linear")(x.mean(axis=(1, 2)))


def last_output(workload: Workload, x: jax.Array) -> jax.Array:
    """See `workloads.lstm`."""
    core = hk.LSTM(lstm.HIDDEN)
    outputs, _ = hk.dynamic_unroll(core, x, core.initial_state(len(x)), time_major=False)
    return hk.Linear(lstm.CLASSES, name="linear")(outputs[:, -1])


def layer_norm(name: str, x: jax.Array) -> jax.Array:
    """Returns the features of each position, normalized."""
    return hk.LayerNorm(axis=-1, create_scale=True, create_offset=True, eps=1e-5, name=name)(x)


def block(x: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns the output of a block."""
    heads, width = transformer.HEADS, transformer.WIDTH
    attention = hk.MultiHeadAttention(
        heads, width // heads, w_init=hk.initializers.VarianceScaling(), model_size=width, name="attention"
    )
    normalized = layer_norm("attention_norm", x)
    x = x + attention(normalized, normalized, normalized, mask)
    hidden = jax.nn.gelu(hk.Linear(4 * width, name="hidden")(layer_norm("feed_forward_norm", x)))
    return x + hk.Linear(width, name="linear")(hidden)


def decoder(workload: Workload, tokens: jax.Array) -> jax.Array:
    """See `workloads.transformer`."""
    embed = hk.Embed(transformer.VOCABULARY, transformer.WIDTH, name="embed")
    shape, init = [transformer.LENGTH, transformer.WIDTH], hk.initializers.TruncatedNormal(0.02)
    x = embed(tokens) + hk.get_parameter("positions", shape, init=init)
    mask = jnp.tri(transformer.LENGTH, dtype=bool)[None, None]
    for index in range(transformer.LAYERS):
        with hk.name_scope(f"block_{index}"):
            x = block(x, mask)
    return layer_norm("final_norm", x) @ embed.embeddings.T


# The hand-written weights in Haiku's places.


def own_mlp(params: Params) -> Params:
    """Returns the weights of `mlp`."""
    return {f"mlp/~/{name}": layer for name, layer in params.items()}


def own_fields(params: Params) -> Params:
    """Returns the weights of `by_field`."""
    return {"~": params}


def own_last_output(params: Params) -> Params:
    """Returns the weights of `last_output`: its gates come in another order, and one adds 1 to what is forgotten."""
    gates = params["lstm"]

    def reordered(array: jax.Array) -> jax.Array:
        i, f, g, o = jnp.split(array, 4, axis=-1)
        return jnp.concatenate([i, g, f, o], axis=-1)

    w = reordered(jnp.concatenate([gates["w_i"], gates["w_h"]]))
    b = reordered(gates["b"].at[lstm.HIDDEN : 2 * lstm.HIDDEN].add(-1.0))
    return {"lstm/linear": {"w": w, "b": b}, "linear": params["linear"]}


def own_decoder(params: Params) -> Params:
    """Returns the weights of `decoder`."""
    own: Params = {"~": {"positions": params["positions"]}, "embed": {"embeddings": params["embed"]}}
    for index, weights in enumerate(params["blocks"]):
        layers = {name: layer for name, layer in weights.items() if name != "attention"}
        projections = dict(weights["attention"])
        layers["attention/linear"] = projections.pop("output")
        layers |= {f"attention/{name}": layer for name, layer in projections.items()}
        own |= {f"block_{index}/{name}": layer for name, layer in layers.items()}
    return {**own, "final_norm": params["final_norm"]}


NETWORKS: dict[str, tuple[Callable[[Workload, jax.Array], jax.Array], Callable[[Params], Params]]] = {
    "mlp": (mlp, own_mlp),
    "fields": (by_field, own_fields),
    "convnet": (conv_net, dict),
    "batchnorm_convnet": (batchnorm_conv_net, dict),
    "lstm": (last_output, own_last_output),
    "transformer": (decoder, own_decoder),
}


# The training.


@functools.cache
def transformed(workload: Workload) -> hk.TransformedWithState:
    """Returns the network as a pair of functions."""
    network, _ = NETWORKS[workload.kind]
    return hk.transform_with_state(functools.partial(network, workload))


def make_state(workload: Workload, params: Params | None) -> State:
    """Returns what a step replaces, from copies of these weights on; from its own for None."""
    x, _ = workload.make_data(1)
    network, key = transformed(workload), jax.random.key(0)
    weights, statistics = network.init(key, jnp.asarray(x))
    if params is not None:
        _, own = NETWORKS[workload.kind]
        weights = jax.tree.map(lambda place, value: jnp.array(value).reshape(place.shape), weights, own(params))
    return weights, statistics, optax.adam(LEARNING_RATE).init(weights)


@functools.cache
def jitted(workload: Workload) -> Any:
    """Returns the compiled step, the same function for each call, so that it is compiled once in a process."""
    network, optimizer = transformed(workload), optax.adam(LEARNING_RATE)

    def mean(weights: Params, statistics: Params, x: jax.Array, y: jax.Array) -> tuple[jax.Array, Params]:
        logits, statistics = network.apply(weights, statistics, None, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), statistics

    def update(state: State, x: jax.Array, y: jax.Array) -> tuple[State, jax.Array]:
        weights, statistics, slots = state
        (loss, statistics), gradients = jax.value_and_grad(mean, has_aux=True)(weights, statistics, x, y)
        updates, slots = optimizer.update(gradients, slots, weights)
        return (optax.apply_updates(weights, updates), statistics, slots), loss

    return jax.jit(update, donate_argnums=0)


def make_step(workload: Workload, params: Params | None) -> Step:
    """Returns a compiled step that keeps its state."""
    update, state = jitted(workload), make_state(workload, params)

    def step(x: Any, y: Any) -> jax.Array:
        nonlocal state
        state, loss = update(state, x, y)
        return loss

    return step


def compiled(workload: Workload, x: Any, y: Any) -> jax.stages.Compiled:
    """Returns the compiled program."""
    program: jax.stages.Compiled = jitted(workload).lower(make_state(workload, None), x, y).compile()
    return program


CONTENDER = Stepwise("haiku", "haiku, optax", make_step, compiled=compiled)
