"""Structural similarity of images."""

from typing import final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Shaped

from modulekit.core.explain import summarize
from modulekit.metrics.example_mean import PerExample
from modulekit.metrics.reconstruction import alike, check_max_value

WINDOW, DEVIATION = 11, 1.5
K1, K2 = 0.01, 0.03


@final
class SSIM(PerExample):
    """The mean structural similarity of images, 1 for equal ones.

    `ssim = mean (2 m_x m_y + c1) (2 s_xy + c2) / ((m_x^2 + m_y^2 + c1) (s_x^2 + s_y^2 + c2))`, where means m, variances
    s^2 and the covariance s_xy are those under an 11 x 11 Gaussian window of standard deviation 1.5, at every place where
    it fits into the image, in each channel; `c1 = (0.01 max_value)^2`, `c2 = (0.03 max_value)^2`.

    Args:
      max_value: the range of the targets: 1 for images in [0, 1], 255 for bytes.
      name: the module's name.

    Raises:
      ValueError: max_value is not positive.

    Source: Wang et al., Image Quality Assessment: From Error Visibility to Structural Similarity, 2004, equation 13; its
    sum of variances is weighted without the sample correction, as there.

    >>> image = jnp.linspace(0.0, 1.0, 144).reshape(1, 12, 12, 1)
    >>> round(float(SSIM()(image, image)), 4)
    1.0
    """

    def __init__(self, max_value: float = 1.0, name: str | None = None) -> None:
        check_max_value(max_value)
        super().__init__(name=name)
        self.max_value = max_value

    def per_example(
        self, predictions: Shaped[Array, "batch h w c"], targets: Shaped[Array, "batch h w c"]
    ) -> jax.Array:
        """Returns that of each image, from predictions and targets `[batch, height, width, channels]` of one shape."""
        x, y = alike(predictions, targets)
        if x.ndim != 4 or min(x.shape[1:3]) < WINDOW:
            raise ValueError(
                f"SSIM expects images [batch, height, width, channels] of at least {WINDOW} x {WINDOW}, got {summarize(x)}"
            )
        c1, c2 = (K1 * self.max_value) ** 2, (K2 * self.max_value) ** 2
        # Variances do not change with the origin; from the targets' mean, their squares lose less to rounding.
        origin = y.mean(axis=(1, 2), keepdims=True)
        x, y = x - origin, y - origin
        mean_x, mean_y, xx, yy, xy = _windowed(jnp.stack([x, y, x * x, y * y, x * y]))
        var_x, var_y, cov = xx - mean_x**2, yy - mean_y**2, xy - mean_x * mean_y
        mean_x, mean_y = mean_x + origin, mean_y + origin
        luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
        structure = (2 * cov + c2) / (var_x + var_y + c2)
        return (luminance * structure).mean(axis=(1, 2, 3))


@jax.jit
def _windowed(maps: jax.Array) -> jax.Array:
    """Returns the Gaussian mean of `[maps, batch, height, width, channels]` at each place of the window.

    One axis after the other, as sums of shifted slices: no accelerator rounds these to a narrow type, as it may in a
    convolution.
    """
    weights = np.exp(-0.5 * ((np.arange(WINDOW) - WINDOW // 2) / DEVIATION) ** 2)
    weights /= weights.sum()
    for axis in (2, 3):
        size = maps.shape[axis] - WINDOW + 1
        slices = [jax.lax.slice_in_dim(maps, k, k + size, axis=axis) for k in range(WINDOW)]
        maps = sum((float(w) * s for w, s in zip(weights, slices, strict=True)), jnp.zeros_like(slices[0]))
    return maps
