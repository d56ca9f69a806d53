"""Rows of the catalogue: attention, positions, transformers, and normalized weights."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from catalogue import Row

import modulekit as mk

SEQUENCE = np.random.default_rng(4).normal(size=(2, 3, 4)).astype(np.float32)
TOKENS = np.array([[0, 3, 1], [2, 3, 6]], np.int32)
# To normalize vectors of length 0.02 makes gradients 50 times as large, and their rounding errors with them.
WIDE = mk.initializers.RandomNormal()
MASK = np.array([[True, False, True], [True, True, False], [False, False, False]])


class Decoding(mk.Module):
    """Attention to what came, one position at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = mk.MultiHeadAttention(2, 2, num_kv_heads=1, positions=mk.rotary)

    def __call__(self, x: Any) -> Any:
        cache = self.attention.initial_cache(x.shape[0], x.shape[1], x.dtype)
        steps = jnp.asarray(x).swapaxes(0, 1)[:, :, None]
        return mk.scan(lambda cache, x: self.attention(x, cache=cache)[::-1], cache, steps)[1]


class EncoderDecoder(mk.Module):
    """A decoder of tokens that attends to encoded vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = mk.nets.Transformer(1, 1, 4, hidden_size=5, causal=False, name="encoder")
        self.decoder = mk.nets.Transformer(
            1,
            1,
            4,
            hidden_size=5,
            vocab_size=7,
            cross_attention=True,
            positions="learned",
            max_length=3,
            embed_init=WIDE,
            name="decoder",
        )

    def __call__(self, tokens: Any, x: Any) -> Any:
        return self.decoder(tokens, memory=self.encoder(x))


class Normalized(mk.Module):
    """A linear map with a normalized weight."""

    def __init__(self, norm: Any, **options: Any) -> None:
        super().__init__()
        self.norm = norm
        self.options = options

    @mk.once
    def _initialize(self, x: Any) -> None:
        self.w = mk.Variable(mk.initializers.RandomNormal()([x.shape[-1], 3], x.dtype), name="w")

    def __call__(self, x: Any) -> Any:
        self._initialize(x)
        return x @ self.norm(self.w, **self.options)


ROWS = [
    Row("attention", lambda: mk.MultiHeadAttention(2, 2, value_size=3), (SEQUENCE,), {"is_causal": True}),
    Row(
        "masked_grouped_attention",
        lambda: mk.MultiHeadAttention(4, 2, num_kv_heads=2, positions=mk.rotary),
        (SEQUENCE,),
        {"mask": MASK},
    ),
    Row("decoding", Decoding, (SEQUENCE,)),
    Row("learned_positions", lambda: mk.LearnedPositions(5), (SEQUENCE,)),
    Row("transformer", lambda: mk.nets.Transformer(1, 2, 2, hidden_size=5, vocab_size=7, embed_init=WIDE), (TOKENS,)),
    Row(
        "transformer_with_dropout_and_remat",
        lambda: mk.nets.Transformer(1, 2, 2, hidden_size=5, dropout_rate=0.3, remat=True, causal=False),
        (SEQUENCE,),
        {"is_training": True},
    ),
    Row("encoder_decoder", EncoderDecoder, (TOKENS, SEQUENCE)),
    Row("spectral_norm", lambda: Normalized(mk.SpectralNorm(), is_training=True), (SEQUENCE,)),
    Row(
        "normalized_weight",
        lambda: mk.NormalizedWeight(mk.Linear(3), mk.SpectralNorm()),
        (SEQUENCE,),
        {"is_training": True},
    ),
    Row("weight_norm", lambda: Normalized(mk.WeightNorm()), (SEQUENCE,)),
]
