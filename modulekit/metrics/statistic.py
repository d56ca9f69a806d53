"""What a metric remembers of the examples it has seen.

A statistic of two parts of the data merges into that of the whole. Totals add; collections append.
"""

import abc
from typing import Self

from modulekit.core.module import Module


class Statistic(Module):
    """Abstract: two verbs, `merge` and `reset`."""

    @abc.abstractmethod
    def merge(self, other: Self) -> None:
        """Takes in what another one has seen; the other one stays as it is."""

    @abc.abstractmethod
    def reset(self) -> None:
        """Forgets all examples."""
