"""What generated examples are worth: numbers of one evaluation, and when they are alarming."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from scenarios.base.calling import call_model
from scenarios.gan.frechet import frechet_distance
from scenarios.gan.manifolds import precision_and_recall
from scenarios.gan.ring import RingOfGaussians

Array = npt.NDArray[Any]

_LEAST_SPREAD = 0.1  # of that of the data
_LEAST_MODES = 0.5  # of all


def in_batches(function: Callable[..., Any], arrays: tuple[Any, ...], size: int) -> Array:
    """Returns the outputs of a function for all examples, `[examples, ...]`, called with `size` of them at a time."""
    starts = range(0, len(arrays[0]), size)
    return np.concatenate([np.asarray(function(*(a[start : start + size] for a in arrays))) for start in starts])


def sample_quality(
    fake: Array, real: Array | None, features: Any, ring: RingOfGaussians | None, batch_size: int
) -> dict[str, float]:
    """Returns the numbers by name.

    Args:
      fake: generated examples, `[examples, ...]`.
      real: as many of the data, if there are any.
      features: from examples to features `[examples, features]`; None for no comparison in their space.
      ring: what the data is, if it is a ring of Gaussians.
      batch_size: of the calls of `features`.
    """
    found: dict[str, float] = {"samples": len(fake), "spread": _spread(fake)}
    if real is not None:
        found["real_spread"] = _spread(real)
    if features is not None and real is not None:
        ours, theirs = (
            in_batches(lambda x: call_model(features, x, False), (part,), batch_size) for part in (real, fake)
        )
        found["frechet_distance"] = frechet_distance(ours, theirs)
        found |= precision_and_recall(ours, theirs)._asdict()
    if ring is not None:
        coverage = ring.mode_coverage(fake)
        found |= {"modes_covered": coverage.covered, "modes_visited": coverage.visited}
        found["high_quality"] = coverage.high_quality
    return found


def collapse_alarms(metrics: Mapping[str, float], ring: RingOfGaussians | None) -> list[str]:
    """Returns a sentence for each generator, the raw and the averaged one, whose examples are nearly all alike."""
    found = []
    for prefix, generator in (("", "the generator"), ("ema_", "the averaged generator")):
        spread, real = (metrics.get(prefix + name, math.nan) for name in ("spread", "real_spread"))
        modes = metrics.get(f"{prefix}modes_visited", math.inf)
        if ring is not None and modes < _LEAST_MODES * ring.modes:
            found.append(f"{generator} has collapsed: its points are around {modes:g} of {ring.modes} modes")
        elif spread < _LEAST_SPREAD * real:
            found.append(
                f"{generator} has collapsed: its examples spread by {spread:.3g}, those of the data by {real:.3g}"
            )
    return found


def _spread(examples: Array) -> float:
    """Returns the root of the variance summed over all features: the typical distance from the mean."""
    flat = np.asarray(examples, np.float64).reshape(len(examples), -1)
    return float(np.sqrt(flat.var(axis=0).sum()))
