"""Whether scores put the examples of a class before all others, for every threshold at once."""

from typing import Any, final

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer

from modulekit.core.arithmetic import value_of
from modulekit.core.explain import summarize
from modulekit.core.module import allow_empty_variables
from modulekit.metrics.classes import classified
from modulekit.metrics.collection import Collection
from modulekit.metrics.example_metric import ExampleMetric

Column = np.ndarray[Any, Any]


@final
@allow_empty_variables
class AreaUnderROC(ExampleMetric):
    """The chance that an example of a class scores above one of another: `auc = (R - p (p + 1) / 2) / (p n)`.

    R is the sum of the midranks of the p examples of the class among all p + n scores, so that ties count one half. Two
    classes may come as one score per example, `[batch]`, the larger the likelier class 1. Logits, `[batch, classes]`, give
    one area for each class against the rest, and the value is their mean over the classes that have examples on both
    sides; the score of class c is its log-odds, `s_c = logit_c - log sum_{j != c} exp logit_j`, which orders as
    probabilities do and does not saturate. The area needs all scores: they are kept on the host, and the arithmetic is
    in float64.

    Args:
      name: the module's name.

    Source: Hanley and McNeil, The Meaning and Use of the Area under a ROC Curve, 1982; scikit-learn, `roc_auc_score`.

    >>> area = AreaUnderROC()
    >>> area(jnp.array([0.1, 0.4, 0.35, 0.8]), jnp.array([0, 0, 1, 1]))
    0.75
    """

    def __init__(self, name: str | None = None) -> None:
        super().__init__(name=name)
        self.rows = Collection()

    def update(
        self,
        scores: Float[Array, " batch"] | Float[Array, "batch classes"],
        labels: Integer[Array, " batch"],
        mask: Array | None = None,
    ) -> None:
        """Keeps a batch: `scores` `[batch]` or `[batch, classes]`, integer `labels` `[batch]`, and `mask` `[batch]`."""
        scores, labels = jnp.asarray(value_of(scores)), jnp.asarray(value_of(labels))
        if scores.ndim == 2:
            classified(scores, labels)
        elif scores.ndim != 1 or labels.shape != scores.shape:
            raise ValueError(
                "expected scores [batch] or logits [batch, classes], and integer labels [batch]; got "
                f"{summarize(scores)} and {summarize(labels)}"
            )
        self.rows.add(scores, labels, mask=mask)

    @property
    def value(self) -> float:
        """The area so far; NaN where no class has examples on both sides."""
        areas = self.per_class()
        return float(np.nanmean(areas)) if np.isfinite(areas).any() else float("nan")

    def per_class(self) -> Column:
        """Returns the area of each class against the rest, `[classes]`; NaN for a class without examples, or with all.

        Scores `[batch]` have one area, that of class 1.
        """
        return np.array([area(scores, positive) for scores, positive in self._columns()])

    def curves(self) -> list[tuple[Column, Column]]:
        """Returns the ROC curve of each class: false positive rates and true positive rates, from (0, 0) to (1, 1)."""
        return [curve(scores, positive) for scores, positive in self._columns()]

    def _columns(self) -> list[tuple[Column, Column]]:
        columns = self.rows.columns()
        if not columns:
            return []
        scores, labels = columns[0].astype(np.float64), columns[1]
        classes = 2 if scores.ndim == 1 else scores.shape[1]
        wrong = labels[(labels < 0) | (labels >= classes)]
        if wrong.size:
            raise ValueError(f"label {wrong[0]} is out of range: {classes} classes are 0 .. {classes - 1}; mask it")
        if scores.ndim == 1:
            return [(scores, labels == 1)]
        return [(_log_odds(scores, c), labels == c) for c in range(classes)]


def area(scores: Column, positive: Column) -> float:
    """Returns the area under the ROC curve of scores `[n]`, by midranks; NaN without examples on both sides."""
    p = int(positive.sum())
    n = len(positive) - p
    if p == 0 or n == 0 or np.isnan(scores).any():
        return float("nan")
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    midranks = np.cumsum(counts) - (counts - 1) / 2
    return float((midranks[place][positive].sum() - p * (p + 1) / 2) / (p * n))


def curve(scores: Column, positive: Column) -> tuple[Column, Column]:
    """Returns false and true positive rates, one point for each distinct score; NaN where a side has no examples."""
    _, place, counts = np.unique(-scores, return_inverse=True, return_counts=True)
    hits = np.cumsum(np.bincount(place[positive], minlength=len(counts)))
    rates = [np.cumsum(counts) - hits, hits]
    totals = [float(rate[-1]) if len(rate) and rate[-1] else np.nan for rate in rates]
    false, true = (np.concatenate([[0], rate]) / total for rate, total in zip(rates, totals, strict=True))
    return false, true


def _log_odds(logits: Column, c: int) -> Column:
    others = np.delete(logits, c, axis=1)
    if not others.shape[1]:
        return logits[:, c]
    with np.errstate(invalid="ignore"):  # what is no number stays none
        return logits[:, c] - np.logaddexp.reduce(others, axis=1)  # type: ignore[call-overload]
