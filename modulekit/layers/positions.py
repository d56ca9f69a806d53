"""Positions in a sequence: `rotary`, which turns queries and keys, and `LearnedPositions`, which adds a table."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from modulekit.core.arithmetic import array_of
from modulekit.core.explain import summarize
from modulekit.core.module import Module
from modulekit.core.once import once
from modulekit.core.variable import Variable
from modulekit.initializers import Initializer, TruncatedNormal
from modulekit.layers.inputs import location
from modulekit.layers.recurrent_inputs import check_positive


def rotary(
    x: Float[Array, "batch time heads size"], offset: Any = 0, base: float = 10_000.0
) -> Float[Array, "batch time heads size"]:
    """Returns queries or keys turned by angles that grow with the position, so that scores depend on distances only.

    The pair `(x[2i], x[2i + 1])` at position `p` is turned by the angle `a = p / base^(2i / size)`:
    `y[2i] = x[2i] cos(a) - x[2i + 1] sin(a)` and `y[2i + 1] = x[2i] sin(a) + x[2i + 1] cos(a)`. Angles and products are
    taken in float32 at least.

    Args:
      x: `[batch, time, heads, size]`, with an even size.
      offset: the position of the first element of the sequence: a number, or `[batch]` for one for each sequence.
      base: the larger, the longer the distances that are told apart.

    Returns:
      An array of the shape and dtype of `x`.

    Raises:
      ValueError: another rank, or an odd size.

    Source: Su et al., RoFormer: enhanced transformer with rotary position embedding, 2021, equation 34. Weights trained
    with the two halves of a head in the place of neighbors (GPT-NeoX) need their columns permuted.

    >>> rotary(jnp.array([[[[1.0, 0.0]], [[1.0, 0.0]]]]))[0, :, 0].round(3).tolist()
    [[1.0, 0.0], [0.5..., 0.8...]]
    """
    x = array_of(x)
    if x.ndim != 4 or x.shape[-1] % 2:
        raise ValueError(
            f"rotary positions need [batch, time, heads, size] with an even size, got {summarize(x)}: "
            "choose an even key_size"
        )
    size, wide = x.shape[-1], jnp.promote_types(x.dtype, jnp.float32)
    frequencies = base ** (-jnp.arange(0, size, 2, dtype=wide) / size)
    positions = jnp.asarray(array_of(offset), wide)[..., None] + jnp.arange(x.shape[1], dtype=wide)
    angles = (positions[..., None] * frequencies)[..., None, :]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    even, odd = x[..., 0::2], x[..., 1::2]
    turned = jnp.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1)
    return turned.reshape(x.shape).astype(x.dtype)


class LearnedPositions(Module):
    """`y[:, t] = x[:, t] + embeddings[t]`: a trained vector for each position.

    Args:
      max_length: the number of positions.
      initializer: of the vectors; truncated normal with standard deviation 0.02 if None.
      name: the module's name.

    Attributes:
      embeddings: `[max_length, features]`, made on the first call.

    Raises:
      ValueError: a `max_length` below 1.

    Source: Gehring et al., Convolutional sequence to sequence learning, 2017.

    >>> import modulekit as mk
    >>> positions = mk.LearnedPositions(max_length=10)
    >>> positions(jnp.ones([2, 7, 4])).shape
    (2, 7, 4)
    """

    def __init__(self, max_length: int, initializer: Initializer | None = None, name: str | None = None) -> None:
        super().__init__(name=name)
        check_positive(max_length=max_length)
        self.max_length = max_length
        self.initializer = initializer

    @once
    def _initialize(self, inputs: jax.Array) -> None:
        init = self.initializer or TruncatedNormal(stddev=0.02)
        self.embeddings = Variable(init([self.max_length, inputs.shape[-1]], inputs.dtype), name="embeddings")

    def __call__(
        self, inputs: Float[Array, "batch time features"], offset: Any = 0
    ) -> Float[Array, "batch time features"]:
        """Returns the inputs with the vectors of their positions added.

        Args:
          inputs: `[batch, time, features]`.
          offset: the position of the first element of the sequence.

        Returns:
          `[batch, time, features]`. Where the offset is known in compiled code only, a position past the table gives NaN.

        Raises:
          ValueError: another rank, or a position past the table.
        """
        inputs = array_of(inputs)
        if inputs.ndim != 3:
            raise ValueError(
                f"{location(self)} expects inputs of shape [batch, time, features], got {summarize(inputs)}"
            )
        self._initialize(inputs)
        offset, time = array_of(offset), inputs.shape[1]
        first = 0 if isinstance(offset, jax.core.Tracer) else int(offset)
        if first < 0 or first + time > self.max_length:
            raise ValueError(
                f"{location(self)} has vectors for {self.max_length} positions, got {summarize(inputs)} from position "
                f"{first} on: make max_length larger, or the sequence shorter"
            )
        table = self.embeddings.value
        if not isinstance(offset, jax.core.Tracer):
            return inputs + table[first : first + time]
        return inputs + table.at[offset + jnp.arange(time)].get(mode="fill", wrap_negative_indices=False)
