"""How far predictions are from real-valued targets: in squares, and in decibels."""

from typing import Any, final

import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped

from modulekit.core.arithmetic import value_of
from modulekit.core.explain import summarize
from modulekit.metrics.example_mean import PerExample


@final
class MeanSquaredError(PerExample):
    """The mean squared error, `mse = mean_i mean_j (predictions_ij - targets_ij)^2`, in the square of the targets' unit.

    Args:
      name: the module's name.

    Source: Gauss, Theoria combinationis, 1821; scikit-learn, `mean_squared_error`.

    >>> float(MeanSquaredError()(jnp.array([[1.0, 2.0]]), jnp.array([[1.0, 4.0]])))
    2.0
    """

    def per_example(self, predictions: Shaped[Array, "batch ..."], targets: Shaped[Array, "batch ..."]) -> jax.Array:
        """Returns that of each example, from predictions and targets `[batch, ...]` of one shape."""
        return squared_error(predictions, targets)


@final
class PSNR(PerExample):
    """The mean peak signal-to-noise ratio, in decibels: `psnr = mean_i 10 log10(max_value^2 / mse_i)`.

    It is infinite if an example is reproduced exactly.

    Args:
      max_value: the range of the targets: 1 for images in [0, 1], 255 for bytes.
      name: the module's name.

    Raises:
      ValueError: max_value is not positive.

    Source: Huynh-Thu and Ghanbari, Scope of Validity of PSNR, 2008; TensorFlow, `tf.image.psnr`.

    >>> round(float(PSNR()(jnp.full([1, 2, 2, 1], 0.5), jnp.full([1, 2, 2, 1], 0.6))), 3)
    20.0
    """

    def __init__(self, max_value: float = 1.0, name: str | None = None) -> None:
        check_max_value(max_value)
        super().__init__(name=name)
        self.max_value = max_value

    def per_example(self, predictions: Shaped[Array, "batch ..."], targets: Shaped[Array, "batch ..."]) -> jax.Array:
        """Returns that of each example, from predictions and targets `[batch, ...]` of one shape."""
        return 10 * jnp.log10(self.max_value**2 / squared_error(predictions, targets))


def squared_error(predictions: Any, targets: Any) -> jax.Array:
    """Returns the mean squared error of each example, `[batch]`."""
    predictions, targets = alike(predictions, targets)
    return per_row(jnp.square(predictions - targets))


def per_row(values: jax.Array) -> jax.Array:
    """Returns the mean over all axes but the first, `[batch]`."""
    return values.mean(axis=tuple(range(1, values.ndim)))


def alike(predictions: Any, targets: Any) -> tuple[jax.Array, jax.Array]:
    """Returns both in float32; raises `ValueError` where they are not `[batch, ...]` of one shape."""
    predictions, targets = jnp.asarray(value_of(predictions)), jnp.asarray(value_of(targets))
    if predictions.shape != targets.shape or targets.ndim == 0:
        raise ValueError(
            "expected predictions and targets [batch, ...] of one shape, got "
            f"{summarize(predictions)} and {summarize(targets)}"
        )
    return predictions.astype(jnp.float32), targets.astype(jnp.float32)


def check_max_value(max_value: float) -> None:
    """Raises `ValueError` for a range of values that is not positive."""
    if not max_value > 0:
        raise ValueError(f"max_value={max_value}: expected the range of the targets, such as 1.0 or 255.0")
