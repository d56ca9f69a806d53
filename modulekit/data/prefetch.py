"""Reading ahead: a thread draws batches while the program trains, and lays them out in groups for many steps.

The thread fills *blocks*: arrays `[count, batch, ...]` of which each batch of a stream is one row. The reader takes rows
from the first block, without a copy, and a block that is full, or that the next batch does not fit, is followed by
another one. With each row goes the position of the stream after it, so that a saved state knows nothing of what was
read ahead.
"""

import threading
import weakref
from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, final

import numpy as np

from modulekit.data.conversion import BATCH
from modulekit.data.order import checked_integer
from modulekit.data.stream import State, Stream
from modulekit.data.structure import leaves_of, map_leaves, signature


@final
@dataclass(frozen=True)
class Group:
    """Consecutive batches of one shape.

    Attributes:
      arrays: the structure of a batch, with leaves of shape `[count, batch, ...]`.
      states: the stream's position after each batch.

    >>> from modulekit.data import Prefetch, stream
    >>> with Prefetch(stream([np.zeros([2]), np.ones([2]), np.ones([3])]), group=5) as prefetch:
    ...     group = prefetch.take(5)
    >>> group.count, group.arrays.shape, group.state_after["batch"]
    (2, (2, 2), 2)
    """

    arrays: Any
    states: list[State]

    @property
    def count(self) -> int:
        """The number of batches."""
        return len(self.states)

    @property
    def state_after(self) -> State:
        """The stream's position after the last batch."""
        return self.states[-1]


@final
class Prefetch:
    """Draws batches in a thread, at most `ahead` groups before they are taken.

    An exception of the stream, `StopIteration` among them, is raised by `take` where it stands in the order: after all
    batches before it. Nothing else may use the stream until `close`.

    Args:
      stream: where the batches come from.
      group: the number of batches to lay out together, until `take` announces another one.
      ahead: how many groups to draw before they are taken, the one being drawn among them.
      max_bytes: of memory for what is drawn ahead; groups become smaller, down to one batch, to keep to it.

    Attributes:
      state: the stream's position after the last batch taken.

    Raises:
      ValueError: if a number is below 1.

    >>> from modulekit.data import Prefetch, stream
    >>> with Prefetch(stream([np.zeros([2]), np.ones([2])]), group=3) as prefetch:
    ...     first, second = prefetch.take(limit=2), prefetch.take(limit=2)
    >>> first.arrays.tolist(), second.arrays.tolist(), prefetch.state["epoch"]
    ([[0.0, 0.0], [1.0, 1.0]], [[0.0, 0.0]], 1)
    """

    def __init__(self, stream: Stream, group: int, ahead: int = 2, max_bytes: int = 2**28) -> None:
        """Starts the thread."""
        group, ahead = checked_integer("group", group, 1), checked_integer("ahead", ahead, 1)
        max_bytes = checked_integer("max_bytes", max_bytes, 1)
        self.state: State = stream.state()
        self._queue = _Queue(group, ahead, max_bytes)
        # The thread knows the queue only: a Prefetch that is dropped without `close` ends it.
        self._thread = threading.Thread(target=self._queue.fill, args=(stream,), name="prefetch", daemon=True)
        self._end = weakref.finalize(self, self._queue.close)
        self._thread.start()

    def take(self, limit: int, then: int | None = None, least: int | None = None) -> Group:
        """Returns the next batches, waiting for them if need be.

        Args:
          limit: the most batches to return; there are fewer where a group was laid out smaller, or ends because the
            next batch has another shape.
          least: how many to wait for; `limit` if None.
          then: the number of batches that the next calls will want, if not that of before.

        Returns:
          A group of 1 .. limit batches.

        Raises:
          ValueError: if limit, then or least is below 1.
          RuntimeError: after `close`.
          Exception: what the stream raised, when all batches before that are taken; `StopIteration` at its end.
        """
        then = None if then is None else checked_integer("then", then, 1)
        limit = checked_integer("limit", limit, 1)
        least = limit if least is None else min(limit, checked_integer("least", least, 1))
        group = self._queue.take(limit, then, least)
        self.state = group.state_after
        return group

    def close(self, wait: float = 1.0) -> None:
        """Ends the thread; a second call does nothing.

        Args:
          wait: the seconds to wait for a stream that is drawing a batch. One that takes longer is left behind, and the
            thread ends as soon as it returns, or with the process.
        """
        if self._end.alive:
            self._end()
            self._thread.join(wait)

    def __enter__(self) -> "Prefetch":
        """Returns itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Closes."""
        self.close()


class _Block:
    """Room for batches of one kind, of which the first `len(states)` are there and the first `taken` are gone.

    It is sealed when no further batch will be added.
    """

    def __init__(self, batch: Any, capacity: int) -> None:
        self.kind: Hashable = signature(batch)
        self.capacity = capacity
        self.states: list[State] = []
        self.taken = 0
        self.is_sealed = False
        self._arrays = map_leaves(lambda leaf, path: np.empty((capacity, *leaf.shape), leaf.dtype), batch, BATCH)
        self._rows = dict(leaves_of(self._arrays, BATCH))

    @property
    def available(self) -> int:
        """The number of batches that can be taken."""
        return len(self.states) - self.taken

    def write(self, row: int, batch: Any) -> None:
        """Copies a batch: some sources use its memory again for the next one."""
        for path, leaf in leaves_of(batch, BATCH):
            self._rows[path][row] = leaf

    def read(self, count: int) -> Group:
        """Takes batches away."""
        rows = slice(self.taken, self.taken + count)
        self.taken += count
        return Group(map_leaves(lambda leaf, path: leaf[rows], self._arrays, BATCH), self.states[rows])


class _Queue:
    """The blocks between the thread and the reader, and the one condition on which both wait."""

    def __init__(self, group: int, ahead: int, max_bytes: int) -> None:
        self._group, self._ahead, self._max_bytes = group, ahead, max_bytes
        self._changed = threading.Condition()
        self._blocks: deque[_Block] = deque()
        self._error: BaseException | None = None
        self._is_closed = False

    # The thread's side.

    def fill(self, stream: Stream) -> None:
        """Draws batches until the stream ends or the queue is closed."""
        try:
            while self._wait_for_room():
                batch = next(stream)
                self._add(batch, stream.state())
        except BaseException as error:  # it is the reader's, whatever it is
            with self._changed:
                self._error = error
                self._seal_last()

    def _wait_for_room(self) -> bool:
        """Waits until one more batch may be drawn; returns False once the queue is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or self._last is not None or len(self._blocks) < self._ahead)
            return not self._is_closed

    def _add(self, batch: Any, state: State) -> None:
        with self._changed:
            block, group = self._last, self._group
        if block is None or block.kind != signature(batch):
            size = sum(leaf.nbytes for _, leaf in leaves_of(batch, BATCH))
            block = _Block(batch, max(1, min(group, self._max_bytes // max(1, size * self._ahead))))
        block.write(len(block.states), batch)  # outside of the lock: the reader does not look beyond the states
        with self._changed:
            if block is not self._last:
                self._seal_last()
                self._blocks.append(block)
            block.states.append(state)
            block.is_sealed = len(block.states) == block.capacity
            self._changed.notify_all()

    @property
    def _last(self) -> _Block | None:
        """The block that has room for more batches, if there is one."""
        return self._blocks[-1] if self._blocks and not self._blocks[-1].is_sealed else None

    def _seal_last(self) -> None:
        if self._last is not None:
            self._last.is_sealed = True
        self._drop_spent()
        self._changed.notify_all()

    # The reader's side.

    def take(self, limit: int, then: int | None, least: int) -> Group:
        """Takes batches from the first block, once it has enough or will have no more."""
        with self._changed:
            if then is not None:
                self._group = then
            self._changed.wait_for(lambda: self._is_closed or self._is_ready(least))
            if self._is_closed:
                raise RuntimeError("take() was called after close(): make a new Prefetch, of a stream at its `state`")
            if not self._blocks and self._error is not None:
                raise self._error
            group = self._blocks[0].read(min(limit, self._blocks[0].available))
            self._drop_spent()
            self._changed.notify_all()
            return group

    def _is_ready(self, least: int) -> bool:
        if not self._blocks:
            return self._error is not None
        return self._blocks[0].is_sealed or self._blocks[0].available >= least

    def _drop_spent(self) -> None:
        while self._blocks and self._blocks[0].is_sealed and not self._blocks[0].available:
            self._blocks.popleft()

    def close(self) -> None:
        """Lets go of everything, and ends the waiting on both sides."""
        with self._changed:
            self._is_closed = True
            self._blocks.clear()
            self._changed.notify_all()
