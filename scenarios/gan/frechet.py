"""The Fréchet distance between two sets of examples, in the space of some features of them."""

from typing import Any

import numpy as np
import numpy.typing as npt

Features = npt.NDArray[np.float64]


def frechet_distance(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """Returns the squared distance of two normal distributions: `d = |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2))`.

    `m` and `C` are the means and covariances (with divisor `n - 1`) of the features. With factors `C = F^T F`, the trace of
    the root is the sum of the singular values of `F_a F_b^T`, so that no root of a matrix is taken, and fewer examples than
    features are no difficulty. The distance depends on the features and, downwards, on the number of examples: tell both.

    Args:
      a: features of examples, `[examples, features]`.
      b: of others, as many features of each.

    Returns:
      The distance, computed in float64; with pretrained Inception features it is known as the FID.

    Raises:
      ValueError: the shapes do not fit, or there are fewer than 2 examples.

    Source: Dowson and Landau, The Fréchet distance between multivariate normal distributions, 1982; Heusel et al., GANs
    trained by a two time-scale update rule converge to a local Nash equilibrium, 2017, equation 6.

    >>> x = np.array([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0], [2.0, 2.0]])
    >>> round(frechet_distance(x, x + [3, 4]), 9)
    25.0
    """
    first, second = checked_features(a, b)
    means, factors = zip(*(_moments(features) for features in (first, second)), strict=True)
    shift = np.square(means[0] - means[1]).sum()
    spreads = sum(np.square(factor).sum() for factor in factors)  # the traces of the covariances
    common = np.linalg.svd(factors[0] @ factors[1].T, compute_uv=False).sum()
    return float(max(shift + spreads - 2 * common, 0.0))


def checked_features(a: npt.ArrayLike, b: npt.ArrayLike, least: int = 2) -> tuple[Features, Features]:
    """Returns two sets of features as float64, or raises `ValueError` if they cannot be compared."""
    first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise ValueError(
            f"expected two sets of features [examples, features], got {list(first.shape)} and {list(second.shape)}: "
            "flatten what belongs to one example, and take the same features of both"
        )
    if min(len(first), len(second)) < least:
        raise ValueError(f"expected {least} examples or more of each kind, got {len(first)} and {len(second)}")
    return first, second


def _moments(features: Features) -> tuple[Any, Any]:
    """Returns the mean and a factor `F` of the covariance, `C = F^T F`."""
    mean = features.mean(axis=0)
    return mean, np.linalg.qr((features - mean) / np.sqrt(len(features) - 1), mode="r")
