"""Batches of arrays in host memory, in the order of training."""

from typing import Any, final

from modulekit.data.arrays import Arrays
from modulekit.data.order import batch_indices
from modulekit.data.stream import State, Stream


@final
class IndexedBatches(Stream):
    """The batches that `batch_indices` lists, without end: for arrays that stay on the host.

    Args:
      arrays: the examples.
      batch_size: the number of examples of a batch; a batch may straddle two epochs, and none is smaller.
      seed: the seed of the run.
      shuffle: whether each epoch has its own random order.

    Raises:
      ValueError: if the batch_size is not in 1 .. size, or the seed is negative.

    >>> import numpy as np
    >>> import modulekit as mk
    >>> batches = mk.data.IndexedBatches(mk.data.Arrays(np.arange(5)), batch_size=2, seed=0, shuffle=False)
    >>> next(batches), next(batches), next(batches), batches.state()
    (array([0, 1], dtype=int32), array([2, 3], dtype=int32), array([4, 0], dtype=int32), {'kind': 'step', 'step': 3})
    """

    resumable = True

    def __init__(self, arrays: Arrays, batch_size: int, seed: int, shuffle: bool = True) -> None:
        """Checks the sizes."""
        self._arrays, self._batch_size, self._seed, self._shuffle = arrays, batch_size, seed, shuffle
        self._step = 0
        batch_indices(arrays.size, batch_size, seed, 0, 0, shuffle)

    def __next__(self) -> Any:
        """Gathers the examples of the next step."""
        indices = batch_indices(self._arrays.size, self._batch_size, self._seed, self._step, 1, self._shuffle)
        self._step += 1
        return self._arrays.take(indices[0])

    def state(self) -> State:
        """Returns the number of steps."""
        return {"kind": "step", "step": self._step}

    def restore(self, state: State) -> None:
        """Goes to a step, in a time that does not depend on it."""
        if state.get("kind") != "step":
            raise ValueError(
                f"the position was saved from a source of kind {state.get('kind')!r}, and this one is of kind 'step': "
                f"{self.describe()}; give the source with which the run began"
            )
        self._step = state["step"]

    def describe(self) -> str:
        """Says what it is."""
        return f"{self._arrays!r} in batches of {self._batch_size}, which resume exactly (by the step)"
