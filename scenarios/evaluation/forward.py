"""A trained model on a data set: batch by batch, all of one shape, by one compiled program."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, final

import jax
import numpy as np

import modulekit as mk
from modulekit.core.overlay import active, bakes_reads
from modulekit.data import Arrays, evaluation_batches
from scenarios.base.calling import call_model
from scenarios.evaluation.placement import Placement


@dataclass(frozen=True)
class Batch:
    """Some examples, filled up to the size of all batches.

    Attributes:
      indices: `[batch]`, which examples of the data; the last one again and again where there are no more.
      mask: `[batch]`, false for what only fills up.
    """

    indices: np.ndarray[Any, Any]
    mask: np.ndarray[Any, Any]

    def true(self, outputs: Any) -> Any:
        """Returns, as NumPy arrays, the outputs of those examples that are no filling."""
        count = int(self.mask.sum())
        return jax.tree.map(lambda output: np.asarray(output)[:count], outputs)


@final
class Forward:
    """Calls models, not in training, and leaves all variables as they were.

    Args:
      batch_size: examples per call; fewer if there are fewer, and up to a multiple of the devices.
      devices: how many devices share a batch.
    """

    def __init__(self, batch_size: int, devices: int | None) -> None:
        evaluation_batches(1, batch_size)  # checks it
        self._batch_size = batch_size
        self._placement = Placement(devices)
        self._model: Any = None
        self._program: Callable[[Any], Any] | None = None

    def batches(self, size: int) -> Iterator[Batch]:
        """Walks over all examples once, in order."""
        batch_size = self._size(size)
        for part in evaluation_batches(size, batch_size):
            numbers = np.arange(part.start, part.start + batch_size)
            yield Batch(np.minimum(numbers, size - 1), numbers < size)

    def shapes(self, model: Any, inputs: Arrays) -> Any:
        """Returns the shapes of a batch's outputs, makes the model's variables, and computes nothing.

        Raises:
          RuntimeError: inside a transform.
          ValueError: an output has not one row per example.
        """
        if active() is not None or bakes_reads():
            raise RuntimeError("an evaluation was called inside a transform: it compiles its own calls of the model")
        size = self._size(inputs.size)
        outputs = mk.build(functools.partial(call_model, model, is_training=False), self.specification(inputs))
        if not jax.tree.leaves(outputs):
            raise ValueError(f"the model must return one row per example, [{size}, ...]; it returned {outputs!r}")
        for path, leaf in jax.tree_util.tree_leaves_with_path(outputs):
            if getattr(leaf, "shape", ())[:1] != (size,):
                raise ValueError(
                    f"the model must return one row per example, [{size}, ...]; its output{jax.tree_util.keystr(path)} "
                    f"has shape {list(getattr(leaf, 'shape', ()))}"
                )
        return outputs

    def specification(self, data: Arrays) -> Any:
        """Returns the shapes and dtypes of a batch of the data."""
        size = self._size(data.size)
        return jax.tree.map(lambda array: jax.ShapeDtypeStruct((size, *array.shape[1:]), array.dtype), data.arrays)

    @contextlib.contextmanager
    def of(self, model: Any, inputs: Arrays) -> Iterator[Callable[[Batch], Any]]:
        """Context that gives a function from a batch to the model's outputs, those of the filling included."""
        program = self._compiled(model)
        call = functools.partial(call_model, model, is_training=False)
        used = [] if self._placement.count == 1 else mk.footprint(call, self.specification(inputs)).reads

        def outputs(batch: Batch) -> Any:
            with mk.trial() as trial:
                found = self._placement.gathered(program(self._placement.spread(inputs.take(batch.indices))))
                trial.rollback()
            return found

        with self._placement.holding(used):
            yield outputs

    def _compiled(self, model: Any) -> Callable[[Any], Any]:
        if self._program is None or self._model is not model:
            self._model = model
            self._program = mk.jit(lambda inputs: call_model(model, inputs, is_training=False))
        return self._program

    def _size(self, size: int) -> int:
        return self._placement.rounded(min(self._batch_size, size))
