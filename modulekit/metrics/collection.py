"""Rows of examples, kept on the host for metrics that are no function of sums."""

from typing import Any, Self, final

import jax
import numpy as np

from modulekit.core.arithmetic import value_of
from modulekit.core.explain import summarize
from modulekit.core.module import allow_empty_variables
from modulekit.metrics.statistic import Statistic

Array = np.ndarray[Any, Any]


@final
@allow_empty_variables
class Collection(Statistic):
    """Columns of one row per example, `columns = [x_1, ..., x_n]`, each `[examples, ...]`, as they came and exactly.

    The rows are NumPy arrays and no variables: a collection grows outside of compiled code, and no saved state holds it.

    Args:
      name: the module's name.

    Source: NumPy, `np.concatenate`, over batches.

    >>> scores = Collection()
    >>> scores.add(np.array([0.5, 0.1]), np.array([1, 0]))
    >>> scores.add(np.array([0.9, 0.0]), np.array([1, 0]), mask=np.array([True, False]))
    >>> [column.tolist() for column in scores.columns()]
    [[0.5, 0.1, 0.9], [1, 0, 1]]
    """

    def __init__(self, name: str | None = None) -> None:
        super().__init__(name=name)
        self.batches: list[tuple[Array, ...]] = []

    def add(self, *columns: Any, mask: Any = None) -> None:
        """Appends the rows of a batch.

        Args:
          *columns: arrays `[batch, ...]` of the same first axis, with the same further axes in each batch.
          mask: `[batch]`, true for the rows to keep; all of them if None.

        Raises:
          TypeError: inside of compiled code, where there are no values yet.
          ValueError: the shapes do not fit.
        """
        values = [value_of(column) for column in columns]
        if any(isinstance(value, jax.core.Tracer) for value in (*values, mask)):
            raise TypeError(
                f"a collection keeps the rows themselves, and compiled code has none yet; got {summarize(tuple(values))}: "
                "call update outside of mk.jit, with what the compiled function returns"
            )
        rows = [np.asarray(value) for value in values]
        sizes = {row.shape[:1] for row in (*rows, *([] if mask is None else [np.asarray(mask)]))}
        if len(sizes) != 1 or sizes == {()}:
            raise ValueError(
                f"a collection expects columns and mask with one row per example, got {summarize(tuple(rows))}"
                + ("" if mask is None else f" and the mask {summarize(np.asarray(mask))}")
            )
        if self.batches and [r.shape[1:] for r in self.batches[0]] != [r.shape[1:] for r in rows]:
            raise ValueError(
                f"a collection expects rows like the first ones, {summarize(self.batches[0])}; got {summarize(tuple(rows))}"
            )
        kept = [row.copy() if mask is None else row[np.asarray(mask).astype(bool)] for row in rows]
        self.batches.append(tuple(kept))

    def columns(self) -> tuple[Array, ...]:
        """Returns all rows of each column, `[examples, ...]`; no column before the first batch."""
        return tuple(np.concatenate(column) for column in zip(*self.batches, strict=True))

    def merge(self, other: Self) -> None:
        """Appends the rows of another collection."""
        self.batches.extend(other.batches)

    def reset(self) -> None:
        """Drops all rows."""
        self.batches = []
