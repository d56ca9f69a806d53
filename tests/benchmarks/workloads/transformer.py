"""A small decoder that predicts the next token: normalization before each layer, learned positions, a shared table."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import modulekit as mk
from tests.benchmarks.workloads.mlp import linear_weights, make_linear
from tests.benchmarks.workloads.workload import Data, Params, Workload, without_statistics

VOCABULARY, LAYERS, WIDTH, HEADS, LENGTH = 64, 2, 64, 4, 64
PROJECTIONS = ("query", "key", "value", "output")


def make_data(examples: int) -> Data:
    """Returns random tokens, `[examples, LENGTH]`, and the ones after them."""
    tokens = np.random.default_rng(0).integers(VOCABULARY, size=(examples, LENGTH + 1)).astype(np.int32)
    return tokens[:, :-1], tokens[:, 1:]


def make_norm() -> Params:
    """Returns scale and offset."""
    return {"scale": jnp.ones([WIDTH]), "offset": jnp.zeros([WIDTH])}


def make_block(key: jax.Array) -> Params:
    """Returns the weights of a block."""
    keys = iter(jax.random.split(key, len(PROJECTIONS) + 2))
    return {
        "attention_norm": make_norm(),
        "attention": {name: make_linear(next(keys), WIDTH, WIDTH) for name in PROJECTIONS},
        "feed_forward_norm": make_norm(),
        "hidden": make_linear(next(keys), WIDTH, 4 * WIDTH),
        "linear": make_linear(next(keys), 4 * WIDTH, WIDTH),
    }


def make_params() -> Params:
    """Returns the weights."""
    keys = jax.random.split(jax.random.key(0), LAYERS + 2)
    return {
        "embed": 0.02 * jax.random.truncated_normal(keys[0], -2.0, 2.0, (VOCABULARY, WIDTH)),
        "positions": 0.02 * jax.random.truncated_normal(keys[1], -2.0, 2.0, (LENGTH, WIDTH)),
        "blocks": [make_block(key) for key in keys[2:]],
        "final_norm": make_norm(),
    }


def linear(layer: Params, x: jax.Array) -> jax.Array:
    """Returns a linear layer's output."""
    return x @ layer["w"] + layer["b"]


def normalize(norm: Params, x: jax.Array) -> jax.Array:
    """Returns the features of each position, normalized."""
    mean = jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(x - lax.stop_gradient(mean)), axis=-1, keepdims=True)
    return (x - mean) * lax.rsqrt(variance + 1e-5) * norm["scale"] + norm["offset"]


def attend(params: Params, x: jax.Array) -> jax.Array:
    """Returns causal self-attention."""
    query, key, value = (
        linear(params[name], x).reshape(*x.shape[:2], HEADS, WIDTH // HEADS) for name in PROJECTIONS[:3]
    )
    return linear(params["output"], jax.nn.dot_product_attention(query, key, value, is_causal=True).reshape(x.shape))


def forward(params: Params, tokens: jax.Array) -> jax.Array:
    """Returns the logits, `[batch, time, VOCABULARY]`."""
    x = params["embed"][tokens] + params["positions"]
    for block in params["blocks"]:
        x = x + attend(block["attention"], normalize(block["attention_norm"], x))
        hidden = jax.nn.gelu(linear(block["hidden"], normalize(block["feed_forward_norm"], x)))
        x = x + linear(block["linear"], hidden)
    return normalize(params["final_norm"], x) @ params["embed"].T


def make_model() -> mk.nets.Transformer:
    """Returns the network as a module."""
    return mk.nets.Transformer(
        LAYERS, HEADS, WIDTH // HEADS, vocab_size=VOCABULARY, positions="learned", max_length=LENGTH
    )


def norm_weights(norm: mk.LayerNorm) -> Params:
    """Returns the variables of a normalization."""
    return {"scale": norm.scale, "offset": norm.offset}


def weights_of(model: mk.nets.Transformer) -> Params:
    """Returns its variables."""
    blocks = [
        {
            "attention_norm": norm_weights(block.attention_norm),
            "attention": {name: linear_weights(getattr(block.attention, name)) for name in PROJECTIONS},
            "feed_forward_norm": norm_weights(block.feed_forward_norm),
            "hidden": linear_weights(block.feed_forward.layers[0]),
            "linear": linear_weights(block.feed_forward.layers[1]),
        }
        for block in model.blocks
    ]
    return {
        "embed": model.embed.embeddings,
        "positions": model.positions.embeddings,
        "blocks": blocks,
        "final_norm": norm_weights(model.final_norm),
    }


TRANSFORMER = Workload(
    "transformer", "transformer", 16, make_data, make_params, without_statistics(forward), make_model, weights_of
)
