"""A moving average over calls that starts unbiased, as Sonnet has it."""

from typing import Any

import jax
import jax.numpy as jnp

from modulekit.core.arithmetic import array_of, value_of
from modulekit.core.once import once
from modulekit.core.variable import Variable
from modulekit.metrics.accumulated import made, zeros_like
from modulekit.metrics.metric import Metric


class ExponentialMovingAverage(Metric):
    """`h <- h - (1 - decay) (h - value)`, `average = h / (1 - decay^t)` after t updates: an average that starts unbiased.

    Args:
      decay: how much of the past is kept, in [0, 1); a number or a scalar array.
      name: the module's name.

    Attributes:
      average: a variable of the shape `[...]` and dtype of the value; None before the first one.

    Sources: the correction is that of Kingma and Ba, Adam, 2015, section 3; Sonnet 2, `snt.ExponentialMovingAverage`.

    >>> average = ExponentialMovingAverage(0.9)
    >>> [round(float(average(value)), 3) for value in (1.0, 2.0)]
    [1.0, 1.526]
    """

    def __init__(self, decay: Any, name: str | None = None) -> None:
        super().__init__(name=name)
        self.decay = decay
        self._counter = Variable(jnp.zeros([], jnp.int32), trainable=False, name="counter")
        self._hidden: Variable | None = None
        self.average: Variable | None = None

    @once
    def initialize(self, value: Any) -> None:
        """Makes the averages, of the shape and dtype of `value`."""
        self._hidden = zeros_like(value, "hidden")
        self.average = zeros_like(value, "average")

    def update(self, value: Any) -> None:
        """Averages `value` in, `[...]`, an array of the shape of the first one."""
        self.initialize(value)
        hidden, average = made(self, self._hidden), made(self, self.average)
        self._counter.assign_add(1)
        count = self._counter.current().astype(hidden.dtype)
        decay = jnp.asarray(value_of(self.decay), hidden.dtype)
        value = jax.lax.stop_gradient(array_of(value))  # as in Sonnet, where no gradient passes an assignment
        hidden.assign_sub((hidden.current() - value) * (1 - decay))
        average.assign(hidden.current() / (1 - decay**count))

    @property
    def value(self) -> jax.Array:
        """The average so far."""
        return made(self, self.average).value

    def reset(self) -> None:
        """Forgets all values."""
        self._counter.assign(0)
        for variable in (made(self, self._hidden), made(self, self.average)):
            variable.assign(jnp.zeros(variable.shape, variable.dtype))
