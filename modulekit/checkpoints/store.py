"""Training state on disk.

A store keeps numbered states, each a set of named arrays and a JSON record, behind a few verbs. Orbax keeps the states: one
is a directory that appears under its name only when it is complete, so that whatever a killed process leaves behind is
ignored. The arrays lie in a safetensors file, which other programs read as well; a checksum of each stands in the record.
A state can be written in the background, so that training goes on at once. Where arrays lie in parts in several processes,
each process writes a file of its parts.
"""

import contextlib
import functools
import json
import math
import os
import threading
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from modulekit.checkpoints.arrays import Block, StoredArray, blocks_of
from modulekit.checkpoints.exchange import Exchange
from modulekit.checkpoints.files import check_writable
from modulekit.checkpoints.handler import FILE, ArraysHandler, Restore, Save
from modulekit.checkpoints.preservation import Mode, Preservation
from modulekit.core.processes import is_first, is_in_parts
from modulekit.core.safetensors_layout import RESERVED
from modulekit.errors import CheckpointError

_ARRAYS, _RECORD = "arrays", "record"


class CheckpointStore:
    """Numbered states in a directory.

    Args:
      directory: made if missing.
      keep: how many of the newest states stay.
      keep_best: how many of those with the best scores stay beside them.
      best: whether a score is better the smaller (`min`) or the larger (`max`) it is.
      anchor_interval: the newest state whose number is a multiple of it stays as well; None for no such state.

    Raises:
      ValueError: `keep` is below 1, or `keep_best` below 0.
      OSError: the directory cannot be made or written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     store = CheckpointStore(directory)
    ...     store.save(10, {"w": np.ones([2], np.float32)}, {"seed": 3})
    ...     arrays, record = store.restore(store.latest())
    ...     store.close()
    >>> arrays["w"].tolist(), record
    ([1.0, 1.0], {'seed': 3})
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        keep: int = 3,
        keep_best: int = 0,
        best: Mode = "min",
        anchor_interval: int | None = None,
    ) -> None:
        if keep < 1:
            raise ValueError(f"keep={keep}: at least the newest state must stay")
        if keep_best < 0:
            raise ValueError(f"keep_best={keep_best} is below 0")
        self.directory = Path(directory).absolute()
        check_writable(self.directory)
        self._preservation = Preservation(keep, keep_best, best, anchor_interval)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self._preservation,
            enable_async_checkpointing=False,
            create=False,  # it has been made above
            multiprocessing_options=_by_itself(),
        )
        handlers = {_ARRAYS: ArraysHandler(), _RECORD: ocp.JsonCheckpointHandler(multiprocessing_options=_by_itself())}
        self._manager = ocp.CheckpointManager(self.directory, options=options, item_handlers=handlers)
        self._preservation.scores = self._scores()
        self._writer: threading.Thread | None = None
        self._written: deque[int] = deque()  # filled by the thread that writes
        self._error: BaseException | None = None
        self._exchange: Exchange | None = None

    def steps(self) -> list[int]:
        """Returns the numbers of all complete states, in order."""
        self.wait()
        return sorted(step for step in self._manager.all_steps() if step in self._preservation.scores)

    def latest(self) -> int | None:
        """Returns the number of the newest complete state, None if there is none."""
        return max(self.steps(), default=None)

    def best(self) -> int | None:
        """Returns the number of the state with the best score, None if none has one."""
        return next(iter(self._preservation.best_of(self.steps())), None)

    def anchor(self, step: int) -> int:
        """Returns the number of the newest state up to `step` that is a multiple of the anchor interval, else of the newest.

        Args:
          step: its number at most.

        Raises:
          CheckpointError: there is none.
        """
        there = [number for number in self.steps() if number <= step]
        if not there:
            raise CheckpointError(f"{self.directory} holds no state up to step {step} to go back to: {self.steps()}")
        return (self._preservation.anchors_of(there) or there)[-1]

    def save(
        self,
        step: int,
        arrays: Mapping[str, Any],
        record: Mapping[str, Any],
        score: float | None = None,
        in_background: bool = False,
    ) -> None:
        """Writes a state; when this returns it is complete on disk, unless it is written in the background.

        Where there are arrays that lie in parts in several processes, each process makes this call, and writes its parts;
        the first one writes the rest, and waits for the others, which all see the same directory.

        Args:
          step: its number.
          arrays: by name; of any shape and dtype.
          record: anything that JSON can hold.
          score: by which it may be among the best; None, or not finite, for no score.
          in_background: whether to copy what could change and return: not JAX arrays, which nobody may donate meanwhile.
            `wait` waits for the rest, as every other method does first; an error there is raised by the next method that
            is called.

        Raises:
          CheckpointError: there is a state of that number already, or a newer one; or another process could not write.
          ValueError: an array has the one name that the format keeps for itself.
        """
        if RESERVED in arrays:
            raise ValueError(f"an array cannot be named {RESERVED!r}, which safetensors files keep for themselves")
        if step in self.steps():
            raise CheckpointError(f"{self.directory} already holds a state of step {step}, which is not overwritten")
        copies = {
            name: np.array(a) if in_background and not isinstance(a, jax.Array) else a for name, a in arrays.items()
        }
        content = json.loads(json.dumps(dict(record)))  # a copy, too, and an error now if JSON cannot hold it
        is_shared = any(map(is_in_parts, copies.values()))
        if is_shared and self._exchange is None:
            self._exchange = Exchange(self.directory)
        exchange = self._exchange if is_shared else None
        if not in_background:
            self._write(step, copies, content, score, exchange)
            return
        state = (step, copies, content, score, exchange)
        self._writer = threading.Thread(target=self._write_apart, args=state, daemon=True)
        self._writer.start()

    def wait(self) -> None:
        """Waits for the state that is being written in the background."""
        if self._writer is not None:
            self._writer.join()
            self._writer = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def written(self) -> list[int]:
        """Returns the numbers of the states that have become complete since it was last asked. It does not wait."""
        return [self._written.popleft() for _ in range(len(self._written))]

    def record(self, step: int) -> dict[str, Any]:
        """Returns the record of a state, without reading its arrays.

        Args:
          step: its number.

        Raises:
          CheckpointError: there is no complete state of that number.
        """
        self._check_there(step)
        user: dict[str, Any] = self._whole_record(step)["user"]
        return user

    def restore(self, step: int, like: Mapping[str, jax.Array] | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns `(arrays, record)` of a state.

        Args:
          step: its number.
          like: arrays as which some are to lie, by name. Each process reads the parts that its devices take.

        Returns:
          JAX arrays where there is one of the same shape in `like`, NumPy arrays elsewhere; and the record.

        Raises:
          CheckpointError: there is no complete state of that number, or it is damaged.
        """
        self._check_there(step)
        items = ocp.args.Composite(**{_ARRAYS: Restore(), _RECORD: ocp.args.JsonRestore()})
        found = self._manager.restore(step, args=items)
        files, record, arrays = found[_ARRAYS], found[_RECORD], {}
        blocks: dict[str, list[Block]] = {}
        for block in (Block(*content) for content in record["blocks"]):
            blocks.setdefault(block.array, []).append(block)
        for name, shape, dtype in record["arrays"]:
            saved = StoredArray(shape, dtype, blocks.get(name, []), files, functools.partial(self._damaged, step, name))
            form = (like or {}).get(name)
            fits = form is not None and form.shape == tuple(shape)
            arrays[name] = saved.placed(form.sharding) if form is not None and fits else saved.whole()
        return arrays, record["user"]

    def look_again(self) -> None:
        """Learns which states another process has written since this store was opened."""
        self.wait()
        self._manager.reload()
        self._preservation.scores = self._scores()

    def close(self) -> None:
        """Waits for what is being written, and ends the threads that orbax keeps."""
        try:
            self.wait()
        finally:
            self._manager.close()

    def _scores(self) -> dict[int, float | None]:
        """Returns the scores of the states on disk, without those that a process was deleting when it was killed."""
        scores: dict[int, float | None] = {}
        for step in self._manager.all_steps():
            with contextlib.suppress(KeyError, ValueError, OSError):
                score = self._whole_record(step).get("score")
                if (self.directory / str(step) / _ARRAYS / FILE).exists():
                    scores[step] = score
        return scores

    def _check_there(self, step: int) -> None:
        steps = self.steps()
        if step not in steps:
            raise CheckpointError(f"{self.directory} holds no complete state of step {step}: {steps}")

    def _whole_record(self, step: int) -> dict[str, Any]:
        items = ocp.args.Composite(**{_RECORD: ocp.args.JsonRestore()})
        record: dict[str, Any] = self._manager.restore(step, args=items)[_RECORD]
        return record

    def _damaged(self, step: int, name: str) -> CheckpointError:
        return CheckpointError(
            f"the state of step {step} in {self.directory} is damaged: the bytes of {name!r} are not those that were "
            f"written. Delete the folder {step} there to go on from an earlier state"
        )

    def _write_apart(self, *state: Any) -> None:
        try:
            self._write(*state)
        except BaseException as error:  # raised again by the thread that trains
            self._error = error

    def _write(
        self,
        step: int,
        arrays: Mapping[str, Any],
        record: Mapping[str, Any],
        score: float | None,
        exchange: Exchange | None,
    ) -> None:
        """Writes a state, or what this process has of it: `exchange` is where several have a part each."""
        if exchange is not None and not is_first():
            exchange.give(step, arrays)
            return
        self._preservation.scores[step] = score if score is not None and math.isfinite(score) else None
        values, blocks = blocks_of(arrays, FILE)
        files, others = ([], []) if exchange is None else exchange.take(step)
        content = {
            "arrays": [[name, np.shape(array), str(array.dtype)] for name, array in arrays.items()],
            "blocks": [*blocks, *others],
            "user": record,
            "score": self._preservation.scores[step],
        }
        items = ocp.args.Composite(**{_ARRAYS: Save(values, files), _RECORD: ocp.args.JsonSave(content)})
        written = self._manager.save(step, args=items)
        self._manager.wait_until_finished()
        if not written:
            raise CheckpointError(
                f"{self.directory} holds states up to step {self._manager.latest_step()}, and takes only later ones, "
                f"not step {step}"
            )
        if exchange is not None:
            exchange.forget(step)
        self._written.append(step)


def _by_itself() -> Any:
    """Returns what lets each of several processes use a store without the others: one writes, and all may read."""
    index = jax.process_index()
    options = ocp.options.MultiprocessingOptions
    return options() if jax.process_count() == 1 else options(index, {index}, f"process_{index}")
