"""`Transformer`: an encoder, a decoder, or both together."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from modulekit.core.arithmetic import array_of
from modulekit.core.explain import summarize
from modulekit.core.module import Module
from modulekit.core.randomness import next_key
from modulekit.initializers import Initializer, TruncatedNormal
from modulekit.layers.attention_cache import KeyValueCache
from modulekit.layers.dropout import dropout
from modulekit.layers.embed import Embed
from modulekit.layers.inputs import location
from modulekit.layers.positions import LearnedPositions, rotary
from modulekit.layers.recurrent_inputs import check_positive
from modulekit.nets.transformer_block import TransformerBlock, layer_norm
from modulekit.transforms.remat import remat

Cache = tuple[KeyValueCache, ...]


class Transformer(Module):
    """Blocks of attention and feed-forward networks, normalized before each, and a last normalization.

    `y = norm(block_n(... block_1(x + p)))`, with learned positions `p` where there are any, and `logits = y e^T` with the
    table `e` of the tokens.

    With a vocabulary it takes tokens and returns logits, by the same table of vectors at both ends, unless `with_logits` is
    False; without, it takes and returns vectors. An encoder has `causal=False`; a decoder that attends to an encoder's
    outputs has `cross_attention=True` and is given them as `memory`.

    Args:
      num_layers: the number of blocks.
      num_heads: the number of heads of each attention.
      key_size: the size of a head.
      hidden_size: the size of the feed-forward networks' hidden layers; `4 model_size` if None.
      model_size: the number of features of a position; `num_heads key_size` if None.
      vocab_size: the number of tokens; None for a network of vectors.
      with_logits: whether to return logits where there is a vocabulary; False for an encoder of tokens.
      causal: whether a position attends to itself and earlier ones only.
      cross_attention: whether each block attends to a memory.
      positions: `"rotary"`, `"learned"`, or None for none.
      max_length: the number of learned positions; with `positions="learned"`, and only then.
      dropout_rate: drops this share of the first vectors and of what each layer adds, in training; None or 0 for none.
      num_kv_heads: the number of heads of keys and values in self-attention; `num_heads` if None.
      activation: of the feed-forward networks.
      remat: whether the blocks' inner values are computed again for the gradient, instead of being kept.
      embed_init: initializer of the vectors of tokens; truncated normal with standard deviation 0.02 if None.
      dtype: of the vectors of tokens, and so of all variables.
      name: the module's name.

    Attributes:
      blocks: the list of blocks.
      embed: the vectors of tokens, with a vocabulary.

    Raises:
      ValueError: a size below 1, unknown positions, or a `max_length` missing or superfluous.

    Sources: Vaswani et al., Attention is all you need, 2017; Radford et al., Language models are unsupervised multitask
    learners, 2019, for the order of normalizations; Press and Wolf, 2016, for the shared table.

    >>> import modulekit as mk
    >>> decoder = mk.nets.Transformer(num_layers=1, num_heads=2, key_size=4, vocab_size=10)
    >>> decoder(jnp.array([[1, 5, 9]])).shape
    (1, 3, 10)
    >>> encoder = mk.nets.Transformer(num_layers=1, num_heads=2, key_size=4, causal=False)
    >>> encoder(jnp.ones([1, 6, 8])).shape
    (1, 6, 8)
    """

    def __init__(
        self,
        num_layers: int,
        num_heads: int,
        key_size: int,
        hidden_size: int | None = None,
        model_size: int | None = None,
        vocab_size: int | None = None,
        with_logits: bool = True,
        causal: bool = True,
        cross_attention: bool = False,
        positions: str | None = "rotary",
        max_length: int | None = None,
        dropout_rate: float | None = None,
        num_kv_heads: int | None = None,
        activation: Callable[[jax.Array], jax.Array] = jax.nn.gelu,
        remat: bool = False,
        embed_init: Initializer | None = None,
        dtype: Any = jnp.float32,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        check_positive(num_layers=num_layers, hidden_size=hidden_size, model_size=model_size, vocab_size=vocab_size)
        _check_positions(positions, max_length)
        self.model_size = num_heads * key_size if model_size is None else model_size
        self.causal = causal
        self.cross_attention = cross_attention
        self.dropout_rate = dropout_rate
        self.remat = remat
        self.dtype = dtype
        self.embed = self.logits = self.positions = None
        if vocab_size is not None:
            init = embed_init or TruncatedNormal(stddev=0.02)
            self.embed = Embed(vocab_size, self.model_size, initializer=init, dtype=dtype)
            self.logits = self.embed.transpose(name="logits") if with_logits else None
        if max_length is not None:
            self.positions = LearnedPositions(max_length, name="positions")
        self.blocks = [
            TransformerBlock(
                num_heads,
                key_size,
                self.model_size,
                4 * self.model_size if hidden_size is None else hidden_size,
                causal,
                cross_attention,
                dropout_rate,
                num_kv_heads,
                rotary if positions == "rotary" else None,
                activation,
                name=f"block_{index}",
            )
            for index in range(num_layers)
        ]
        self.final_norm = layer_norm("final_norm")

    @property
    def needs_is_training(self) -> bool:
        """Whether a call must say if it is training: so with dropout."""
        return self.dropout_rate not in (None, 0)

    def __call__(
        self,
        inputs: Any,
        is_training: bool | None = None,
        mask: Any = None,
        memory: Any = None,
        memory_mask: Any = None,
        cache: Sequence[KeyValueCache] | None = None,
    ) -> Any:
        """Returns logits, `[batch, time, vocab_size]`, or without them vectors, `[batch, time, model_size]`.

        Args:
          inputs: tokens, `[batch, time]`, or without a vocabulary vectors, `[batch, time, model_size]`.
          is_training: whether to drop out; to be given with dropout, and only then.
          mask: which positions one may attend to, boolean, broadcast to `[batch, heads, time, time]`, such as
            `(tokens != padding)[:, None, None, :]`; see `MultiHeadAttention`.
          memory: `[batch, memory_time, features]`; to be given with cross-attention, and only then.
          memory_mask: which parts of it one may attend to, broadcast to `[batch, heads, time, memory_time]`.
          cache: of `initial_cache` or of the call before, for which these are the next positions.

        Returns:
          The outputs; with a cache, `(outputs, next_cache)`.

        Raises:
          ValueError: inputs of another form, `is_training` or `memory` missing or superfluous, or a cache that does not fit.
        """
        self._check_call(is_training, memory, cache)
        net = self._vectors(array_of(inputs), 0 if cache is None else cache[0].length)
        if self.dropout_rate and is_training:
            net = dropout(net, self.dropout_rate, next_key())
        caches: list[Any] = [None] * len(self.blocks) if cache is None else list(cache)
        for index, block in enumerate(self.blocks):
            run = remat(block) if self.remat else block
            net, caches[index] = run(net, bool(is_training), mask, memory, memory_mask, caches[index])
        net = self.final_norm(net)
        outputs = net if self.logits is None else self.logits(net)
        return outputs if cache is None else (outputs, tuple(caches))

    def initial_cache(self, batch_size: int, max_length: int, dtype: Any = None) -> Cache:
        """Returns one cache for each block, that nothing has come to.

        Args:
          batch_size: the number of sequences.
          max_length: the number of positions that there is room for.
          dtype: of the vectors; the network's own if None.

        Raises:
          ValueError: the network is not causal, or has fewer learned positions.

        >>> import modulekit as mk
        >>> decoder = mk.nets.Transformer(num_layers=2, num_heads=2, key_size=4, vocab_size=10)
        >>> cache = decoder.initial_cache(batch_size=1, max_length=8)
        >>> logits, cache = decoder(jnp.array([[1, 5]]), cache=cache)
        >>> logits, cache = decoder(jnp.array([[9]]), cache=cache)
        >>> logits.shape, int(cache[0].length)
        ((1, 1, 10), 3)
        """
        self._check_causal()
        if self.positions is not None and max_length > self.positions.max_length:
            raise ValueError(
                f"{location(self)} has {self.positions.max_length} learned positions, got max_length={max_length}: make the "
                "cache shorter, or the network with a larger max_length"
            )
        dtype = self.dtype if dtype is None else dtype
        return tuple(block.attention.initial_cache(batch_size, max_length, dtype) for block in self.blocks)

    def _vectors(self, inputs: jax.Array, offset: Any) -> jax.Array:
        axes = "[batch, time]" if self.embed is not None else f"[batch, time, {self.model_size}]"
        if inputs.ndim != axes.count(",") + 1 or (self.embed is None and inputs.shape[-1] != self.model_size):
            kind = "vectors" if self.embed is None else "tokens"
            raise ValueError(f"{location(self)} expects {kind} of shape {axes}, got {summarize(inputs)}")
        net = inputs if self.embed is None else self.embed(inputs)
        return net if self.positions is None else self.positions(net, offset)

    def _check_call(self, is_training: Any, memory: Any, cache: Any) -> None:
        if self.needs_is_training and is_training is None:
            raise ValueError("The `is_training` argument is required when dropout is used.")
        if not self.needs_is_training and is_training is not None:
            raise ValueError("The `is_training` argument should only be used with dropout.")
        if self.cross_attention and memory is None:
            raise ValueError(f"{location(self)} attends to a memory: give it, as in decoder(tokens, memory=encoder(x))")
        if not self.cross_attention and memory is not None:
            raise ValueError(f"{location(self)} attends to no memory: make it with cross_attention=True")
        if cache is not None:
            self._check_causal()
            if len(cache) != len(self.blocks):
                raise ValueError(
                    f"{location(self)} expects {len(self.blocks)} caches, one for a block, got {len(cache)}"
                )

    def _check_causal(self) -> None:
        if not self.causal:
            raise ValueError(
                f"{location(self)} is not causal, and so its later positions change what came before: no cache"
            )


def _check_positions(positions: str | None, max_length: int | None) -> None:
    if positions not in ("rotary", "learned", None):
        raise ValueError(f"positions={positions!r} is none of 'rotary', 'learned' and None")
    if (positions == "learned") != (max_length is not None):
        raise ValueError(f"max_length belongs to positions='learned', got {positions=} and {max_length=}")
    check_positive(max_length=max_length)
