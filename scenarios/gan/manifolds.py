"""Precision and recall of generated examples: how many look real, and how many of the real ones could be generated."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from scenarios.gan.frechet import Features, checked_features

_ROWS = 512  # of the table of distances, held at a time


class PrecisionRecall(NamedTuple):
    """The two shares, each in [0, 1].

    Attributes:
      precision: of fake examples, those on the manifold of the real ones.
      recall: of real examples, those on the manifold of the fake ones.

    >>> PrecisionRecall(precision=1.0, recall=0.25).recall
    0.25
    """

    precision: float
    recall: float


def precision_and_recall(real: npt.ArrayLike, fake: npt.ArrayLike, neighbors: int = 3) -> PrecisionRecall:
    """Returns the shares of examples on the other kind's manifold: `precision = mean_f [min_r |f - r| / d(r) <= 1]`.

    The manifold of a set is the union of balls around its examples, each as large as the distance `d` to its `neighbors`-th
    nearest neighbor among the others of the set. `recall` is the same with real and fake exchanged.

    Args:
      real: features of real examples, `[examples, features]`.
      fake: features of generated ones, as many features of each.
      neighbors: how many neighbors a ball has; fewer than the examples of either kind.

    Returns:
      Precision and recall, from float64 distances.

    Raises:
      ValueError: the shapes do not fit, or there are too few examples.

    Source: Kynkäänniemi et al., Improved precision and recall metric for assessing generative models, 2019, equations 1 and
    2.

    >>> real = np.array([[0.0], [1.0], [2.0], [10.0], [11.0], [12.0]])
    >>> precision_and_recall(real, real[:3] + 0.5, neighbors=1)
    PrecisionRecall(precision=1.0, recall=0.5)
    """
    if neighbors < 1:
        raise ValueError(f"neighbors={neighbors} is below 1")
    ours, theirs = checked_features(real, fake, neighbors + 1)
    center = ours.mean(axis=0)  # far from the origin, differences of squares would lose digits
    ours, theirs = ours - center, theirs - center
    return PrecisionRecall(_covered(theirs, ours, neighbors), _covered(ours, theirs, neighbors))


def _covered(points: Features, examples: Features, neighbors: int) -> float:
    """Returns the share of points within a ball around an example."""
    radii = _radii(examples, neighbors)
    inside = [(_squares(rows, examples) <= radii).any(axis=1) for rows in _blocks(points)]
    return float(np.concatenate(inside).mean())


def _radii(examples: Features, neighbors: int) -> Features:
    """Returns the squared distance of each example to its neighbor."""
    found = []
    for start in range(0, len(examples), _ROWS):
        squares = _squares(examples[start : start + _ROWS], examples)
        own = np.arange(len(squares))
        squares[own, start + own] = np.inf
        found.append(np.partition(squares, neighbors - 1, axis=1)[:, neighbors - 1])
    return np.concatenate(found)


def _blocks(points: Features) -> list[Features]:
    return [points[start : start + _ROWS] for start in range(0, len(points), _ROWS)]


def _squares(rows: Features, columns: Features) -> Features:
    """Returns squared distances, `[rows, columns]`."""
    lengths = np.square(rows).sum(axis=1)[:, None] + np.square(columns).sum(axis=1)
    return np.maximum(lengths - 2 * rows @ columns.T, 0.0)
