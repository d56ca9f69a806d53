"""The share of examples whose label is the class with the largest logit, or one of the largest."""

from typing import final

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

from modulekit.core.explain import summarize
from modulekit.metrics.classes import classified, is_class, of_label
from modulekit.metrics.example_mean import PerExample


@final
class Accuracy(PerExample):
    """The share of examples whose largest logit is the label's, the same for any batch sizes.

    `accuracy = mean_i y_i`, where `y_i = 1 if argmax_c logits[i, c] == labels[i] else 0`.

    Args:
      name: the module's name.

    Source: Flax, `nnx.metrics.Accuracy`.

    >>> accuracy = Accuracy()
    >>> accuracy.update(jnp.array([[0.1, 0.9], [0.8, 0.2]]), jnp.array([1, 1]))
    >>> float(accuracy.value)
    0.5
    """

    def per_example(self, logits: Float[Array, "batch classes"], labels: Integer[Array, " batch"]) -> jax.Array:
        """Returns 1 where the largest of the logits, `[batch, classes]`, is that of the integer label, `[batch]`."""
        return correct(logits, labels)


@final
class TopKAccuracy(PerExample):
    """The share of examples whose label is among the `k` largest logits.

    `accuracy = mean_i y_i`, where `y_i = 1 if #{c: logits[i, c] > logits[i, labels[i]]} < k else 0`; of equal logits, the
    earlier class counts as the larger one, as in `jax.lax.top_k`.

    Args:
      k: how many classes may be ahead of the others, at least 1.
      name: the module's name.

    Raises:
      ValueError: k < 1.

    Source: Russakovsky et al., ImageNet Large Scale Visual Recognition Challenge, 2015, section 4.1.

    >>> accuracy = TopKAccuracy(2)
    >>> accuracy.update(jnp.array([[0.1, 0.7, 0.2], [0.1, 0.7, 0.2]]), jnp.array([2, 0]))
    >>> float(accuracy.value)
    0.5
    """

    def __init__(self, k: int, name: str | None = None) -> None:
        if k < 1:
            raise ValueError(f"k={k}: at least the largest logit must count; pass k >= 1")
        super().__init__(name=name)
        self.k = k

    def per_example(self, logits: Float[Array, "batch classes"], labels: Integer[Array, " batch"]) -> jax.Array:
        """Returns 1 where the label, `[batch]`, is among the k largest logits, `[batch, classes]`; NaN for no class."""
        logits, labels = classified(logits, labels)
        mine, classes = of_label(logits, labels)[:, None], jnp.arange(logits.shape[1])
        later = classes > labels[:, None]
        # Said by what is behind, so that a logit that is no number is ahead of everything and nothing of it.
        behind = (logits < mine) | ((logits == mine) & later) | (classes == labels[:, None])
        ahead = jnp.count_nonzero(~behind, axis=1)
        return jnp.where(is_class(labels, logits.shape[1]), (ahead < self.k).astype(jnp.float32), jnp.nan)


def correct(logits: Float[Array, "batch classes"], labels: Integer[Array, " batch"]) -> Float[Array, " batch"]:
    """Returns 1 for each example whose largest logit is its label's: `y_i = 1 if argmax_c logits[i, c] == labels[i] else 0`.

    Args:
      logits: `[batch, classes]`; of equal ones, the first is the largest.
      labels: `[batch]`, integers.

    Returns:
      `[batch]`.

    Raises:
      ValueError: the shapes do not fit.

    Source: Flax, `nnx.metrics.Accuracy`.

    >>> correct(jnp.array([[0.1, 0.9], [0.8, 0.2]]), jnp.array([1, 1])).tolist()
    [1.0, 0.0]
    """
    logits, labels = jnp.asarray(logits), jnp.asarray(labels)
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(
            f"expected logits [batch, classes] and labels [batch], got {summarize(logits)} and {summarize(labels)}"
        )
    return (logits.argmax(axis=-1) == labels).astype(jnp.float32)
