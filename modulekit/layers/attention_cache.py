"""The cache of a decoder: keys and values of the positions that have come, so that each is computed once.

A cache is an array of a fixed length that is filled from the front. It is a value and no variable: a call takes one and
returns the next one, so that it is the carry of `mk.scan`, and several continuations can start from one beginning.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Integer

from modulekit.core.explain import summarize
from modulekit.core.module import Module
from modulekit.layers.inputs import location


class KeyValueCache(NamedTuple):
    """Keys and values of the positions that have come, from `initial_cache` or from the call before.

    A call writes its own behind them: `keys[:, length : length + time] <- k`, and `length <- length + time`.

    Attributes:
      keys: `[batch, max_length, num_kv_heads, key_size]`.
      values: `[batch, max_length, num_kv_heads, value_size]`.
      length: how many positions have come, an int32 scalar.

    Source: Vaswani et al., Attention is all you need, 2017: in causal attention, later positions change no earlier key.

    >>> import modulekit as mk
    >>> mk.MultiHeadAttention(num_heads=2, key_size=8).initial_cache(batch_size=3, max_length=9).keys.shape
    (3, 9, 2, 8)
    """

    keys: Float[Array, "batch max_length num_kv_heads key_size"]
    values: Float[Array, "batch max_length num_kv_heads value_size"]
    length: Integer[Array, ""]

    @property
    def max_length(self) -> int:
        """The number of positions that there is room for."""
        return int(self.keys.shape[1])


def empty_cache(
    batch_size: int, max_length: int, num_kv_heads: int, key_size: int, value_size: int, dtype: Any
) -> KeyValueCache:
    """Returns a cache that nothing has come to."""
    shape = (batch_size, max_length, num_kv_heads)
    return KeyValueCache(
        jnp.zeros([*shape, key_size], dtype), jnp.zeros([*shape, value_size], dtype), jnp.zeros([], jnp.int32)
    )


def check_cache(module: Module, cache: KeyValueCache, keys: jax.Array, values: jax.Array) -> None:
    """Raises `ValueError` if keys and values of new positions do not fit into a cache.

    Args:
      module: the layer, for the message.
      cache: what came.
      keys: of the new positions, `[batch, time, num_kv_heads, key_size]`.
      values: likewise.
    """
    for stored, new in ((cache.keys, keys), (cache.values, values)):
        expected = (new.shape[0], stored.shape[1], *new.shape[2:])
        if stored.shape != expected or stored.dtype != new.dtype:
            raise ValueError(
                f"{location(module)} expects a cache of {new.dtype}{list(expected)}, got {summarize(stored)}: make "
                f"it with initial_cache({new.shape[0]}, max_length, '{new.dtype}')"
            )
    time = keys.shape[1]
    before = 0 if isinstance(cache.length, jax.core.Tracer) else int(cache.length)
    if before + time > cache.max_length:
        raise ValueError(
            f"{location(module)} has a cache for {cache.max_length} positions, of which {before} have come, got {time} "
            "more: make the cache with a larger max_length"
        )


def extended(cache: KeyValueCache, keys: jax.Array, values: jax.Array) -> KeyValueCache:
    """Returns a cache with new positions behind those that have come."""
    return KeyValueCache(
        lax.dynamic_update_slice_in_dim(cache.keys, keys, cache.length, axis=1),
        lax.dynamic_update_slice_in_dim(cache.values, values, cache.length, axis=1),
        cache.length + keys.shape[1],
    )


def visible(cache: KeyValueCache, time: int) -> Bool[Array, "time max_length"]:
    """Returns which positions of an extended cache each of its last `time` ones sees: itself, and what came before."""
    last = cache.length - time + jnp.arange(time)
    return jnp.arange(cache.max_length) <= last[:, None]


def marked(outputs: jax.Array, cache: KeyValueCache) -> jax.Array:
    """Returns outputs, or NaN where more positions have come than an extended cache has room for."""
    return jnp.where(cache.length <= cache.max_length, outputs, jnp.nan)
