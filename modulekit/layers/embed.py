"""`Embed`: a table of vectors, and its transpose."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer, Num

from modulekit.core import births
from modulekit.core.arithmetic import ArrayLike, value_of
from modulekit.core.explain import summarize
from modulekit.core.module import Module
from modulekit.core.variable import Variable
from modulekit.initializers import Initializer, TruncatedNormal
from modulekit.layers.convolution import bias_initializer, check_positive
from modulekit.layers.inputs import check_input, location
from modulekit.layers.linear import Reference


class Embed(Module):
    """`y[..., :] = embeddings[x[...], :]`: a vector for each token.

    Args:
      vocab_size: the number of tokens.
      embed_dim: the size of a vector; `6 vocab_size^(1/4)`, rounded, if None.
      existing_vocab: the vectors, `[vocab_size, embed_dim]`, in place of `vocab_size`, `embed_dim` and `initializer`.
      densify_gradients: without effect, as gradients are dense in JAX.
      initializer: of the vectors; truncated normal with standard deviation 1 if None.
      trainable: whether the vectors are trained.
      dtype: of the vectors.
      name: the module's name.

    Attributes:
      embeddings: `[vocab_size, embed_dim]`, made by the constructor.

    Raises:
      ValueError: neither `vocab_size` nor `existing_vocab`, or more than one of them; a size below 1; an `existing_vocab`
        that is no matrix.

    Source: Sonnet 2, `snt.Embed`. `transpose` is an addition.

    >>> import modulekit as mk
    >>> embed = mk.Embed(vocab_size=100, embed_dim=8)
    >>> embed(jnp.array([[1, 5, 99]])).shape
    (1, 3, 8)
    """

    def __init__(
        self,
        vocab_size: int | None = None,
        embed_dim: int | None = None,
        existing_vocab: ArrayLike | None = None,
        densify_gradients: bool = False,
        initializer: Initializer | None = None,
        trainable: bool = True,
        dtype: Any = jnp.float32,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        if existing_vocab is not None and (vocab_size or embed_dim or initializer):
            raise ValueError(
                "If `existing_vocab` is provided, none of `vocab_size`, `embedding_dim`, `initializer` are needed. "
                f"Received: {vocab_size=}, {embed_dim=}, {initializer=}"
            )

        def drawn() -> Variable:
            vocab = _drawn_vocab(vocab_size, embed_dim, initializer, dtype)
            return Variable(vocab, trainable=trainable, name="embeddings")

        if existing_vocab is None:
            made: Variable = births.run(drawn, (), {})
        else:
            vocab = jnp.asarray(value_of(existing_vocab), dtype)
            if vocab.ndim != 2:
                raise ValueError(f"existing_vocab must be [vocab_size, embed_dim], got {summarize(vocab)}")
            made = Variable(vocab, trainable=trainable, name="embeddings")
        self.embeddings = made
        self.vocab_size, self.embed_dim = made.shape
        self.densify_gradients = densify_gradients

    def __call__(self, inputs: Integer[Array, "*shape"]) -> Num[Array, "*shape embed_dim"]:
        """Returns the vector of each token.

        Args:
          inputs: tokens, integers in `[0, vocab_size)`, of any shape.

        Returns:
          `[..., embed_dim]`. In compiled code, where tokens cannot be looked at, one out of range gives NaN.

        Raises:
          ValueError: tokens that are no integers or, outside of compiled code, out of range.
        """
        inputs = jnp.asarray(value_of(inputs))
        if not jnp.issubdtype(inputs.dtype, jnp.integer):
            raise ValueError(
                f"{location(self)} expects integers, got {summarize(inputs)}: convert them, as in x.astype('int32')"
            )
        if not isinstance(inputs, jax.core.Tracer):
            self._check_range(np.asarray(inputs))
        return self.embeddings.value.at[inputs].get(mode="fill", wrap_negative_indices=False)

    def _check_range(self, inputs: Any) -> None:
        strangers = inputs[(inputs < 0) | (inputs >= self.vocab_size)]
        if strangers.size:
            raise ValueError(
                f"{location(self)} has vectors for tokens from 0 to {self.vocab_size - 1}, got {strangers[0]} among "
                f"{summarize(inputs)}: check the vocabulary, or make vocab_size larger"
            )

    def transpose(
        self, with_bias: bool = False, b_init: Initializer | None = None, name: str | None = None
    ) -> "TransposedEmbed":
        """Returns a module that turns vectors into one number for each token, by the same `embeddings`.

        Args:
          with_bias: whether there is a `b`, the new module's own.
          b_init: initializer of `b`; zeros if None.
          name: the new module's name; this one's with `_transpose` if None.

        >>> import modulekit as mk
        >>> embed = mk.Embed(100, 8)
        >>> logits = embed.transpose()
        >>> logits(embed(jnp.array([1, 5]))).shape, logits.embeddings is embed.embeddings
        ((2, 100), True)
        """
        return TransposedEmbed(self, with_bias, b_init, name=name or f"{self.name}_transpose")


class TransposedEmbed(Module):
    """`y = x embeddings^T + b`, with the `embeddings` of an `Embed`: one variable, one gradient, in two places.

    Args:
      embed: the layer whose vectors are used.
      with_bias: whether there is a `b`, which is this module's own.
      b_init: initializer of `b`; zeros if None.
      name: the module's name.

    Attributes:
      embeddings: the variable of `embed`, `[vocab_size, embed_dim]`.
      b: `[vocab_size]`.

    Raises:
      ValueError: `b_init` without a bias.

    Source: Press, Wolf, Using the output embedding to improve language models, 2016.
    """

    _views = {"embeddings": "transposed"}

    def __init__(
        self,
        embed: Embed,
        with_bias: bool = False,
        b_init: Initializer | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        self.shared = Reference(embed)
        self.with_bias = with_bias
        self.b_init = bias_initializer(with_bias, b_init)
        self.embeddings = embed.embeddings
        if self.b_init is not None:
            self.b = Variable(self.b_init([embed.vocab_size], self.embeddings.dtype), name="b")

    def __call__(self, inputs: Float[Array, "batch *rest embed_dim"]) -> Float[Array, "batch *rest vocab_size"]:
        """Returns `inputs embeddings^T + b`.

        Args:
          inputs: `[batch, ..., embed_dim]`.

        Returns:
          `[batch, ..., vocab_size]`.

        Raises:
          ValueError: a rank below 2, another `embed_dim`, or an integer dtype.
        """
        check_input(self, inputs, self.embeddings.shape[1])
        outputs = jnp.asarray(inputs) @ self.embeddings.T
        return outputs + self.b if self.with_bias else outputs

    def transpose(self) -> Embed:
        """Returns the layer whose vectors this one uses."""
        embed: Embed = self.shared.module
        return embed


def _drawn_vocab(
    vocab_size: int | None, embed_dim: int | None, initializer: Initializer | None, dtype: Any
) -> jax.Array:
    if vocab_size is None:
        raise ValueError("Must provide one of vocab_size or existing_vocab.")
    if embed_dim is None:
        embed_dim = embedding_dim(vocab_size)
    check_positive(vocab_size=vocab_size, embed_dim=embed_dim)
    return (initializer or TruncatedNormal())([vocab_size, embed_dim], dtype)


def embedding_dim(vocab_size: int) -> int:
    """Returns a size of vectors for so many tokens, by the rule of thumb `6 vocab_size^(1/4)`.

    Raises:
      ValueError: `vocab_size` is below 1.

    >>> embedding_dim(10_000)
    60
    """
    if vocab_size < 1:
        raise ValueError(f"Invalid vocab_size {vocab_size}. Give the number of tokens, 1 or more")
    return round(6.0 * math.sqrt(math.sqrt(vocab_size)))
