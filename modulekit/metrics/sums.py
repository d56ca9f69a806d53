"""Sums and means over calls, as Sonnet has them: a call counts once, whatever its batch size."""

from typing import Any

import jax
import jax.numpy as jnp

from modulekit.core.once import once
from modulekit.core.variable import Variable
from modulekit.metrics.accumulated import add, made, zeros_like
from modulekit.metrics.metric import Metric


class Sum(Metric):
    """The element-wise sum of the values given, `sum_t = sum_{t-1} + x_t`.

    Args:
      name: the module's name.

    Source: Sonnet 2, `snt.Sum`.

    >>> total = Sum()
    >>> total(jnp.array([1.0, 2.0])).tolist(), total(jnp.array([3.0, 4.0])).tolist()
    ([1.0, 2.0], [4.0, 6.0])
    """

    def __init__(self, name: str | None = None) -> None:
        super().__init__(name=name)
        self.sum: Variable | None = None

    @once
    def initialize(self, value: Any) -> None:
        """Makes the sum, of the shape and dtype of `value`."""
        self.sum = zeros_like(value, "sum")

    def update(self, value: Any) -> None:
        """Adds `value`, `[...]`, an array of the shape of the first one; raises `ValueError` for another shape."""
        self.initialize(value)
        add(self, self.sum, value)

    @property
    def value(self) -> jax.Array:
        """The sum so far."""
        return made(self, self.sum).value

    def reset(self) -> None:
        """Sets the sum to zero."""
        total = made(self, self.sum)
        total.assign(jnp.zeros(total.shape, total.dtype))


class Mean(Metric):
    """The element-wise mean over calls, `mean_t = (x_1 + ... + x_t) / t`.

    Each call counts once, whatever its batch size; see `ExampleMean`.

    Args:
      name: the module's name.

    Source: Sonnet 2, `snt.Mean`.

    >>> mean = Mean()
    >>> float(mean(1.0)), float(mean(3.0))
    (1.0, 2.0)
    """

    def __init__(self, name: str | None = None) -> None:
        super().__init__(name=name)
        self.sum: Variable | None = None
        self.count = Variable(jnp.zeros([], jnp.int32), trainable=False, name="count")

    @once
    def initialize(self, value: Any) -> None:
        """Makes the sum, of the shape and dtype of `value`."""
        self.sum = zeros_like(value, "sum")

    def update(self, value: Any) -> None:
        """Adds `value`, `[...]`, of the shape of the first one, and counts one; raises `ValueError` for another shape."""
        self.initialize(value)
        add(self, self.sum, value)
        self.count.assign_add(1)

    @property
    def value(self) -> jax.Array:
        """The mean so far."""
        return made(self, self.sum) / self.count

    def reset(self) -> None:
        """Sets sum and count to zero."""
        total = made(self, self.sum)
        total.assign(jnp.zeros(total.shape, total.dtype))
        self.count.assign(0)
