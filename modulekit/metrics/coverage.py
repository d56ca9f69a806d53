"""How often predicted intervals hold the truth."""

from typing import Any, final

import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped

from modulekit.core.explain import summarize
from modulekit.metrics.example_mean import PerExample
from modulekit.metrics.reconstruction import alike, per_row


@final
class Coverage(PerExample):
    """The share of targets inside of their predicted intervals: `coverage = mean_i mean_j [lower_ij <= y_ij <= upper_ij]`.

    Intervals of level 0.9 should hold 0.9 of the targets.

    Args:
      name: the module's name.

    Source: Khosravi et al., Comprehensive Review of Neural Network-Based Prediction Intervals, 2011, equation 6 (PICP).

    >>> lower, upper = jnp.array([0.0, 0.0]), jnp.array([1.0, 1.0])
    >>> float(Coverage()((lower, upper), jnp.array([0.5, 2.0])))
    0.5
    """

    def per_example(self, intervals: Any, targets: Shaped[Array, "batch ..."]) -> jax.Array:
        """Returns that of each example, from `intervals` (lower, upper) and targets, each `[batch, ...]`, of one shape."""
        if not isinstance(intervals, tuple | list) or len(intervals) != 2:
            raise ValueError(f"expected intervals as a pair (lower, upper) of [batch, ...], got {summarize(intervals)}")
        lower, y = alike(intervals[0], targets)
        upper, _ = alike(intervals[1], targets)
        inside = (lower <= y) & (y <= upper)
        return per_row(inside.astype(jnp.float32))
