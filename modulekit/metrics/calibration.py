"""Calibration: whether what is said with 80 % confidence is right in 80 % of all cases."""

from typing import Any, NamedTuple, final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer

from modulekit.metrics.classes import classified
from modulekit.metrics.example_mean import counting
from modulekit.metrics.example_metric import ExampleMetric
from modulekit.metrics.total import Total


class CalibrationCurve(NamedTuple):
    """A reliability diagram: of each bin of confidences, `accuracy = hits / examples` beside `confidence = sum / examples`.

    Attributes:
      examples: `[bins]`, how many examples are in each bin.
      confidence: `[bins]`, their mean confidence; NaN in an empty bin.
      accuracy: `[bins]`, the share of them that is right; NaN in an empty bin.

    Source: DeGroot and Fienberg, The Comparison and Evaluation of Forecasters, 1983.

    >>> error = CalibrationError(bins=2)
    >>> error.update(jnp.array([[0.0, 9.0], [0.0, 9.0]]), jnp.array([1, 0]))
    >>> error.curve().accuracy.tolist()
    [nan, 0.5]
    """

    examples: np.ndarray[Any, Any]
    confidence: np.ndarray[Any, Any]
    accuracy: np.ndarray[Any, Any]


@final
class CalibrationError(ExampleMetric):
    """The expected calibration error: `ece = sum_b (n_b / n) |accuracy_b - confidence_b|` over bins of equal width.

    The confidence is the largest probability of softmax(logits); bin b of B holds the confidences in ((b - 1) / B, b / B].

    Args:
      bins: how many bins there are.
      name: the module's name.

    Raises:
      ValueError: bins < 1.

    Source: Guo et al., On Calibration of Modern Neural Networks, 2017, equation 3.

    >>> error = CalibrationError()
    >>> round(float(error(jnp.array([[0.0, 9.0], [0.0, 9.0]]), jnp.array([1, 0]))), 3)
    0.5
    """

    def __init__(self, bins: int = 15, name: str | None = None) -> None:
        if bins < 1:
            raise ValueError(f"bins={bins}: confidences need at least one bin; pass bins >= 1")
        super().__init__(name=name)
        self.bins = bins
        self.confidence = Total([bins])
        self.hits = Total([bins], jnp.int32)
        self.examples = Total([bins], jnp.int32)

    def update(
        self, logits: Float[Array, "batch classes"], labels: Integer[Array, " batch"], mask: Array | None = None
    ) -> None:
        """Adds a batch: `logits` `[batch, classes]`, integer `labels` `[batch]`, and `mask` `[batch]`."""
        logits, labels = classified(logits, labels)
        confidence = jax.nn.softmax(logits).max(axis=1)
        counted = counting(self, mask, logits.shape[0])
        place = jnp.clip(jnp.ceil(confidence * self.bins) - 1, 0, self.bins - 1)
        place = jnp.where(jnp.isnan(confidence), 0, place).astype(jnp.int32)
        inside = (place[:, None] == jnp.arange(self.bins)) & counted[:, None]
        self.confidence.add(jnp.where(inside, confidence[:, None], 0.0))
        self.hits.add(inside & (logits.argmax(axis=1) == labels)[:, None])
        self.examples.add(inside)

    @property
    def value(self) -> Float[Array, ""]:
        """The error so far; NaN before the first example."""
        apart = jnp.abs(self.hits.value - self.confidence.value)  # each is n_b |accuracy_b - confidence_b|
        return apart.sum() / self.examples.value.sum()

    def curve(self) -> CalibrationCurve:
        """Returns the reliability diagram so far."""
        examples = np.asarray(self.examples.value)
        there = np.where(examples > 0, examples, np.nan)
        return CalibrationCurve(
            examples, np.asarray(self.confidence.value) / there, np.asarray(self.hits.value) / there
        )
