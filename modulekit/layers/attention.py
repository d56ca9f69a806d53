"""`MultiHeadAttention`, with masks, groups of heads that share keys, and a cache for decoding."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from modulekit.core.arithmetic import array_of
from modulekit.core.explain import summarize
from modulekit.core.module import Module
from modulekit.core.once import once
from modulekit.initializers import Initializer
from modulekit.layers import attention_cache
from modulekit.layers.attention_cache import KeyValueCache
from modulekit.layers.inputs import location
from modulekit.layers.linear import Linear
from modulekit.layers.recurrent_inputs import check_positive

Positions = Callable[[jax.Array, Any], jax.Array]


class MultiHeadAttention(Module):
    """Each query takes a mean of values, weighted by how well their keys fit; several times side by side.

    With `q_h = x w_q + b_q` the columns of head `h`, and keys `k_h` and values `v_h` likewise:

        head_h = softmax(q_h k_h^T / sqrt(key_size)) v_h
        y = [head_1, ..., head_n] w_o + b_o

    Args:
      num_heads: the number of heads.
      key_size: the size of a head's queries and keys.
      value_size: the size of a head's values; `key_size` if None.
      output_size: the number of outputs; the queries' number of features if None.
      with_bias: whether the four projections have biases.
      w_init: initializer of their weights; see `Linear`.
      b_init: initializer of their biases; see `Linear`.
      num_kv_heads: the number of heads of keys and values, each of which `num_heads / num_kv_heads` heads share in turn;
        `num_heads` if None.
      positions: a function `(x, offset)` applied to queries and keys, `[batch, time, heads, key_size]`, such as
        `mk.rotary`; None for none.
      name: the module's name.

    Attributes:
      query: the projection of queries, a `Linear`; likewise `key` and `value`.
      output: the projection of the heads, made on the first call.

    Raises:
      ValueError: a size below 1, heads that cannot be shared evenly, or `b_init` without biases.

    Sources: Vaswani et al., Attention is all you need, 2017; Ainslie et al., GQA, 2023. The computation is that of
    `jax.nn.dot_product_attention`, whose softmax is in float32 for every dtype; that of float16 is in float32 throughout.

    >>> import modulekit as mk
    >>> attention = mk.MultiHeadAttention(num_heads=2, key_size=8)
    >>> attention(jnp.ones([3, 5, 16]), is_causal=True).shape
    (3, 5, 16)
    """

    def __init__(
        self,
        num_heads: int,
        key_size: int,
        value_size: int | None = None,
        output_size: int | None = None,
        with_bias: bool = True,
        w_init: Initializer | None = None,
        b_init: Initializer | None = None,
        num_kv_heads: int | None = None,
        positions: Positions | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        check_positive(
            num_heads=num_heads,
            key_size=key_size,
            value_size=value_size,
            output_size=output_size,
            num_kv_heads=num_kv_heads,
        )
        self.num_heads = num_heads
        self.key_size = key_size
        self.value_size = key_size if value_size is None else value_size
        self.output_size = output_size
        self.with_bias = with_bias
        self.w_init = w_init
        self.b_init = b_init
        self.num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        self.positions = positions
        if num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads={num_heads} is no multiple of num_kv_heads={num_kv_heads}")
        self.query = self._projection(num_heads * key_size, "query")
        self.key = self._projection(self.num_kv_heads * key_size, "key")
        self.value = self._projection(self.num_kv_heads * self.value_size, "value")

    def _projection(self, size: int, name: str) -> Linear:
        return Linear(size, self.with_bias, self.w_init, self.b_init, name=name)

    @once
    def _initialize(self, query: jax.Array) -> None:
        self.output = self._projection(self.output_size or query.shape[-1], "output")

    def __call__(
        self,
        query: Float[Array, "batch query_time query_features"],
        key: Float[Array, "batch key_time key_features"] | None = None,
        value: Float[Array, "batch key_time value_features"] | None = None,
        mask: Bool[Array, "..."] | None = None,
        is_causal: bool = False,
        cache: KeyValueCache | None = None,
    ) -> Any:
        """Returns what each query attends to.

        Args:
          query: `[batch, query_time, features]`.
          key: `[batch, key_time, features]`; the query if None: self-attention.
          value: `[batch, key_time, features]`; the key if None.
          mask: which keys a query may attend to, boolean, broadcast to `[batch, heads, query_time, key_time]` as in NumPy:
            `[query_time, key_time]` is one mask for all, and `lengths[:, None, None, :]` one for each sequence. A query
            with no key at all gets zeros, so that its output is the output's bias.
          is_causal: whether a query attends to its own and earlier positions only. It needs as many keys as queries.
          cache: keys and values of earlier positions, for which these are the next ones, in causal self-attention. The key
            time of `mask` is then the cache's `max_length`.

        Returns:
          `[batch, query_time, output_size]`; with a cache, `(outputs, next_cache)`. Where compiled code is given more
          positions than a cache has room for, the outputs are NaN from there on.

        Raises:
          ValueError: another rank, batch or time than expected; a mask that is not boolean or does not fit; a causal call
            with another number of keys; a cache of another form, that is full, or together with a key.
        """
        query = array_of(query)
        key = query if key is None else array_of(key)
        value = key if value is None else array_of(value)
        self._check(query, key, value, is_causal)
        if cache is not None and (key is not query or value is not query):
            raise ValueError(f"{location(self)} takes a cache in self-attention only: give no key and no value")
        self._initialize(query)
        queries, keys, values = self._projected(query, key, value, 0 if cache is None else cache.length)
        if mask is not None:
            key_time = keys.shape[1] if cache is None else cache.max_length
            mask = self._checked_mask(mask, (*query.shape[:1], self.num_heads, query.shape[1], key_time))
        if cache is None:
            return self.output(_joined(attended(queries, keys, values, mask, is_causal)))
        attention_cache.check_cache(self, cache, keys, values)
        cache = attention_cache.extended(cache, keys, values)
        seen = attention_cache.visible(cache, query.shape[1])[None, None]
        heads = attended(queries, cache.keys, cache.values, seen if mask is None else seen & mask)
        return attention_cache.marked(self.output(_joined(heads)), cache), cache

    def initial_cache(self, batch_size: int, max_length: int, dtype: Any = jnp.float32) -> KeyValueCache:
        """Returns a cache that nothing has come to.

        Args:
          batch_size: the number of sequences.
          max_length: the number of positions that there is room for.
          dtype: of keys and values, that of the layer's.

        Raises:
          ValueError: a size below 1.

        >>> import modulekit as mk
        >>> attention = mk.MultiHeadAttention(num_heads=2, key_size=8)
        >>> outputs, cache = attention(jnp.ones([3, 5, 16]), cache=attention.initial_cache(3, max_length=9))
        >>> outputs.shape, int(cache.length)
        ((3, 5, 16), 5)
        """
        check_positive(batch_size=batch_size, max_length=max_length)
        return attention_cache.empty_cache(
            batch_size, max_length, self.num_kv_heads, self.key_size, self.value_size, dtype
        )

    def _projected(self, query: Any, key: Any, value: Any, offset: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
        queries = _split(self.query(query), self.num_heads)
        keys = _split(self.key(key), self.num_kv_heads)
        values = _split(self.value(value), self.num_kv_heads)
        if self.positions is not None:
            queries, keys = self.positions(queries, offset), self.positions(keys, offset)
        dtype = jnp.result_type(queries, keys, values)
        return queries.astype(dtype), keys.astype(dtype), values.astype(dtype)

    def _check(self, query: jax.Array, key: jax.Array, value: jax.Array, is_causal: bool) -> None:
        for name, array in (("query", query), ("key", key), ("value", value)):
            if array.ndim != 3 or array.shape[0] != query.shape[0]:
                raise ValueError(
                    f"{location(self)} expects {name} of shape [batch, time, features], with one batch for query, key and "
                    f"value, got {summarize(array)} with a query {summarize(query)}"
                )
        if value.shape[1] != key.shape[1]:
            raise ValueError(
                f"{location(self)} expects a value for each key, got {summarize(value)} with a key {summarize(key)}"
            )
        if is_causal and key.shape[1] != query.shape[1]:
            raise ValueError(
                f"{location(self)}: is_causal needs as many keys as queries, got {summarize(key)} with a query "
                f"{summarize(query)}: say by a mask which keys a query may attend to, or decode with a cache"
            )

    def _checked_mask(self, mask: Any, shape: tuple[int, ...]) -> jax.Array:
        mask = array_of(mask)
        if mask.dtype != jnp.bool_:
            raise ValueError(
                f"{location(self)} expects a boolean mask, True where a query may attend to a key, got {summarize(mask)}: "
                "compare, as in mask > 0"
            )
        try:
            fits = jnp.broadcast_shapes(mask.shape, shape) == shape
        except ValueError:
            fits = False
        if not fits:
            raise ValueError(
                f"{location(self)} expects a mask that broadcasts to [batch, heads, query_time, key_time] = {list(shape)}, "
                f"got {summarize(mask)}: give it all four axes, of size 1 where they share"
            )
        return mask.reshape((1,) * (4 - mask.ndim) + mask.shape)


def attended(
    queries: Float[Array, "batch query_time heads key_size"],
    keys: Float[Array, "batch key_time kv_heads key_size"],
    values: Float[Array, "batch key_time kv_heads value_size"],
    mask: Bool[Array, "_ _ _ _"] | None = None,
    is_causal: bool = False,
) -> Float[Array, "batch query_time heads value_size"]:
    """Returns `softmax(q k^T / sqrt(key_size)) v` for each head, and zeros where a query may attend to nothing.

    Args:
      queries: `[batch, query_time, heads, key_size]`.
      keys: `[batch, key_time, kv_heads, key_size]`.
      values: `[batch, key_time, kv_heads, value_size]`.
      mask: boolean, four axes that broadcast to `[batch, heads, query_time, key_time]`.
      is_causal: whether a query attends to its own and earlier positions only.
    """
    if mask is not None and is_causal:
        mask, is_causal = mask & jnp.tri(queries.shape[1], dtype=bool), False
    dtype, key_size, value_size = queries.dtype, keys.shape[-1], values.shape[-1]
    if dtype == jnp.float16:  # JAX asks for a product that neither CPUs nor TPUs have, and compiling it fails there
        queries, keys, values = (array.astype(jnp.float32) for array in (queries, keys, values))
    size = max(key_size, value_size)  # JAX wants one size of keys and values; zeros change neither scores nor sums
    heads = jax.nn.dot_product_attention(
        _padded(queries, size),
        _padded(keys, size),
        _padded(values, size),
        mask=mask,
        scale=1 / math.sqrt(key_size),
        is_causal=is_causal,
    )[..., :value_size].astype(dtype)
    if mask is None:
        return heads
    return jnp.where(mask.any(axis=-1).swapaxes(1, 2)[..., None], heads, 0)


def _padded(array: jax.Array, size: int) -> jax.Array:
    missing = size - array.shape[-1]
    return jnp.pad(array, [(0, 0)] * 3 + [(0, missing)]) if missing else array


def _split(array: jax.Array, heads: int) -> jax.Array:
    return array.reshape(*array.shape[:2], heads, array.shape[-1] // heads)


def _joined(heads: jax.Array) -> jax.Array:
    return heads.reshape(*heads.shape[:2], heads.shape[2] * heads.shape[3])
