"""`Dropout`."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from modulekit.core.explain import summarize
from modulekit.core.module import Module, allow_empty_variables
from modulekit.core.randomness import RandomStream, next_key


@allow_empty_variables
class Dropout(Module):
    """Sets a random share of the elements to zero while training: `y = x m / (1 - rate)`, `m ~ Bernoulli(1 - rate)`.

    Args:
      rate: the share, from 0 up to but not including 1.
      noise_shape: the shape of `m`, which is broadcast to the input's; the input's own if None.
      seed: gives the layer a random stream of its own, which starts from this number; None draws from the default one.
      name: the module's name.

    Source: Srivastava et al., Dropout: a simple way to prevent neural networks from overfitting, 2014. Sonnet 2,
    `snt.Dropout`.

    >>> import modulekit as mk
    >>> float(mk.Dropout(0.5)(jnp.ones([4]), is_training=False).sum())
    4.0
    """

    def __init__(
        self,
        rate: float,
        noise_shape: Sequence[int] | None = None,
        seed: int | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        self.rate = rate
        self.noise_shape = noise_shape
        self.stream = None if seed is None else RandomStream(seed)

    def __call__(self, x: Float[Array, "*shape"], is_training: bool) -> Float[Array, "*shape"]:
        """Returns `x` with elements dropped, or `x` itself if not `is_training`.

        Args:
          x: `[...]`, of any shape.
          is_training: whether to drop.

        Returns:
          `[...]`, of the shape and dtype of `x`.

        Raises:
          ValueError: in training, if `rate` is not in [0, 1), or `x` is not of a floating-point dtype.
        """
        if not is_training:
            return x
        return dropout(x, self.rate, next_key() if self.stream is None else self.stream.next_key(), self.noise_shape)


def dropout(
    x: Float[Array, "*shape"], rate: float, key: jax.Array, noise_shape: Sequence[int] | None = None
) -> Float[Array, "*shape"]:
    """Returns `x` with a share `rate` of its elements set to zero and the others divided by `1 - rate`.

    Args:
      x: an array of any shape.
      rate: the share, in [0, 1).
      key: a typed JAX key.
      noise_shape: the shape of the mask, broadcast to that of `x`.

    Raises:
      ValueError: `rate` is not in [0, 1), or `x` is not of a floating-point dtype.

    >>> dropout(jnp.ones([2]), 0.0, jax.random.key(0)).tolist()
    [1.0, 1.0]
    """
    if not 0.0 <= rate < 1.0:
        raise ValueError(f"`rate` must be a float in the range [0, 1). Received: rate={rate}")
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"Dropout scales what it keeps and expects floating-point inputs, got {summarize(x)}: convert them, as in "
            "x.astype('float32')"
        )
    shape = x.shape if noise_shape is None else tuple(noise_shape)
    kept = jax.random.bernoulli(key, 1.0 - rate, shape)
    return jnp.where(kept, x / (1.0 - rate), jnp.zeros([], x.dtype))
