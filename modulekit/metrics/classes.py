"""What metrics of classification ask of their arguments."""

import jax
import jax.numpy as jnp

from modulekit.core.arithmetic import value_of
from modulekit.core.explain import summarize


def classified(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns logits `[batch, classes]` in float32 and labels `[batch]` in int32; raises `ValueError` for others."""
    logits, labels = jnp.asarray(value_of(logits)), jnp.asarray(value_of(labels))
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(
            "expected logits [batch, classes] and integer labels [batch], got "
            f"{summarize(logits)} and {summarize(labels)}"
        )
    return logits.astype(jnp.float32), labels.astype(jnp.int32)


def of_label(values: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns, of values `[batch, classes]`, the label's one, `[batch]`: NaN where the label is no class."""
    known = is_class(labels, values.shape[1])
    taken = jnp.take_along_axis(values, jnp.where(known, labels, 0)[:, None], axis=1)[:, 0]
    return jnp.where(known, taken, jnp.nan)


def is_class(labels: jax.Array, classes: int) -> jax.Array:
    """Returns whether each label, `[batch]`, is in `0 .. classes - 1`."""
    return (labels >= 0) & (labels < classes)
