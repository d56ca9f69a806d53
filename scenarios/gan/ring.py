"""A ring of Gaussians: data in the plane of which one knows how many modes it has, and where."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

_NEAR = 3.0  # standard deviations


class ModeCoverage(NamedTuple):
    """What generated points make of the modes.

    Attributes:
      covered: the number of modes with enough points near them.
      visited: the number of modes that enough points are closer to than to any other, near or not.
      high_quality: the share of points that are near a mode.

    >>> ModeCoverage(covered=7, visited=8, high_quality=0.9).covered
    7
    """

    covered: int
    visited: int
    high_quality: float


@dataclass(frozen=True)
class RingOfGaussians:
    """Points in the plane around evenly spaced places on a circle, the modes.

    A point is `x ~ N(c_k, std^2)` with `c_k = radius (cos, sin)(2 pi k / modes)`, and all `k` are equally likely.

    Args:
      modes: how many places there are.
      radius: of the circle.
      std: the standard deviation of each coordinate around its place.

    Raises:
      ValueError: a number is out of range.

    Source: Metz et al., Unrolled generative adversarial networks, 2017, section 3.2.1, with its 8 modes, radius 2 and
    standard deviation 0.02.

    >>> ring = RingOfGaussians()
    >>> ring.mode_coverage(ring.sample(1000, seed=0)).covered
    8
    """

    modes: int = 8
    radius: float = 2.0
    std: float = 0.02

    def __post_init__(self) -> None:
        if self.modes < 1 or self.radius <= 0 or self.std <= 0:
            raise ValueError(f"{self}: modes must be 1 or more, radius and std above 0")

    @property
    def centers(self) -> npt.NDArray[np.float64]:
        """The places, `[modes, 2]`."""
        angles = 2 * np.pi * np.arange(self.modes) / self.modes
        return self.radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)

    def sample(self, size: int, seed: int = 0) -> npt.NDArray[np.float32]:
        """Returns points `[size, 2]`, a function of the seed."""
        generator = np.random.default_rng(seed)
        places = self.centers[generator.integers(0, self.modes, size)]
        return (places + self.std * generator.normal(size=(size, 2))).astype(np.float32)

    def mode_coverage(self, points: npt.ArrayLike, least: float = 0.1) -> ModeCoverage:
        """Returns how many modes generated points cover and visit, and the share of points near one.

        Near is within 3 standard deviations. Enough points are at least `least` of those that a mode would have if they
        were evenly spread.

        Args:
          points: `[points, 2]`.
          least: in (0, 1].

        Raises:
          ValueError: these are no points in the plane.

        Source: Srivastava et al., VEEGAN, 2017, section 5.1, where one point is enough.
        """
        points = np.asarray(points, np.float64)
        if points.ndim != 2 or points.shape[1] != 2 or not len(points):
            raise ValueError(f"expected points [points, 2], got {list(points.shape)}")
        distances = np.linalg.norm(points[:, None] - self.centers, axis=2)
        nearest: Any = distances.argmin(axis=1)
        near = distances.min(axis=1) <= _NEAR * self.std
        counts = [np.bincount(places, minlength=self.modes) for places in (nearest[near], nearest)]
        covered, visited = (int((count >= least * len(points) / self.modes).sum()) for count in counts)
        return ModeCoverage(covered, visited, float(near.mean()))
