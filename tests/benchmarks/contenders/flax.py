"""flax: `nnx.jit` around a step, with `nnx.Optimizer`."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from tests.benchmarks.contender import Stepwise
from tests.benchmarks.workloads import batchnorm_convnet, convnet, fields, lstm, transformer
from tests.benchmarks.workloads.workload import LEARNING_RATE, Params, Workload


class MLP(nnx.Module):
    """See `workloads.mlp`; a network here has its weights in the places of the hand-written params as `weights`."""

    def __init__(self, workload: Workload, rngs: nnx.Rngs) -> None:
        pairs = zip(workload.sizes, workload.sizes[1:], strict=False)
        self.layers = nnx.List([nnx.Linear(*pair, rngs=rngs) for pair in pairs])

    @property
    def weights(self) -> Params:
        """The parameters."""
        return {f"linear_{index}": linear_weights(layer) for index, layer in enumerate(self.layers)}

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the logits."""
        for layer in self.layers[:-1]:
            x = nnx.relu(layer(x))
        return self.layers[-1](x)


class Fields(nnx.Module):
    """See `workloads.fields`."""

    def __init__(self, workload: Workload, rngs: nnx.Rngs) -> None:
        shape = [fields.FEATURES, fields.CLASSES]
        self.fields = nnx.List([nnx.Param(jax.random.normal(rngs.params(), shape)) for _ in range(workload.sizes[0])])

    @property
    def weights(self) -> Params:
        """The parameters."""
        return {f"field_{index}": field for index, field in enumerate(self.fields)}

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the logits."""
        return x @ jnp.concatenate([field[...] for field in self.fields])


class ConvNet(nnx.Module):
    """See `workloads.convnet`."""

    def __init__(self, workload: Workload, rngs: nnx.Rngs) -> None:
        size, (first, second) = (convnet.KERNEL, convnet.KERNEL), convnet.CHANNELS
        self.convs = nnx.List([nnx.Conv(1, first, size, rngs=rngs), nnx.Conv(first, second, size, rngs=rngs)])
        self.linear = nnx.Linear(convnet.FEATURES, convnet.CLASSES, rngs=rngs)

    @property
    def weights(self) -> Params:
        """The parameters."""
        convs = {f"conv_{index}": linear_weights(conv) for index, conv in enumerate(self.convs)}
        return {**convs, "linear": linear_weights(self.linear)}

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the logits."""
        for conv in self.convs:
            x = nnx.max_pool(nnx.relu(conv(x)), (2, 2), (2, 2))
        return self.linear(x.reshape(len(x), -1))


class BatchNormConvNet(nnx.Module):
    """See `workloads.batchnorm_convnet`; the moving statistics follow flax's own rule."""

    def __init__(self, workload: Workload, rngs: nnx.Rngs) -> None:
        size, (first, second) = (batchnorm_convnet.KERNEL,) * 2, batchnorm_convnet.CHANNELS
        self.convs = nnx.List(
            [nnx.Conv(*pair, size, use_bias=False, rngs=rngs) for pair in ((1, first), (first, second))]
        )
        self.norms = nnx.List([nnx.BatchNorm(channels, rngs=rngs) for channels in (first, second)])
        self.linear = nnx.Linear(second, convnet.CLASSES, rngs=rngs)

    @property
    def weights(self) -> Params:
        """The parameters."""
        convs = {f"conv_{index}": {"w": conv.kernel} for index, conv in enumerate(self.convs)}
        norms = {f"norm_{index}": norm_weights(norm) for index, norm in enumerate(self.norms)}
        return {**convs, **norms, "linear": linear_weights(self.linear)}

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the logits."""
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = nnx.avg_pool(nnx.relu(norm(conv(x))), (2, 2), (2, 2))
        return self.linear(x.mean(axis=(1, 2)))


class LSTM(nnx.Module):
    """See `workloads.lstm`."""

    def __init__(self, workload: Workload, rngs: nnx.Rngs) -> None:
        self.cell = nnx.OptimizedLSTMCell(lstm.INPUTS, lstm.HIDDEN, rngs=rngs)
        self.unrolled = nnx.RNN(self.cell)
        self.linear = nnx.Linear(lstm.HIDDEN, lstm.CLASSES, rngs=rngs)

    @property
    def weights(self) -> Params:
        """The parameters."""
        cell = self.cell
        gates = {"w_i": cell.dense_i.kernel, "w_h": cell.dense_h.kernel, "b": cell.dense_h.bias}
        return {"lstm": gates, "linear": linear_weights(self.linear)}

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the logits."""
        return self.linear(self.unrolled(x)[:, -1])


class Block(nnx.Module):
    """See `workloads.transformer`."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        width = transformer.WIDTH
        self.attention_norm = nnx.LayerNorm(width, epsilon=1e-5, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(transformer.HEADS, width, decode=False, rngs=rngs)
        self.feed_forward_norm = nnx.LayerNorm(width, epsilon=1e-5, rngs=rngs)
        self.hidden = nnx.Linear(width, 4 * width, rngs=rngs)
        self.linear = nnx.Linear(4 * width, width, rngs=rngs)

    @property
    def weights(self) -> Params:
        """The parameters."""
        attention = self.attention
        projections = {name: getattr(attention, name) for name in transformer.PROJECTIONS[:3]}
        return {
            "attention_norm": norm_weights(self.attention_norm),
            "attention": {
                name: linear_weights(layer) for name, layer in {**projections, "output": attention.out}.items()
            },
            "feed_forward_norm": norm_weights(self.feed_forward_norm),
            "hidden": linear_weights(self.hidden),
            "linear": linear_weights(self.linear),
        }

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """Returns the block's output."""
        x = x + self.attention(self.attention_norm(x), mask=mask)
        return x + self.linear(nnx.gelu(self.hidden(self.feed_forward_norm(x))))


class Transformer(nnx.Module):
    """See `workloads.transformer`."""

    def __init__(self, workload: Workload, rngs: nnx.Rngs) -> None:
        width = transformer.WIDTH
        self.embed = nnx.Embed(transformer.VOCABULARY, width, rngs=rngs)
        self.positions = nnx.Param(jax.random.normal(rngs.params(), [transformer.LENGTH, width]))
        self.blocks = nnx.List([Block(rngs) for _ in range(transformer.LAYERS)])
        self.final_norm = nnx.LayerNorm(width, epsilon=1e-5, rngs=rngs)

    @property
    def weights(self) -> Params:
        """The parameters."""
        return {
            "embed": self.embed.embedding,
            "positions": self.positions,
            "blocks": [block.weights for block in self.blocks],
            "final_norm": norm_weights(self.final_norm),
        }

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Returns the logits."""
        x, mask = self.embed(tokens) + self.positions[...], nnx.make_causal_mask(tokens)
        for block in self.blocks:
            x = block(x, mask)
        return self.embed.attend(self.final_norm(x))


def linear_weights(layer: Any) -> Params:
    """Returns the parameters of a linear layer or a convolution."""
    return {"w": layer.kernel, "b": layer.bias}


def norm_weights(norm: Any) -> Params:
    """Returns the parameters of a normalization."""
    return {"scale": norm.scale, "offset": norm.bias}


NETWORKS = {
    "mlp": MLP,
    "fields": Fields,
    "convnet": ConvNet,
    "batchnorm_convnet": BatchNormConvNet,
    "lstm": LSTM,
    "transformer": Transformer,
}


def make_parts(workload: Workload, params: Params | None) -> tuple[Any, nnx.Optimizer[Any]]:
    """Returns network and optimizer."""
    network = NETWORKS[workload.kind](workload, nnx.Rngs(0))
    if params is not None:
        places = jax.tree.leaves(network.weights, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))
        for place, value in zip(places, jax.tree.leaves(params), strict=True):
            place.set_value(jnp.array(value).reshape(place.shape))
    return network, nnx.Optimizer(network, optax.adam(LEARNING_RATE), wrt=nnx.Param)


def train(network: Any, optimizer: nnx.Optimizer[Any], x: jax.Array, y: jax.Array) -> jax.Array:
    """Takes one step, and returns the loss before it."""

    def mean(network: Any) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(network(x), y).mean()

    loss, gradients = nnx.value_and_grad(mean)(network)
    optimizer.update(network, gradients)
    return loss


def make_step(workload: Workload, params: Params | None) -> Callable[[Any, Any], jax.Array]:
    """Returns a compiled step."""
    (network, optimizer), step = make_parts(workload, params), nnx.jit(train, donate_argnums=(0, 1))
    return lambda x, y: step(network, optimizer, x, y)


def compiled(workload: Workload, x: Any, y: Any) -> jax.stages.Compiled:
    """Returns the compiled program."""
    lowered = nnx.jit(train, donate_argnums=(0, 1)).lower(*make_parts(workload, None), x, y)
    program: jax.stages.Compiled = lowered.compile().compiled
    return program


CONTENDER = Stepwise("flax", "flax.nnx, optax", make_step, compiled=compiled)
