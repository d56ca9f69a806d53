"""The protocol of metrics that weigh every example the same."""

import abc
from typing import Any, Self

from modulekit.core.module import Module
from modulekit.metrics.collection import Collection
from modulekit.metrics.statistic import Statistic


class ExampleMetric(Module):
    """Abstract: a function of statistics over examples, the same for any batch sizes, padding and number of devices.

    `value = f(sum_i s_i)`, where s_i is what example i adds to the statistics; a collection adds a row.

    A subclass makes statistics in its constructor (`Total`, `Collection`), adds to them in `update`, and says in `value`
    what follows from them.

    Args:
      name: the module's name.

    Source: Google's CLU, `clu.metrics.Metric`, 2021, whose metrics merge; here they are modules.

    >>> import jax.numpy as jnp
    >>> from modulekit.metrics import Total
    >>> class Share(ExampleMetric):
    ...     def __init__(self, name=None):
    ...         super().__init__(name=name)
    ...         self.yes, self.all = Total([], jnp.int32), Total([], jnp.int32)
    ...     def update(self, answers, mask=None):
    ...         mask = jnp.ones_like(answers) if mask is None else mask
    ...         self.yes.add(answers & mask)
    ...         self.all.add(mask)
    ...     @property
    ...     def value(self):
    ...         return self.yes.value / self.all.value
    >>> one, other = Share(), Share()
    >>> float(one(jnp.array([True, True]))), float(other(jnp.array([False, True]), mask=jnp.array([True, False])))
    (1.0, 0.0)
    >>> one.merge(other)
    >>> round(float(one.value), 3)
    0.667
    """

    @abc.abstractmethod
    def update(self, *batch: Any, **options: Any) -> None:
        """Adds a batch, arrays `[batch, ...]`; of the options, `mask`, `[batch]`, is true for the examples that count."""

    @property
    @abc.abstractmethod
    def value(self) -> Any:
        """The metric of all examples so far; NaN where there are none."""

    @property
    def statistics(self) -> list[Statistic]:
        """What the metric remembers, in the order of its attributes."""
        return [part for part in self.submodules if isinstance(part, Statistic)]

    @property
    def collects(self) -> bool:
        """Whether the metric keeps the examples themselves, and so cannot be updated inside of compiled code."""
        return any(isinstance(statistic, Collection) for statistic in self.statistics)

    def merge(self, other: Self) -> None:
        """Takes in what another metric of the same kind and settings has seen.

        Raises:
          TypeError: the other one is of another kind, or has other settings.
        """
        if type(other) is not type(self) or repr(other) != repr(self):
            raise TypeError(f"{self!r} merges with a metric of the same kind and settings, not with {other!r}")
        for mine, theirs in zip(self.statistics, other.statistics, strict=True):
            mine.merge(theirs)

    def reset(self) -> None:
        """Forgets all examples."""
        for statistic in self.statistics:
            statistic.reset()

    def __call__(self, *batch: Any, mask: Any = None) -> Any:
        """Adds a batch, arrays `[batch, ...]`, less what `mask` leaves out, and returns the metric so far."""
        self.update(*batch, mask=mask)
        return self.value
