"""Streams of the batches of updates, where an update takes more than the next batch."""

from collections.abc import Callable
from typing import Any, TypeAlias, final

import numpy as np

from modulekit.data import Arrays, Stream, batch_indices
from modulekit.data.stream import State
from modulekit.data.structure import stack
from scenarios.base.settings import Settings

Indices: TypeAlias = np.ndarray[Any, Any]
Choose: TypeAlias = Callable[[int, int], Indices]  # from (step, count) to `[count, ..., batch]`: examples of updates


def chosen(scenario: Any, settings: Settings, size: int, step: int, count: int) -> Indices:
    """Returns which examples updates take, as the scenario says.

    Args:
      scenario: with a method `indices` where it chooses itself.
      settings: its settings.
      size: the number of examples.
      step: the number of updates before.
      count: the number of updates.

    Returns:
      `[count, ..., batch]`.

    Raises:
      ValueError: there are fewer examples than a batch has.
    """
    own = getattr(scenario, "indices", None)
    if own is not None:
        return np.asarray(own(size, step, count))
    each = scenario.batches_per_update
    found = batch_indices(size, settings.batch_size, settings.seed, step * each, count * each)
    return found if each == 1 else found.reshape(count, each, settings.batch_size)


@final
class ChosenBatches(Stream):
    """Batches of arrays in host memory, each a function of the step.

    Args:
      data: the examples.
      choose: which of them an update takes.
      step: the first one.
    """

    resumable = True

    def __init__(self, data: Arrays, choose: Choose, step: int) -> None:
        self._data, self._choose, self._step = data, choose, step

    def __next__(self) -> Any:
        """Gathers the examples of the next step."""
        self._step += 1
        return self._data.take(self._choose(self._step - 1, 1)[0])

    def state(self) -> State:
        """Returns the number of steps."""
        return {"kind": "step", "step": self._step}

    def restore(self, state: State) -> None:
        """Goes to a step."""
        self._step = state["step"]

    def describe(self) -> str:
        """Says what it is."""
        return f"{self._data!r}, which resumes exactly (by the step)"


@final
class GroupedBatches(Stream):
    """Several batches of a stream for each update: `[count, batch, ...]`. What is left at its end is too little for one.

    Args:
      stream: the batches.
      count: how many are one.
    """

    def __init__(self, stream: Stream, count: int) -> None:
        self._stream, self._count = stream, count
        self.resumable = stream.resumable

    def __next__(self) -> Any:
        """Stacks the next batches."""
        return stack([next(self._stream) for _ in range(self._count)], "batch")

    def state(self) -> State:
        """Returns the position after the last of them."""
        return self._stream.state()

    def restore(self, state: State) -> None:
        """Goes to a position."""
        self._stream.restore(state)

    def describe(self) -> str:
        """Says what the stream is."""
        return self._stream.describe()
