"""What is found out about a model without training it: means over all examples of a data set, the same for any batch size,
and numbers and pictures of whatever a scenario looks at.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import modulekit as mk
from modulekit.core.randomness import default_stream
from modulekit.data import Arrays, evaluation_batches
from scenarios.base.devices import Devices
from scenarios.base.moment import at, found

Around = Callable[[], AbstractContextManager[Any]]

_BRANCH = 2**31  # of the run's random numbers: no update has this number


class Evaluator:
    """Looks at the models of a run, once for each way to look at the weights.

    Random numbers of an evaluation are a function of (seed, step), and nothing else.

    Args:
      evaluate: returns a dict of arrays `[batch]`, one value per example; None if there is nothing to average.
      data: the examples, if there are any.
      batch_size: examples per call; the last batch may be smaller, and none is left out.
      views: by what stands before the names of their metrics, the contexts in which to evaluate.
      seed: of the random numbers.
      measure: returns a dict of numbers.
      pictures: returns a dict of pictures.
      devices: what share a batch; one device if None.
    """

    def __init__(
        self,
        evaluate: Callable[[Any], Mapping[str, Any]] | None,
        data: Arrays | None,
        batch_size: int,
        views: Mapping[str, Around] | None = None,
        seed: int = 0,
        measure: Callable[[], Mapping[str, Any]] | None = None,
        pictures: Callable[[], Mapping[str, Any]] | None = None,
        devices: Devices | None = None,
    ) -> None:
        self._evaluate = None if evaluate is None else compiled(evaluate, devices)
        self._data = data
        self._batch_size = batch_size
        self._views: dict[str, Around] = dict(views) if views else {"": nullcontext}
        self._key = jax.random.fold_in(jax.random.key(seed), _BRANCH)
        self._measure, self._pictures = measure, pictures

    def means(self, step: int = 0, interrupted: Callable[[], bool] = lambda: False) -> dict[str, float] | None:
        """Returns the mean of each value over all examples, summed in float64, and what is measured beside.

        Args:
          step: the number of updates before.
          interrupted: whether to give up, and return None.
        """
        seen: dict[str, float] = {}
        for prefix, around in self._views.items():
            with self._looking(around, step):
                means = self._means(step, interrupted)
                if means is None:
                    return None
                with found(means):
                    measured = {} if self._measure is None else numbers(self._measure())
            seen.update((prefix + name, value) for name, value in {**means, **measured}.items())
        return seen

    def pictures(self, step: int) -> dict[str, np.ndarray[Any, Any]]:
        """Returns the pictures after a step, by name."""
        seen: dict[str, np.ndarray[Any, Any]] = {}
        for prefix, around in self._views.items() if self._pictures is not None else ():
            with self._looking(around, step):
                drawn = self._pictures() if self._pictures is not None else {}
            seen.update((prefix + name, np.asarray(picture)) for name, picture in drawn.items())
        return seen

    @contextmanager
    def _looking(self, around: Around, step: int) -> Iterator[None]:
        default_stream().restart(jax.random.fold_in(self._key, step))
        with around(), at(step):
            yield

    def _means(self, step: int, interrupted: Callable[[], bool]) -> dict[str, float] | None:
        if self._evaluate is None or self._data is None:
            return None if interrupted() else {}
        totals: dict[str, float] = {}
        size = self._data.size
        for part in evaluation_batches(size, min(self._batch_size, size)):
            if interrupted():
                return None
            values = self._evaluate(self._data.take(part), np.int32(step))
            for name, column in per_example(values, len(range(size)[part])).items():
                totals[name] = totals.get(name, 0.0) + float(np.sum(column, dtype=np.float64))
        return {name: total / size for name, total in totals.items()}


def compiled(
    evaluate: Callable[[Any], Mapping[str, Any]], devices: Devices | None = None
) -> Callable[[Any, Any], Mapping[str, Any]]:
    """Returns an evaluation as one program, of a batch, which devices share, and the number of updates before."""

    @mk.jit
    def evaluate_after(batch: Any, step: Any) -> Mapping[str, Any]:
        with at(step):
            return evaluate(batch) if devices is None else devices.shown(evaluate(devices.divided(batch, 0)))

    return evaluate_after


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


def numbers(values: Any) -> dict[str, float]:
    """Returns what `measure` returned, or raises `TypeError` if it is no dict of numbers."""
    if not isinstance(values, Mapping) or any(jnp.shape(value) != () for value in values.values()):
        raise TypeError(f"measure must return a dict of numbers; it returned {values!r}")
    return {name: float(value) for name, value in values.items()}
