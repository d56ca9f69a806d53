"""Losses: functions of predictions and targets that return one value per example, `[batch]`.

Take `.mean()` to train. Values of single examples are kept so that evaluation is exact for any batch size.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Integer, Shaped

from modulekit.core.explain import summarize


def softmax_cross_entropy(
    logits: Float[Array, "batch *rest classes"],
    labels: Integer[Array, "batch *rest"] | Float[Array, "batch *rest classes"],
) -> Float[Array, " batch"]:
    """Returns the cross-entropy of softmax(logits), in nats: `loss = -sum_c p_c log softmax(logits)_c`.

    `p` is the labels' probabilities, or 1 for the class that the label is and 0 for the others.

    Args:
      logits: `[batch, ..., classes]`, unnormalized log-probabilities.
      labels: `[batch, ...]`, integer classes; or `[batch, ..., classes]`, probabilities.

    Returns:
      `[batch]`; the mean over the axes between, if there are any.

    Raises:
      ValueError: the shapes do not fit, or a label is outside `0 .. classes - 1`. Inside compiled code, where values are
        not known, such a label gives NaN.

    Source: Optax, `optax.safe_softmax_cross_entropy` and `optax.softmax_cross_entropy_with_integer_labels`.

    >>> round(float(softmax_cross_entropy(jnp.zeros([1, 4]), jnp.array([2]))[0]), 4)
    1.3863
    """
    logits, labels = jnp.asarray(logits), jnp.asarray(labels)
    if logits.ndim < 2:
        raise ValueError(
            f"softmax_cross_entropy expects logits of shape [batch, ..., classes], got {summarize(logits)}"
        )
    if jnp.issubdtype(labels.dtype, jnp.floating):
        _check_same_shape("softmax_cross_entropy", logits, labels, "; the numbers of classes are integers")
        return _per_example(optax.safe_softmax_cross_entropy(logits, labels))
    if labels.shape != logits.shape[:-1]:
        raise ValueError(
            f"softmax_cross_entropy expects integer labels of shape {list(logits.shape[:-1])} for logits of shape "
            f"{list(logits.shape)}, got {summarize(labels)}"
        )
    classes = logits.shape[-1]
    if not isinstance(labels, jax.core.Tracer):
        check_labels(labels, classes)
    labels = labels.astype(jnp.int32)  # a small integer type may not hold the number of classes
    known = (labels >= 0) & (labels < classes)
    of_labels = jnp.take_along_axis(logits, labels[..., None], axis=-1, mode="clip")[..., 0]
    losses = jax.nn.logsumexp(logits, axis=-1) - of_labels
    return _per_example(jnp.where(known, losses, jnp.nan))


def sigmoid_cross_entropy(
    logits: Float[Array, "batch *features"], targets: Shaped[Array, "batch *features"]
) -> Float[Array, " batch"]:
    """Returns the cross-entropy of `s = sigmoid(logits)`, in nats: `loss = mean(-t log s - (1 - t) log(1 - s))`.

    `t` are the targets; the mean is over all axes but the batch.

    Args:
      logits: `[batch, ...]`, log-odds.
      targets: the same shape, from 0 to 1.

    Returns:
      `[batch]`.

    Raises:
      ValueError: the shapes differ.

    Source: Optax, `optax.sigmoid_binary_cross_entropy`.

    >>> round(float(sigmoid_cross_entropy(jnp.zeros([1, 3]), jnp.array([[0.0, 0.5, 1.0]]))[0]), 4)
    0.6931
    """
    logits, targets = jnp.asarray(logits), jnp.asarray(targets)
    _check_same_shape("sigmoid_cross_entropy", logits, targets)
    return _per_example(optax.sigmoid_binary_cross_entropy(logits, targets.astype(logits.dtype)))


def squared_error(
    predictions: Float[Array, "batch *features"], targets: Shaped[Array, "batch *features"]
) -> Float[Array, " batch"]:
    """Returns the mean squared error, `loss = mean((predictions - targets)^2)`, in the square of the targets' unit.

    The mean is over all axes but the batch.

    Args:
      predictions: `[batch, ...]`.
      targets: the same shape.

    Returns:
      `[batch]`.

    Raises:
      ValueError: the shapes differ. (`[batch, 1]` against `[batch]` would silently broadcast to `[batch, batch]`.)

    Source: Optax, `optax.squared_error`.

    >>> squared_error(jnp.array([[1.0, 2.0]]), jnp.array([[1.0, 4.0]])).tolist()
    [2.0]
    """
    predictions, targets = jnp.asarray(predictions), jnp.asarray(targets)
    _check_same_shape("squared_error", predictions, targets)
    return _per_example(jnp.square(predictions - targets))


def check_labels(labels: Integer[Array, "..."], classes: int) -> None:
    """Raises `ValueError` if a label is outside `0 .. classes - 1`, naming the first one.

    Args:
      labels: integers, `[...]`, of any shape; concrete.
      classes: the number of classes.

    Raises:
      ValueError: a label is out of range.

    >>> check_labels(jnp.array([0, 3]), classes=3)
    Traceback (most recent call last):
        ...
    ValueError: label 3 at index 1 is out of range: 3 classes are 0 .. 2
    """
    values = np.asarray(labels)
    wrong = np.argwhere((values < 0) | (values >= classes))
    if len(wrong):
        index = tuple(wrong[0].tolist())
        place = index[0] if len(index) == 1 else index
        raise ValueError(
            f"label {values[index]} at index {place} is out of range: {classes} classes are 0 .. {classes - 1}"
        )


def _check_same_shape(name: str, first: Array, second: Array, hint: str = "") -> None:
    if first.ndim == 0:
        raise ValueError(f"{name} expects predictions of shape [batch, ...], got {summarize(first)}: add a batch axis")
    if first.shape != second.shape:
        raise ValueError(
            f"{name} expects predictions and targets of one shape, got {summarize(first)} and {summarize(second)}{hint}"
        )


def _per_example(values: Array) -> Array:
    return values.mean(axis=tuple(range(1, values.ndim))) if values.ndim > 1 else values
