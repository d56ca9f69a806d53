"""Training state on disk.

A store keeps numbered states, each a set of named arrays and a JSON record, behind four verbs. Orbax writes them: a
state is a directory that appears under its name only when it is complete, so that whatever a killed process leaves
behind is ignored. Array names, shapes and dtypes stand in the record; orbax sees numbered arrays.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp

from modulekit.errors import CheckpointError

_ARRAYS, _RECORD = "arrays", "record"


class CheckpointStore:
    """Numbered states in a directory.

    Args:
      directory: made if missing.
      keep: how many of the newest states stay.

    Raises:
      ValueError: `keep` is below 1.
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

    def __init__(self, directory: str | os.PathLike[str], keep: int = 3) -> None:
        if keep < 1:
            raise ValueError(f"keep={keep}: at least the newest state must stay")
        self.directory = Path(directory).absolute()
        check_writable(self.directory)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=ocp.checkpoint_managers.LatestN(keep), enable_async_checkpointing=False
        )
        self._manager = ocp.CheckpointManager(self.directory, options=options)

    def latest(self) -> int | None:
        """Returns the number of the newest complete state, None if there is none."""
        step: int | None = self._manager.latest_step()
        return step

    def save(self, step: int, arrays: Mapping[str, Any], record: Mapping[str, Any]) -> None:
        """Writes a state; when this returns it is complete on disk.

        Args:
          step: its number.
          arrays: by name; of any shape and dtype.
          record: anything that JSON can hold.

        Raises:
          CheckpointError: there is a state of that number already, or a newer one.
        """
        if step in self._manager.all_steps():
            raise CheckpointError(f"{self.directory} already holds a state of step {step}, which is not overwritten")
        specs = [[name, list(np.shape(a)), str(a.dtype)] for name, a in arrays.items()]
        stored = {str(i): a for i, a in enumerate(arrays.values()) if np.size(a)}
        items: dict[str, Any] = {_RECORD: ocp.args.JsonSave({"arrays": specs, "user": dict(record)})}
        if stored:  # orbax refuses to write none
            items[_ARRAYS] = ocp.args.StandardSave(stored)
        written = self._manager.save(step, args=ocp.args.Composite(**items))
        self._manager.wait_until_finished()
        if not written:
            raise CheckpointError(
                f"{self.directory} holds states up to step {self.latest()}, and takes only later ones, not step {step}"
            )

    def restore(self, step: int) -> tuple[dict[str, np.ndarray[Any, Any]], dict[str, Any]]:
        """Returns `(arrays, record)` of a state.

        Args:
          step: its number.

        Raises:
          CheckpointError: there is no complete state of that number.
        """
        if step not in self._manager.all_steps():
            raise CheckpointError(
                f"{self.directory} holds no complete state of step {step}: {self._manager.all_steps()}"
            )
        record = self._manager.restore(step, args=ocp.args.Composite(**{_RECORD: ocp.args.JsonRestore()}))[_RECORD]
        specs = record["arrays"]
        # NumPy arrays as the wanted form keep every dtype; JAX arrays would narrow float64 without a word.
        wanted = {str(i): np.empty(shape, dtype) for i, (_, shape, dtype) in enumerate(specs) if 0 not in shape}
        stored = {}
        if wanted:
            items = ocp.args.Composite(**{_ARRAYS: ocp.args.StandardRestore(wanted)})
            stored = self._manager.restore(step, args=items)[_ARRAYS]
        arrays = {
            name: np.zeros(shape, dtype) if 0 in shape else np.asarray(stored[str(i)])
            for i, (name, shape, dtype) in enumerate(specs)
        }
        return arrays, record["user"]

    def close(self) -> None:
        """Ends the threads that orbax keeps."""
        self._manager.close()


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
