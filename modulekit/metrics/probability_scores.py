"""Proper scores of predicted probabilities: lowest, in expectation, for the true ones."""

from typing import final

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

from modulekit.metrics.classes import classified, is_class, of_label
from modulekit.metrics.example_mean import PerExample


@final
class NegativeLogLikelihood(PerExample):
    """The mean negative log-likelihood of the labels, in nats: `nll = mean_i -log softmax(logits_i)[labels_i]`.

    Args:
      name: the module's name.

    Source: Good, Rational Decisions, 1952; scikit-learn, `log_loss`.

    >>> nll = NegativeLogLikelihood()
    >>> round(float(nll(jnp.zeros([1, 4]), jnp.array([2]))), 4)
    1.3863
    """

    def per_example(self, logits: Float[Array, "batch classes"], labels: Integer[Array, " batch"]) -> jax.Array:
        """Returns that of each example from logits `[batch, classes]` and integer labels `[batch]`; NaN for no class."""
        logits, labels = classified(logits, labels)
        return -of_label(jax.nn.log_softmax(logits), labels)


@final
class BrierScore(PerExample):
    """The mean squared distance of probabilities and labels: `brier = mean_i sum_c (softmax(logits_i)[c] - y_ic)^2`.

    `y_ic = 1 if labels_i == c else 0`. It lies in [0, 2], as in Brier's paper; some define half of it for two classes.

    Args:
      name: the module's name.

    Source: Brier, Verification of Forecasts Expressed in Terms of Probability, 1950, equation 2.

    >>> float(BrierScore()(jnp.zeros([1, 2]), jnp.array([0])))
    0.5
    """

    def per_example(self, logits: Float[Array, "batch classes"], labels: Integer[Array, " batch"]) -> jax.Array:
        """Returns that of each example from logits `[batch, classes]` and integer labels `[batch]`; NaN for no class."""
        logits, labels = classified(logits, labels)
        classes = logits.shape[1]
        distance = jnp.square(jax.nn.softmax(logits) - jax.nn.one_hot(labels, classes)).sum(axis=1)
        return jnp.where(is_class(labels, classes), distance, jnp.nan)
