"""Rows of the catalogue: bias, embedding, reshaping, and modules around modules."""

import jax.numpy as jnp
import numpy as np
from catalogue import Row

import modulekit as mk

X = np.random.default_rng(2).normal(size=(4, 5)).astype(np.float32)
STEPS = np.random.default_rng(3).normal(size=(3, 2, 5)).astype(np.float32)
TOKENS = np.array([[0, 3, 1], [2, 3, 6]], np.int32)


class TiedTable(mk.Module):
    """A table of vectors, and the same table as the output."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = mk.Embed(7, 4)
        self.logits = self.embed.transpose(with_bias=True)

    def __call__(self, tokens: jnp.ndarray) -> jnp.ndarray:
        return self.logits(jnp.tanh(self.embed(tokens)))


class Later(mk.Module):
    """A layer whose size depends on the inputs of another one."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = mk.Linear(3, name="encode")
        self.decode = mk.Deferred(self._make_decode)

    def _make_decode(self) -> mk.Linear:
        return mk.Linear(self.encode.input_size, name="decode")

    def __call__(self, x: jnp.ndarray) -> jnp.ndarray:
        return self.decode(jnp.tanh(self.encode(x)))


class Ruled(mk.Module):
    """Gradients by rules of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = mk.Linear(3)

    def __call__(self, x: jnp.ndarray) -> jnp.ndarray:
        return mk.leaky_clip_by_value(mk.scale_gradient(self.linear(x), 0.5), -0.5, 0.5)


ROWS = [
    Row("bias", lambda: mk.Bias(bias_dims=[-1]), (X,)),
    Row("embed", lambda: mk.Embed(7, 3), (TOKENS,)),
    Row("tied_table", TiedTable, (TOKENS,)),
    Row("reshape", lambda: mk.Reshape([5, 1]), (X,), has_weights=False),
    Row("flatten", lambda: mk.Flatten(preserve_dims=2), (STEPS,), has_weights=False),
    Row("identity", mk.Identity, (X,), {"is_training": True}, has_weights=False),
    Row("batch_apply", lambda: mk.BatchApply(mk.Linear(3)), (STEPS,)),
    Row("deferred", Later, (X,)),
    Row("gradient_rules", Ruled, (X,)),
]
