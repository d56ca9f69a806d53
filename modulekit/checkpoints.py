"""Training state on disk.

A store keeps numbered states, each a set of named arrays and a JSON record, behind a few verbs. Orbax keeps the states: one
is a directory that appears under its name only when it is complete, so that whatever a killed process leaves behind is
ignored. The arrays lie in one safetensors file, which other programs read as well; a checksum of each stands in the record.
A state can be written in the background, so that training goes on at once.
"""

import contextlib
import json
import math
import os
import threading
import zlib
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import safetensors

from modulekit.core.safetensors_file import write
from modulekit.core.safetensors_layout import DTYPES, RESERVED
from modulekit.errors import CheckpointError

_ARRAYS, _RECORD = "arrays", "record"
_FILE = "arrays.safetensors"
Mode = Literal["min", "max"]


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
        self._preservation = _Preservation(keep, keep_best, best, anchor_interval)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self._preservation,
            enable_async_checkpointing=False,
            create=False,  # it has been made above
            multiprocessing_options=_by_itself(),
        )
        handlers = {_ARRAYS: _ArraysHandler(), _RECORD: ocp.JsonCheckpointHandler(multiprocessing_options=_by_itself())}
        self._manager = ocp.CheckpointManager(self.directory, options=options, item_handlers=handlers)
        self._preservation.scores = self._scores()
        self._writer: threading.Thread | None = None
        self._written: deque[int] = deque()  # filled by the thread that writes
        self._error: BaseException | None = None

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

        Args:
          step: its number.
          arrays: by name; of any shape and dtype.
          record: anything that JSON can hold.
          score: by which it may be among the best; None, or not finite, for no score.
          in_background: whether to copy what could change and return: not JAX arrays, which nobody may donate meanwhile.
            `wait` waits for the rest, as every other method does first; an error there is raised by the next method that
            is called.

        Raises:
          CheckpointError: there is a state of that number already, or a newer one.
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
        if not in_background:
            self._write(step, copies, content, score)
            self._written.append(step)
            return
        self._writer = threading.Thread(target=self._write_apart, args=(step, copies, content, score), daemon=True)
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

    def restore(self, step: int) -> tuple[dict[str, np.ndarray[Any, Any]], dict[str, Any]]:
        """Returns `(arrays, record)` of a state.

        Args:
          step: its number.

        Raises:
          CheckpointError: there is no complete state of that number, or it is damaged.
        """
        self._check_there(step)
        items = ocp.args.Composite(**{_ARRAYS: _Restore(), _RECORD: ocp.args.JsonRestore()})
        found = self._manager.restore(step, args=items)
        raw, record, arrays = found[_ARRAYS], found[_RECORD], {}
        for name, shape, dtype, checksum in record["arrays"]:
            if name not in raw or zlib.crc32(raw[name]) != checksum:
                raise CheckpointError(
                    f"the state of step {step} in {self.directory} is damaged: the bytes of {name!r} are not those that "
                    f"were written. Delete the folder {step} there to go on from an earlier state"
                )
            arrays[name] = np.frombuffer(raw[name], np.uint8).view(jnp.dtype(dtype)).reshape(shape)
        return arrays, record["user"]

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
                if (self.directory / str(step) / _ARRAYS / _FILE).exists():
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

    def _write_apart(self, *state: Any) -> None:
        try:
            self._write(*state)
        except BaseException as error:  # raised again by the thread that trains
            self._error = error
        else:
            self._written.append(state[0])

    def _write(self, step: int, arrays: Mapping[str, Any], record: Mapping[str, Any], score: float | None) -> None:
        self._preservation.scores[step] = score if score is not None and math.isfinite(score) else None
        plain = {name: np.asarray(array, order="C") for name, array in arrays.items()}
        specs = [
            [name, a.shape, str(a.dtype), zlib.crc32(a.reshape(-1).view(np.uint8).data)] for name, a in plain.items()
        ]
        content = {"arrays": specs, "user": record, "score": self._preservation.scores[step]}
        items = ocp.args.Composite(**{_ARRAYS: _Save(plain), _RECORD: ocp.args.JsonSave(content)})
        written = self._manager.save(step, args=items)
        self._manager.wait_until_finished()
        if not written:
            raise CheckpointError(
                f"{self.directory} holds states up to step {self._manager.latest_step()}, and takes only later ones, "
                f"not step {step}"
            )


def _by_itself() -> Any:
    """Returns what lets each of several processes use a store without the others: one writes, and all may read."""
    index = jax.process_index()
    options = ocp.options.MultiprocessingOptions
    return options() if jax.process_count() == 1 else options(index, {index}, f"process_{index}")


class _ArraysHandler(ocp.CheckpointHandler):
    """Writes and reads the file of a state's arrays, in the directory that orbax gives it."""

    def save(self, directory: Any, args: "_Save") -> None:
        """Writes the arrays; those of dtypes that the format does not have, as bytes."""
        path = Path(directory) / _FILE
        arrays = {
            name: a if a.dtype in DTYPES.values() else a.reshape(-1).view(np.uint8) for name, a in args.arrays.items()
        }
        write(path, arrays)

    def restore(self, directory: Any, args: "_Restore") -> dict[str, bytearray]:
        """Returns the bytes of each array."""
        path = Path(directory) / _FILE
        try:
            found = safetensors.deserialize(path.read_bytes())  # type: ignore[no-untyped-call]
            return {name: tensor["data"] for name, tensor in found}
        except (OSError, safetensors.SafetensorError) as error:
            raise CheckpointError(
                f"{path} is damaged: {error}. Delete that state to go on from an earlier one"
            ) from error


@ocp.args.register_with_handler(_ArraysHandler, for_save=True)
@dataclass
class _Save(ocp.args.CheckpointArgs):
    arrays: Mapping[str, np.ndarray[Any, Any]]


@ocp.args.register_with_handler(_ArraysHandler, for_restore=True)
@dataclass
class _Restore(ocp.args.CheckpointArgs):
    pass


class _Preservation:
    """Decides which states stay: the newest, the best, and the anchor. A preservation policy of orbax."""

    def __init__(self, keep: int, keep_best: int, best: Mode, anchor_interval: int | None) -> None:
        self.scores: dict[int, float | None] = {}
        self._keep, self._keep_best, self._anchor_interval = keep, keep_best, anchor_interval
        self._sign = 1.0 if best == "min" else -1.0

    def best_of(self, steps: Sequence[int]) -> list[int]:
        """Returns the steps that have a score, the best first and the older one of two equal ones."""
        scored = [(score, step) for step in steps if (score := self.scores.get(step)) is not None]
        return [step for _, step in sorted((self._sign * score, step) for score, step in scored)]

    def anchors_of(self, steps: Sequence[int]) -> list[int]:
        """Returns the steps that are multiples of the anchor interval; none where there is no interval."""
        return [step for step in steps if self._anchor_interval is not None and step % self._anchor_interval == 0]

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Returns, for each state from old to new, whether it stays."""
        steps = [checkpoint.step for checkpoint in checkpoints]
        staying = {*steps[-self._keep :], *self.best_of(steps)[: self._keep_best]}
        staying.update(self.anchors_of(steps)[-1:])
        return [step in staying for step in steps]


def check_writable(directory: Path, setting: str = "directory") -> None:
    """Makes a directory, and raises `OSError` naming it and the setting if files cannot be written there.

    Args:
      directory: its path; the directories around are made as well.
      setting: which setting gave it, for the message.

    Raises:
      OSError: it cannot be made or written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     check_writable(Path(directory) / "runs" / "first")
    ...     sorted(path.name for path in Path(directory).rglob("*"))
    ['first', 'runs']
    """
    probe = directory / f".write-test-{os.getpid()}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise OSError(f"cannot write to {setting} {str(directory)!r}: {error.strerror or error}") from error


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file atomically: readers see the old content or the new.

    Args:
      path: the file; its directory exists.
      content: anything that JSON can hold.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     write_json(Path(directory) / "result.json", {"step": 3})
    ...     json.loads((Path(directory) / "result.json").read_text())
    {'step': 3}
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    temporary.replace(path)


def read_json(path: Path) -> Any:
    """Returns what a JSON file holds.

    Args:
      path: the file.

    Raises:
      CheckpointError: there is none, or it holds something else.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     read_json(Path(directory) / "result.json")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    modulekit.errors.CheckpointError: cannot read ...result.json: No such file or directory
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is no JSON: {error}") from error
