"""One block of a `Transformer`: attention, attention to a memory, and a feed-forward network."""

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array, Float

from modulekit.core.module import Module
from modulekit.core.randomness import next_key
from modulekit.layers.attention import MultiHeadAttention, Positions
from modulekit.layers.attention_cache import KeyValueCache
from modulekit.layers.dropout import dropout
from modulekit.layers.layer_norm import LayerNorm
from modulekit.nets.mlp import MLP


def layer_norm(name: str) -> LayerNorm:
    """Returns a normalization of each position's features, with scale and offset."""
    return LayerNorm(-1, create_scale=True, create_offset=True, name=name)


class TransformerBlock(Module):
    """`x <- x + f(norm(x))` for each f in turn: self-attention, attention to a memory, and a feed-forward network.

    Args:
      num_heads: of the attention; see `MultiHeadAttention`.
      key_size: the size of a head.
      model_size: the number of features of inputs and outputs.
      hidden_size: the size of the feed-forward network's hidden layer.
      causal: whether a position attends to itself and earlier ones only.
      cross_attention: whether there is attention to a memory.
      dropout_rate: drops this share of what each f adds, in training; None or 0 for none.
      num_kv_heads: the number of heads of keys and values in self-attention.
      positions: a function of queries and keys in self-attention; see `MultiHeadAttention`.
      activation: of the feed-forward network.
      name: the module's name.

    Source: Vaswani et al., 2017; normalization before each f, as in Xiong et al., On layer normalization in the transformer
    architecture, 2020.

    >>> import modulekit as mk, jax.numpy as jnp
    >>> block = mk.nets.TransformerBlock(num_heads=2, key_size=4, model_size=8, hidden_size=32)
    >>> outputs, _ = block(jnp.ones([3, 5, 8]))
    >>> outputs.shape
    (3, 5, 8)
    """

    def __init__(
        self,
        num_heads: int,
        key_size: int,
        model_size: int,
        hidden_size: int,
        causal: bool = True,
        cross_attention: bool = False,
        dropout_rate: float | None = None,
        num_kv_heads: int | None = None,
        positions: Positions | None = None,
        activation: Callable[[jax.Array], jax.Array] = jax.nn.gelu,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        self.causal = causal
        self.dropout_rate = dropout_rate
        self.attention_norm = layer_norm("attention_norm")
        self.attention = MultiHeadAttention(
            num_heads,
            key_size,
            output_size=model_size,
            num_kv_heads=num_kv_heads,
            positions=positions,
            name="attention",
        )
        self.cross_attention = cross_attention
        if cross_attention:
            self.memory_norm = layer_norm("memory_norm")
            self.memory_attention = MultiHeadAttention(
                num_heads, key_size, output_size=model_size, name="memory_attention"
            )
        self.feed_forward_norm = layer_norm("feed_forward_norm")
        self.feed_forward = MLP([hidden_size, model_size], activation=activation, name="feed_forward")

    def __call__(
        self,
        inputs: Float[Array, "batch time model_size"],
        is_training: bool = False,
        mask: Any = None,
        memory: Any = None,
        memory_mask: Any = None,
        cache: KeyValueCache | None = None,
    ) -> tuple[jax.Array, KeyValueCache | None]:
        """Returns `(outputs, next_cache)`; the cache is None where none is given.

        Args:
          inputs: `[batch, time, model_size]`.
          is_training: whether to drop out.
          mask: of the self-attention; see `MultiHeadAttention`.
          memory: `[batch, memory_time, features]`, with cross-attention.
          memory_mask: of the attention to it.
          cache: of the self-attention.
        """
        net = self.attention_norm(inputs)
        if cache is None:
            attended = self.attention(net, mask=mask, is_causal=self.causal)
        else:
            attended, cache = self.attention(net, mask=mask, cache=cache)
        net = inputs + self._dropped(attended, is_training)
        if self.cross_attention:
            attended = self.memory_attention(self.memory_norm(net), memory, mask=memory_mask)
            net = net + self._dropped(attended, is_training)
        return net + self._dropped(self.feed_forward(self.feed_forward_norm(net)), is_training), cache

    def _dropped(self, net: jax.Array, is_training: bool) -> jax.Array:
        return dropout(net, self.dropout_rate, next_key()) if self.dropout_rate and is_training else net
