"""Means over all examples of a data set, the same for any batch size."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax.numpy as jnp
import numpy as np

import modulekit as mk
from modulekit.data import Arrays, evaluation_batches

Around = Callable[[], AbstractContextManager[Any]]


class Evaluator:
    """Runs a function of a batch over a data set, once for each way to look at the weights.

    Args:
      evaluate: returns a dict of arrays `[batch]`, one value per example.
      data: the examples.
      batch_size: examples per call; the last batch may be smaller, and none is left out.
      views: by what stands before the names of their metrics, the contexts in which to evaluate.
    """

    def __init__(
        self,
        evaluate: Callable[[Any], Mapping[str, Any]],
        data: Arrays,
        batch_size: int,
        views: Mapping[str, Around] | None = None,
    ) -> None:
        self._evaluate = mk.jit(evaluate)
        self._data = data
        self._batch_size = min(batch_size, data.size)
        self._views: dict[str, Around] = dict(views) if views else {"": nullcontext}

    def means(self, interrupted: Callable[[], bool] = lambda: False) -> dict[str, float] | None:
        """Returns the mean of each value over all examples, summed in float64; None if it was interrupted."""
        totals: dict[str, float] = {}
        for part in evaluation_batches(self._data.size, self._batch_size):
            if interrupted():
                return None
            batch, size = self._data.take(part), len(range(self._data.size)[part])
            for prefix, around in self._views.items():
                with around():
                    values = self._evaluate(batch)
                for name, column in per_example(values, size).items():
                    name = prefix + name
                    totals[name] = totals.get(name, 0.0) + float(np.sum(column, dtype=np.float64))
        return {name: total / self._data.size for name, total in totals.items()}


def per_example(values: Any, size: int) -> dict[str, np.ndarray[Any, Any]]:
    """Returns what `evaluate` returned as NumPy arrays, or raises `TypeError` if it is not one value per example."""
    if not isinstance(values, Mapping) or not values:
        raise TypeError(f"evaluate must return a dict of arrays [batch], one value per example; it returned {values!r}")
    for name, value in values.items():
        if jnp.shape(value) != (size,):
            raise TypeError(
                f"evaluate must return one value per example, and {name!r} has shape {list(jnp.shape(value))} for a batch "
                f"of {size}: leave the mean over the batch to the scenario, so that it is exact for any batch size"
            )
    return {name: np.asarray(value) for name, value in values.items()}
