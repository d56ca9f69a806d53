"""Means over examples: of given values, or of a number that a subclass computes for each example."""

import abc
from typing import Any, final

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer, Shaped

from modulekit.core.arithmetic import value_of
from modulekit.core.explain import summarize
from modulekit.metrics.example_metric import ExampleMetric
from modulekit.metrics.total import Total


@final
class ExampleMean(ExampleMetric):
    """The mean over all examples, `mean = sum_i m_i v_i / sum_i m_i`, the same for any batch sizes.

    `m` is the mask, 1 for all examples without one.

    Args:
      name: the module's name.

    Source: Flax, `nnx.metrics.Average`; here the sum is a `Total`, and the count is exact.

    >>> mean = ExampleMean()
    >>> mean.update(jnp.array([1.0, 1.0, 1.0]))
    >>> float(mean(jnp.array([5.0])))
    2.0
    """

    def __init__(self, name: str | None = None) -> None:
        super().__init__(name=name)
        self.total = Total([])
        self.examples = Total([], jnp.int32)

    def update(self, value: Shaped[Array, " batch"], mask: Shaped[Array, " batch"] | None = None) -> None:
        """Adds the values of a batch.

        Args:
          value: `[batch]`, one value per example.
          mask: `[batch]`, true for the examples that count; all of them if None.

        Raises:
          ValueError: not one value per example.
        """
        values = jnp.asarray(value_of(value))
        if values.ndim != 1:
            raise ValueError(f"{self!r} expects one value per example, [batch]; got {summarize(values)}")
        values = values.astype(jnp.float32)
        counted = counting(self, mask, values.shape[0])
        self.total.add(jnp.where(counted, values, 0.0))
        self.examples.add(counted)

    @property
    def count(self) -> Integer[Array, ""]:
        """The number of examples so far."""
        return self.examples.value

    @property
    def value(self) -> Float[Array, ""]:
        """The mean over all examples so far; NaN before the first."""
        return self.total.value / self.count


class PerExample(ExampleMetric):
    """Abstract: the mean of one number per example, `value = mean_i per_example(batch)_i`.

    Args:
      name: the module's name.

    Source: Flax, `nnx.metrics.Average`.

    >>> class AbsoluteError(PerExample):
    ...     def per_example(self, predictions, targets):
    ...         return jnp.abs(predictions - targets)
    >>> float(AbsoluteError()(jnp.array([1.0, 4.0]), jnp.array([1.0, 2.0])))
    1.0
    """

    def __init__(self, name: str | None = None) -> None:
        super().__init__(name=name)
        self.mean = ExampleMean()

    @abc.abstractmethod
    def per_example(self, *batch: Any) -> jax.Array:
        """Returns one number per example, `[batch]`."""

    @final
    def update(self, *batch: Any, mask: Any = None) -> None:
        """Adds a batch: the arguments of `per_example`, and `mask`, `[batch]`, true for the examples that count."""
        self.mean.update(self.per_example(*batch), mask)

    @property
    def value(self) -> Float[Array, ""]:
        """The mean so far; NaN before the first example."""
        return self.mean.value


def counting(metric: ExampleMetric, mask: Any, size: int) -> jax.Array:
    """Returns which examples of a batch count, as booleans; raises `ValueError` for a mask that is not `[batch]`."""
    if mask is None:
        return jnp.ones([size], bool)
    if jnp.shape(mask) != (size,):
        raise ValueError(f"{metric!r} expects one mask value for each of {size} examples; got {summarize(mask)}")
    return jnp.asarray(mask).astype(bool)
