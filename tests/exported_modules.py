"""Modules that tests export: one for each kind of program, and one that does what no program may do."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import modulekit as mk


class Convnet(mk.Module):
    """A convolution, batch statistics, pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.out = mk.Conv2D(4, 3), mk.BatchNorm(True, True), mk.Linear(3)

    def __call__(self, x: Any, is_training: bool) -> Any:
        x = jax.nn.relu(self.norm(self.conv(x), is_training=is_training))
        return self.out(mk.flatten(mk.max_pool(x, 2, 2, "VALID")))


class Recurrent(mk.Module):
    """An LSTM over `[batch, time, features]`, which returns its last state as well."""

    def __init__(self) -> None:
        super().__init__()
        self.core = mk.LSTM(3)

    def __call__(self, x: Any) -> Any:
        return mk.dynamic_unroll(self.core, x.swapaxes(0, 1), self.core.initial_state(x.shape[0]))


class Tied(mk.Module):
    """A layer and its transpose, with methods of several inputs and outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = mk.Linear(3)
        self.decoder = self.encoder.transpose()
        self.scale = mk.Variable(2.0, name="scale")

    def __call__(self, x: Any) -> Any:
        return self.decoder(jnp.tanh(self.encoder(x)))

    def encode(self, x: Any, shift: Any = 0.0, squashed: bool = False) -> Any:
        code = self.encoder(x) + shift
        return {"code": jnp.tanh(code) if squashed else code, "parts": [code, (x, None)]}

    def pair(self, batch: Any) -> Any:
        return self.scale * batch["x"] + batch["y"], batch["x"].shape[0] * self.scale


class Counting(mk.Module):
    """Writes a variable, reads one that is not its own, draws random numbers, makes variables: each on request."""

    stranger = mk.Variable(1.0, name="stranger")

    def __init__(self) -> None:
        super().__init__()
        self.count = mk.Variable(0, name="count")

    def __call__(self, x: Any, is_training: bool) -> Any:
        if is_training:
            self.count.assign_add(1)
        return x * self.count

    def strange(self, x: Any) -> Any:
        return x * self.get()

    def get(self) -> Any:
        return type(self).stranger.value

    def drawn(self, x: Any) -> Any:
        return x + jax.random.normal(mk.next_key(), x.shape)

    def keyed(self, key: Any) -> Any:
        return jax.random.normal(key, [3])


def normal(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32)


def tied() -> Tied:
    model = Tied()
    mk.build(model, [2, 5])
    return model


def trained_convnet() -> Convnet:
    model = Convnet()
    model(normal(4, 8, 8, 2) + 1, is_training=True)
    return model


def transformer() -> Any:
    return mk.nets.Transformer(1, 2, 2, hidden_size=5, vocab_size=7)
