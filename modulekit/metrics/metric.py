"""The protocol of Sonnet's metrics: modules that accumulate what they are given, call by call."""

import abc
from typing import Any

import jax

from modulekit.core.module import Module


class Metric(Module):
    """Abstract: four verbs, `initialize`, `update`, `value` and `reset`.

    Source: Sonnet 2, `snt.Metric`.

    >>> import jax.numpy as jnp
    >>> from modulekit.core.once import once
    >>> from modulekit.core.variable import Variable
    >>> class Largest(Metric):
    ...     @once
    ...     def initialize(self, value):
    ...         self.largest = Variable(value, trainable=False, name="largest")
    ...     def update(self, value):
    ...         self.initialize(value)
    ...         self.largest.assign(jnp.maximum(self.largest.value, value))
    ...     @property
    ...     def value(self):
    ...         return self.largest.value
    ...     def reset(self):
    ...         self.largest.assign(-jnp.inf)
    >>> largest = Largest()
    >>> [float(largest(value)) for value in (1.0, 3.0, 2.0)]
    [1.0, 3.0, 3.0]
    """

    @abc.abstractmethod
    def initialize(self, value: Any) -> None:
        """Makes the variables, from the first value."""

    @abc.abstractmethod
    def update(self, value: Any) -> None:
        """Accumulates a value, `[...]`, of any shape that stays the same."""

    @property
    @abc.abstractmethod
    def value(self) -> jax.Array:
        """The metric of all that was accumulated."""

    @abc.abstractmethod
    def reset(self) -> None:
        """Forgets what was accumulated."""

    def __call__(self, value: Any) -> jax.Array:
        """Accumulates a value, `[...]`, and returns the metric so far."""
        self.update(value)
        return self.value
