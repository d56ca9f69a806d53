"""Rules: how the gradients of several contributions become one.

A rule is a function of a structure of arrays `[contributions, ...]` and of their weights `[contributions]`, such as numbers
of samples, and returns the structure without the first axis. The same functions serve NumPy's arrays, in which an intake
adds up in float64, and JAX's, in a compiled update: what they compute in is the dtype of what they are given. What else a
rule takes is given by keyword, as in `functools.partial(trimmed_mean, share=0.2)`.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax

Rule: TypeAlias = Callable[[Any, Any], Any]


def mean(gradients: Any, weights: Any) -> Any:
    """Returns the weighted mean: `g = sum_i w_i g_i / sum_i w_i`.

    Args:
      gradients: a structure of arrays `[contributions, ...]`.
      weights: positive numbers `[contributions]`.

    Returns:
      The structure, each array `[...]`.

    >>> import numpy as np
    >>> mean({"w": np.array([[1.0, 0.0], [5.0, 4.0]])}, np.array([3.0, 1.0]))["w"].tolist()
    [2.0, 1.0]
    """
    total = weights.sum()
    return jax.tree.map(lambda g: (_along(weights, g) * g).sum(axis=0) / total, gradients)


def median(gradients: Any, weights: Any) -> Any:
    """Returns the weighted median of each coordinate: `g = (min {x: 2 W(x) >= W} + min {x: 2 W(x) > W}) / 2`.

    `W(x)` is the weight of the contributions up to `x` in that coordinate, and `W` that of all. With equal weights it is
    the ordinary median; an integer weight counts as so many equal contributions. Weights are compared up to the rounding of
    their sum.

    Args:
      gradients: a structure of arrays `[contributions, ...]`.
      weights: positive numbers `[contributions]`.

    Returns:
      The structure, each array `[...]`.

    Source: Yin et al., Byzantine-Robust Distributed Learning, 2018, option I, which has no weights.

    >>> import numpy as np
    >>> median({"w": np.array([1.0, 2.0, 100.0])}, np.array([1.0, 1.0, 1.0]))["w"].tolist()
    2.0
    >>> median({"w": np.array([1.0, 2.0, 100.0])}, np.array([3.0, 1.0, 2.0]))["w"].tolist()  # of 1, 1, 1, 2, 100, 100
    1.5
    """

    def of_one(g: Any) -> Any:
        xp = g.__array_namespace__()
        values, _, below = _ranked(g, weights)
        half, rounding = below[-1:] / 2, len(g) * xp.finfo(below.dtype).eps * below[-1:]
        lower = xp.take_along_axis(values, (below >= half - rounding).argmax(axis=0)[None], axis=0)[0]
        upper = xp.take_along_axis(values, (below > half + rounding).argmax(axis=0)[None], axis=0)[0]
        return lower / 2 + upper / 2

    return jax.tree.map(of_one, gradients)


def trimmed_mean(gradients: Any, weights: Any, *, share: float = 0.1) -> Any:
    """Returns the mean of each coordinate without the smallest and largest values: `g = sum_i u_i g_i / sum_i u_i`.

    `u_i` is what remains of the weight `w_i` when a `share` of the whole weight is cut off at either end of the ranking of
    that coordinate: `u_i = |[a_i, a_i + w_i] & [share W, (1 - share) W]|`, where `a_i` is the weight of those before and `W`
    that of all. A contribution at the cut counts in part.

    Args:
      gradients: a structure of arrays `[contributions, ...]`.
      weights: positive numbers `[contributions]`.
      share: of the weight, cut off at each end; in [0, 0.5).

    Returns:
      The structure, each array `[...]`.

    Raises:
      ValueError: the share is out of range.

    Source: Yin et al., Byzantine-Robust Distributed Learning, 2018, option II, which has no weights.

    >>> import numpy as np
    >>> trimmed_mean({"w": np.array([-50.0, 1.0, 2.0, 900.0])}, np.ones(4), share=0.25)["w"].tolist()
    1.5
    """
    check_share(share)

    def of_one(g: Any) -> Any:
        values, sizes, below = _ranked(g, weights)
        total = below[-1:]
        low, high = share * total, (1 - share) * total
        kept = below.clip(low, high) - (below - sizes).clip(low, high)
        return (kept * values).sum(axis=0) / kept.sum(axis=0)

    return jax.tree.map(of_one, gradients)


def clipped_mean(gradients: Any, weights: Any, *, max_norm: float) -> Any:
    """Returns the weighted mean of contributions clipped by norm: `g = sum_i w_i c_i g_i / sum_i w_i`.

    `c_i = min(1, max_norm / n_i)`, where `n_i = sqrt(sum(g_i^2))` is over all arrays of a contribution.

    Args:
      gradients: a structure of arrays `[contributions, ...]`.
      weights: positive numbers `[contributions]`.
      max_norm: the largest norm, a positive number.

    Returns:
      The structure, each array `[...]`.

    Raises:
      ValueError: `max_norm` is not positive.

    Source: Abadi et al., Deep Learning with Differential Privacy, 2016, algorithm 1, without its noise.

    >>> import numpy as np
    >>> clipped_mean({"w": np.array([[3.0, 4.0], [0.0, 1.0]])}, np.array([1.0, 1.0]), max_norm=2.5)["w"].tolist()
    [0.75, 1.5]
    """
    check_max_norm(max_norm)
    leaves = jax.tree.leaves(gradients)
    xp = leaves[0].__array_namespace__()
    flat = [leaf.reshape(leaf.shape[0], -1) for leaf in leaves]
    largest = xp.stack([abs(rows).max(axis=1, initial=0.0) for rows in flat]).max(axis=0)
    unit = xp.where(largest == 0, 1.0, largest).astype(
        largest.dtype
    )  # in units of it, squares neither over- nor underflow
    length = xp.sqrt(sum(((rows / unit[:, None]) ** 2).sum(axis=1) for rows in flat))
    factor = xp.where(largest == 0, 1.0, xp.minimum(1.0, max_norm / unit / xp.where(length == 0, 1.0, length)))
    factor = factor.astype(largest.dtype)
    return mean(jax.tree.map(lambda g: _along(factor, g) * g, gradients), weights)


def check_share(share: Any) -> None:
    """Raises `ValueError` if that is no share that can be cut off at both ends."""
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share < 0.5:
        raise ValueError(f"share={share!r}: expected what is cut off at each end, a number in [0, 0.5)")


def check_max_norm(max_norm: Any) -> None:
    """Raises `ValueError` if that is no norm to clip by."""
    if isinstance(max_norm, bool) or not isinstance(max_norm, int | float) or not 0 < max_norm < float("inf"):
        raise ValueError(f"max_norm={max_norm!r}: expected the largest norm of a contribution, a positive number")


def _along(numbers: Any, array: Any) -> Any:
    """Returns one number for each contribution in the form that multiplies an array of them."""
    return numbers.reshape(-1, *[1] * (array.ndim - 1))


def _ranked(g: Any, weights: Any) -> tuple[Any, Any, Any]:
    """Returns the values of each coordinate in order, their weights, and the weight up to and with each of them."""
    xp = g.__array_namespace__()
    order = xp.argsort(g, axis=0, stable=True)
    sizes = weights[order]
    return xp.take_along_axis(g, order, axis=0), sizes, sizes.cumsum(axis=0)
