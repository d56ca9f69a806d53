"""The examples that a model does worst on."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from modulekit.data import Arrays
from scenarios.evaluation.defaults import is_image
from scenarios.evaluation.forward import Batch

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Example:
    """One of the worst examples.

    Attributes:
      index: its place in the data.
      score: its loss.
      target: its class; None where targets are no classes.
      prediction: the class that the model takes it for; None likewise.
      image: `[height, width, channels]`, if inputs are images.
      output: the model's output, if that is an image as well.

    >>> Example(index=3, score=2.5, target=7, prediction=1)
    Example(index=3, score=2.5, target=7, prediction=1, image=None, output=None)
    """

    index: int
    score: float
    target: int | None = None
    prediction: int | None = None
    image: Array | None = None
    output: Array | None = None


def worst_of(
    scores: Array | None,
    count: int,
    inputs: Arrays,
    targets: Arrays,
    outputs_of: Callable[[Batch], Any],
    batches: Iterable[Batch],
) -> list[Example]:
    """Returns the examples with the highest scores, `[examples]`, a score that is no number being the highest of all."""
    if scores is None or count == 0:
        return []
    chosen = np.argsort(-np.where(np.isnan(scores), np.inf, scores), kind="stable")[:count]
    size = len(next(iter(batches)).indices)
    found = []
    for start in range(0, len(chosen), size):
        some = chosen[start : start + size]
        batch = Batch(np.resize(some, size), np.arange(size) < len(some))
        outputs, wanted = batch.true(outputs_of(batch)), targets.take(some)
        images = inputs.take(some)
        for row, index in enumerate(some):
            classes = _classes(outputs, wanted, row)
            found.append(Example(int(index), float(scores[index]), *classes, _image(images, row), _image(outputs, row)))
    return found


def _classes(outputs: Any, targets: Any, row: int) -> tuple[int | None, int | None]:
    if not isinstance(targets, np.ndarray) or not np.issubdtype(targets.dtype, np.integer) or targets.ndim != 1:
        return None, None
    return int(targets[row]), int(outputs[row].argmax())


def _image(arrays: Any, row: int) -> Array | None:
    leaves = jax.tree.leaves(arrays)
    if len(leaves) != 1 or not is_image(leaves[0].shape):
        return None
    image: Array = leaves[0][row]
    return image
