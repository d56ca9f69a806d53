"""Vector quantization: each vector is replaced by the nearest one of a learned set."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from modulekit.core.arithmetic import array_of
from modulekit.core.explain import summarize
from modulekit.core.module import Module
from modulekit.core.variable import Variable
from modulekit.initializers import VarianceScaling
from modulekit.layers.inputs import location
from modulekit.metrics import ExponentialMovingAverage


class VectorQuantizer(Module):
    """`q(x) = e_k`, `k = argmin_j |x - e_j|^2`; the gradient passes straight through.

    The loss is `mean((q - sg(x))^2) + commitment_cost mean((sg(q) - x)^2)`, where `sg` stops the gradient: the first term
    draws the embeddings to the inputs, the second the inputs to their embeddings.

    Args:
      embedding_dim: the length of the vectors.
      num_embeddings: how many there are to choose from.
      commitment_cost: the weight of the second term.
      dtype: of the embeddings.
      name: the module's name.

    Attributes:
      embeddings: `[embedding_dim, num_embeddings]`, trainable.

    Sources: van den Oord, Vinyals and Kavukcuoglu, Neural discrete representation learning, 2017, eq. 1 to 3; Sonnet 2,
    `snt.nets.VectorQuantizer`.

    >>> import modulekit as mk
    >>> found = mk.nets.VectorQuantizer(4, 8, commitment_cost=0.25)(jnp.ones([2, 3, 4]), is_training=True)
    >>> found["quantize"].shape, found["encoding_indices"].shape
    ((2, 3, 4), (2, 3))
    """

    def __init__(
        self,
        embedding_dim: int,
        num_embeddings: int,
        commitment_cost: float,
        dtype: Any = jnp.float32,
        name: str = "vector_quantizer",
    ) -> None:
        super().__init__(name=name)
        self.embedding_dim = embedding_dim
        self.num_embeddings = num_embeddings
        self.commitment_cost = commitment_cost
        self.embeddings = Variable(_first_embeddings(embedding_dim, num_embeddings, dtype), name="embeddings")

    def __call__(self, inputs: Float[Array, "*batch embedding_dim"], is_training: bool) -> dict[str, jax.Array]:
        """Returns the quantized inputs, with the loss and the choices.

        Args:
          inputs: `[..., embedding_dim]`.
          is_training: changes nothing here; see `VectorQuantizerEMA`.

        Returns:
          A dict of `quantize` `[..., embedding_dim]`, `loss` (a scalar), `perplexity` (a scalar, the exponential of the
          entropy of the choices), `encodings` `[vectors, num_embeddings]` (one-hot), `encoding_indices` `[...]`, and
          `distances` `[vectors, num_embeddings]` (squared).

        Raises:
          ValueError: the inputs' last axis is not `embedding_dim` long.
        """
        inputs, found = _choose(self, inputs, self.embeddings.value)
        quantized = self.quantize(found["encoding_indices"])
        to_embeddings = jnp.mean(jnp.square(quantized - lax.stop_gradient(inputs)))
        to_inputs = jnp.mean(jnp.square(lax.stop_gradient(quantized) - inputs))
        loss = to_embeddings + self.commitment_cost * to_inputs
        return {"quantize": _straight_through(inputs, quantized), "loss": loss, **found}

    def quantize(self, encoding_indices: Int[Array, "*batch"]) -> jax.Array:
        """Returns the embeddings of these indices, `[..., embedding_dim]`."""
        return jnp.take(self.embeddings.T, encoding_indices, axis=0)


class VectorQuantizerEMA(Module):
    """`VectorQuantizer`, whose embeddings are moving averages of the vectors that chose them, and not trained by gradient.

    With `n_k` vectors choosing `e_k` and `m_k` their sum, both averaged over time: `e_k = m_k / n'_k`, where
    `n'_k = n (n_k + epsilon) / (n + num_embeddings epsilon)` and `n` is the sum of the `n_k`.

    Args:
      embedding_dim: the length of the vectors.
      num_embeddings: how many there are to choose from.
      commitment_cost: the weight of the loss, `mean((sg(q) - x)^2)`.
      decay: of the moving averages, in [0, 1].
      epsilon: keeps an embedding that nobody chooses finite.
      dtype: of the embeddings.
      name: the module's name.

    Attributes:
      embeddings: `[embedding_dim, num_embeddings]`, not trainable.
      ema_cluster_size: the moving averages of `n_k`.
      ema_dw: those of `m_k`.

    Raises:
      ValueError: `decay` is not in [0, 1].

    Sources: van den Oord et al., 2017, appendix A.1; Sonnet 2, `snt.nets.VectorQuantizerEMA`.

    >>> import modulekit as mk
    >>> quantizer = mk.nets.VectorQuantizerEMA(4, 8, commitment_cost=0.25, decay=0.99)
    >>> quantizer(jnp.ones([2, 3, 4]), is_training=True)["quantize"].shape
    (2, 3, 4)
    """

    def __init__(
        self,
        embedding_dim: int,
        num_embeddings: int,
        commitment_cost: float,
        decay: float,
        epsilon: float = 1e-5,
        dtype: Any = jnp.float32,
        name: str = "vector_quantizer_ema",
    ) -> None:
        super().__init__(name=name)
        if not 0 <= decay <= 1:
            raise ValueError(f"decay must be in range [0, 1]. Received: decay={decay!r}")
        self.embedding_dim = embedding_dim
        self.num_embeddings = num_embeddings
        self.commitment_cost = commitment_cost
        self.decay = decay
        self.epsilon = epsilon
        first = _first_embeddings(embedding_dim, num_embeddings, dtype)
        self.embeddings = Variable(first, trainable=False, name="embeddings")
        self.ema_cluster_size = ExponentialMovingAverage(decay, name="ema_cluster_size")
        self.ema_cluster_size.initialize(jnp.zeros([num_embeddings], dtype))
        self.ema_dw = ExponentialMovingAverage(decay, name="ema_dw")
        self.ema_dw.initialize(first)

    def __call__(self, inputs: Float[Array, "*batch embedding_dim"], is_training: bool) -> dict[str, jax.Array]:
        """Returns the quantized inputs, with the loss and the choices; in training, moves the embeddings afterwards.

        Args:
          inputs: `[..., embedding_dim]`.
          is_training: whether to update the embeddings.

        Returns:
          As `VectorQuantizer`.

        Raises:
          ValueError: the inputs' last axis is not `embedding_dim` long.
        """
        inputs, found = _choose(self, inputs, self.embeddings.value)
        quantized = self.quantize(found["encoding_indices"])
        loss = self.commitment_cost * jnp.mean(jnp.square(lax.stop_gradient(quantized) - inputs))
        if is_training:
            self._move(inputs.reshape(-1, self.embedding_dim), found["encodings"])
        return {"quantize": _straight_through(inputs, quantized), "loss": loss, **found}

    def _move(self, vectors: jax.Array, encodings: jax.Array) -> None:
        sizes = self.ema_cluster_size(encodings.sum(axis=0))
        sums = self.ema_dw(vectors.T @ encodings)
        total = sizes.sum()
        smoothed = (sizes + self.epsilon) / (total + self.num_embeddings * self.epsilon) * total
        self.embeddings.assign(sums / smoothed)

    def quantize(self, encoding_indices: Int[Array, "*batch"]) -> jax.Array:
        """Returns the embeddings of these indices, `[..., embedding_dim]`."""
        return jnp.take(self.embeddings.T, encoding_indices, axis=0)


def _first_embeddings(embedding_dim: int, num_embeddings: int, dtype: Any) -> jax.Array:
    return jnp.asarray(VarianceScaling(distribution="uniform")([embedding_dim, num_embeddings], dtype))


def _choose(module: Any, inputs: Any, embeddings: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns the inputs as an array, and which embedding is nearest to each of their vectors."""
    inputs = array_of(inputs)
    if inputs.ndim < 1 or inputs.shape[-1] != module.embedding_dim:
        raise ValueError(
            f"{location(module)} expects inputs of shape [..., {module.embedding_dim}], got {summarize(inputs)}"
        )
    vectors = inputs.reshape(-1, module.embedding_dim)
    squares = jnp.square(vectors).sum(axis=1, keepdims=True), jnp.square(embeddings).sum(axis=0, keepdims=True)
    distances = squares[0] - 2 * (vectors @ embeddings) + squares[1]
    indices = jnp.argmin(distances, axis=1)
    encodings = jax.nn.one_hot(indices, module.num_embeddings, dtype=distances.dtype)
    shares = encodings.mean(axis=0)
    return inputs, {
        "perplexity": jnp.exp(-(shares * jnp.log(shares + 1e-10)).sum()),
        "encodings": encodings,
        "encoding_indices": indices.reshape(inputs.shape[:-1]),
        "distances": distances,
    }


def _straight_through(inputs: jax.Array, quantized: jax.Array) -> jax.Array:
    """Returns `quantized`, with the gradient of the identity in `inputs`."""
    return inputs + lax.stop_gradient(quantized - inputs)
