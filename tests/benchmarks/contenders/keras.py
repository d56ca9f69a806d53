"""Keras on JAX: `model.compile` and `model.train_on_batch`, which hands the loss back as a number of Python."""

import functools
import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from tests.benchmarks.contender import Step, Stepwise
from tests.benchmarks.workloads import batchnorm_convnet, convnet, fields, lstm, transformer
from tests.benchmarks.workloads.workload import LEARNING_RATE, Params, Workload

os.environ.setdefault("KERAS_BACKEND", "jax")  # which Keras reads when it is imported, here and in processes from here

import keras
from keras import layers

_ORDER = ("w", "w_i", "w_h", "b", "scale", "offset")  # of the weights of a layer in Keras


class Fields(layers.Layer):
    """See `workloads.fields`."""

    def __init__(self, count: int, **options: Any) -> None:
        super().__init__(**options)
        self.count = count

    def build(self, input_shape: Any) -> None:
        """Makes the weights."""
        shape = (fields.FEATURES, fields.CLASSES)
        self.fields = [self.add_weight(shape=shape, initializer="random_normal") for _ in range(self.count)]

    def call(self, x: Any) -> Any:
        """Returns the logits."""
        return x @ keras.ops.concatenate(self.fields)


class Positions(layers.Layer):
    """Adds learned positions."""

    def build(self, input_shape: Any) -> None:
        """Makes the weight."""
        self.positions = self.add_weight(shape=input_shape[1:], initializer="random_normal")

    def call(self, x: Any) -> Any:
        """Returns the sum."""
        return x + self.positions


class Adam(keras.optimizers.Adam):
    """Adam as published and as everybody else has it: Keras adds its epsilon before it corrects for the first steps."""

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Updates one variable."""
        epsilon, step = self.epsilon, keras.ops.cast(self.iterations + 1, variable.dtype)
        self.epsilon = epsilon * keras.ops.sqrt(1 - self.beta_2**step)
        super().update_step(gradient, variable, learning_rate)
        self.epsilon = epsilon


# The networks. A layer with weights has the name of its hand-written ones.


def mlp(workload: Workload) -> keras.Model:
    """See `workloads.mlp`."""
    *hidden, classes = workload.sizes[1:]
    dense = [layers.Dense(size, "relu", name=f"linear_{index}") for index, size in enumerate(hidden)]
    return keras.Sequential([*dense, layers.Dense(classes, name=f"linear_{len(hidden)}")])


def by_field(workload: Workload) -> keras.Model:
    """See `workloads.fields`."""
    return keras.Sequential([Fields(workload.sizes[0], name="fields")])


def conv_net(workload: Workload) -> keras.Model:
    """See `workloads.convnet`."""
    network = keras.Sequential()
    for index, channels in enumerate(convnet.CHANNELS):
        network.add(layers.Conv2D(channels, convnet.KERNEL, padding="same", activation="relu", name=f"conv_{index}"))
        network.add(layers.MaxPooling2D(2))
    network.add(layers.Flatten())
    network.add(layers.Dense(convnet.CLASSES, name="linear"))
    return network


def batchnorm_conv_net(workload: Workload) -> keras.Model:
    """See `workloads.batchnorm_convnet`; the moving statistics follow Keras's own rule."""
    network, size = keras.Sequential(), batchnorm_convnet.KERNEL
    for index, channels in enumerate(batchnorm_convnet.CHANNELS):
        network.add(layers.Conv2D(channels, size, padding="same", use_bias=False, name=f"conv_{index}"))
        network.add(
            layers.BatchNormalization(
                momentum=batchnorm_convnet.DECAY, epsilon=batchnorm_convnet.EPS, name=f"norm_{index}"
            )
        )
        network.add(layers.ReLU())
        network.add(layers.AveragePooling2D(2))
    network.add(layers.GlobalAveragePooling2D())
    network.add(layers.Dense(convnet.CLASSES, name="linear"))
    return network


def last_output(workload: Workload) -> keras.Model:
    """See `workloads.lstm`."""
    return keras.Sequential([layers.LSTM(lstm.HIDDEN, name="lstm"), layers.Dense(lstm.CLASSES, name="linear")])


def block(x: Any, scope: str) -> Any:
    """Returns the output of a block, whose layers' names begin with `scope`."""
    heads, width = transformer.HEADS, transformer.WIDTH
    normalized = layers.LayerNormalization(epsilon=1e-5, name=f"{scope}_attention_norm")(x)
    attention = layers.MultiHeadAttention(heads, width // heads, name=f"{scope}_attention")
    x = x + attention(normalized, normalized, use_causal_mask=True)
    normalized = layers.LayerNormalization(epsilon=1e-5, name=f"{scope}_feed_forward_norm")(x)
    gelu = functools.partial(keras.activations.gelu, approximate=True)
    hidden = layers.Dense(4 * width, gelu, name=f"{scope}_hidden")(normalized)
    return x + layers.Dense(width, name=f"{scope}_linear")(hidden)


def decoder(workload: Workload) -> keras.Model:
    """See `workloads.transformer`."""
    tokens = keras.Input([transformer.LENGTH], dtype="int32")
    embed = layers.ReversibleEmbedding(transformer.VOCABULARY, transformer.WIDTH, name="embed")
    x = Positions(name="positions")(embed(tokens))
    for index in range(transformer.LAYERS):
        x = block(x, f"block_{index}")
    x = layers.LayerNormalization(epsilon=1e-5, name="final_norm")(x)
    return keras.Model(tokens, embed(x, reverse=True))


# The hand-written weights in Keras's places.


def ordered(layer: Params) -> list[jax.Array]:
    """Returns the arrays of a layer in Keras's order."""
    return [layer[name] for name in _ORDER if name in layer]


def own_layers(params: Params) -> dict[str, list[jax.Array]]:
    """Returns the arrays of layers by name."""
    return {name: ordered(layer) for name, layer in params.items()}


def own_fields(params: Params) -> dict[str, list[jax.Array]]:
    """Returns the arrays of `by_field`."""
    return {"fields": [params[f"field_{index}"] for index in range(len(params))]}


def own_decoder(params: Params) -> dict[str, list[jax.Array]]:
    """Returns the arrays of `decoder`."""
    own = {"embed": [params["embed"]], "positions": [params["positions"]], "final_norm": ordered(params["final_norm"])}
    for index, weights in enumerate(params["blocks"]):
        projections = [ordered(weights["attention"][name]) for name in transformer.PROJECTIONS]
        arrays = own_layers({name: layer for name, layer in weights.items() if name != "attention"})
        arrays["attention"] = [array for pair in projections for array in pair]
        own |= {f"block_{index}_{name}": array for name, array in arrays.items()}
    return own


NETWORKS: dict[str, tuple[Callable[[Workload], Any], Callable[[Params], dict[str, list[jax.Array]]]]] = {
    "mlp": (mlp, own_layers),
    "fields": (by_field, own_fields),
    "convnet": (conv_net, own_layers),
    "batchnorm_convnet": (batchnorm_conv_net, own_layers),
    "lstm": (last_output, own_layers),
    "transformer": (decoder, own_decoder),
}


def make_step(workload: Workload, params: Params | None) -> Step:
    """Returns a compiled step that keeps its state."""
    make_network, own = NETWORKS[workload.kind]
    network, (x, _) = make_network(workload), workload.make_data(1)
    network.build((None, *x.shape[1:]))
    if params is not None:
        for name, arrays in own(params).items():
            places = network.get_layer(name).trainable_variables
            for place, value in zip(places, arrays, strict=True):
                place.assign(np.array(value).reshape(place.shape))  # a copy, since training donates it
    network.compile(
        optimizer=Adam(LEARNING_RATE, epsilon=1e-8),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return network.train_on_batch


CONTENDER = Stepwise("keras", "keras", make_step)
