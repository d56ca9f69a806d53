"""What an intake keeps on disk, so that a process may be killed at any moment.

Each contribution is a file of its own, and the weights of a version are one: safetensors, with what else belongs to it as
JSON in the metadata. A file is written under another name, brought to disk, and only then renamed, so that there are whole
files and names with a leading dot, which are what a killed process has left.
"""

import json
import logging
import os
import shutil
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import safetensors.numpy

import modulekit as mk
from modulekit.checkpoints import check_writable
from modulekit.core.places import Parts
from modulekit.errors import CheckpointError
from scenarios.aggregation.receipt import Contribution, Key
from scenarios.base.lock import lock_of_this_process

_log = logging.getLogger("scenarios")
_RECORD = "intake"  # the key of our own text in the metadata
_MODEL, _OPTIMIZER = "model", "optimizer"


class Archive:
    """The directory of an intake, which belongs to this process while the archive lives.

    Args:
      directory: made if missing; what a killed process has left half-written there is removed.

    Raises:
      CheckpointError: another process uses it.
      OSError: it cannot be made or written.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = Path(directory).absolute()
        self._contributions = self.directory / "contributions"
        self._state = self.directory / "state.safetensors"
        check_writable(self._contributions)
        self._lock = lock_of_this_process(self.directory, "directory")  # before what might be another one's is removed
        for folder, pattern in (
            (self.directory, f".{self._state.name}.*"),
            (self._contributions, ".*.safetensors"),
            (self._contributions, ".write-test-*"),
        ):
            for left in folder.glob(pattern):
                shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
            _sync(folder.parent)

    # Contributions.

    def keep(self, contribution: Contribution) -> None:
        """Writes a contribution; when this returns, a kill or a power failure no longer loses it."""
        record = {"id": contribution.id, "version": contribution.version, "weight": contribution.weight}
        path = self._path(contribution.key)
        temporary = path.with_name(f".{path.name}")
        try:
            content = safetensors.numpy.save(contribution.gradients, {_RECORD: json.dumps(record)})
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())  # the name must not come to disk before the bytes
            temporary.replace(path)
            _sync(self._contributions)
        except OSError:
            path.unlink(missing_ok=True)
            raise
        finally:
            temporary.unlink(missing_ok=True)

    def contributions(self) -> list[Contribution]:
        """Returns the contributions that are there. A damaged file is left aside, with a warning in the log."""
        found = []
        for path in sorted(self._contributions.glob("*.safetensors")):
            try:
                file = mk.weights.read(path)
                record = json.loads(file.metadata[_RECORD])
                gradients = {name: array.numpy() for name, array in file.items()}
                found.append(Contribution(record["id"], record["version"], record["weight"], gradients))
            except (CheckpointError, KeyError, TypeError, ValueError) as error:
                _log.warning("%s is no contribution, and is left aside: %s", path, error)
        return found

    def remove(self, keys: Iterable[Key]) -> None:
        """Deletes contributions; none of them need be there."""
        for key in keys:
            self._path(key).unlink(missing_ok=True)

    def _path(self, key: Key) -> Path:
        version, name = key
        return self._contributions / f"{version}-{blake2b(name.encode(), digest_size=16).hexdigest()}.safetensors"

    # The weights of a version.

    def save(self, record: Mapping[str, Any], model: Parts, optimizer: mk.Optimizer | None) -> None:
        """Writes weights, slots and a record in one file, in place of that of the version before."""
        mk.weights.save(self._state, _parts(model, optimizer), {_RECORD: json.dumps(dict(record))})
        _sync(self.directory)

    def record(self) -> dict[str, Any] | None:
        """Returns the record of the saved version, None if there is none.

        Raises:
          CheckpointError: the file is damaged.
        """
        if not self._state.exists():
            return None
        found: dict[str, Any] = json.loads(mk.weights.read(self._state).metadata.get(_RECORD, "{}"))
        if not found:
            raise CheckpointError(f"{self._state} was not written by an intake: choose another directory")
        return found

    def restore(self, model: Parts, optimizer: mk.Optimizer | None = None) -> None:
        """Gives a model, and an optimizer that has its slots, the values of the saved version.

        Raises:
          CheckpointError: they do not fit. Nothing has changed.
        """
        file: Mapping[str, Any] = mk.weights.read(self._state)
        if optimizer is None:
            file = {name: array for name, array in file.items() if name.split(".")[0] == _MODEL}
        mk.weights.load(file, _parts(model, optimizer))


def slots_made(optimizer: mk.Optimizer, variables: Iterable[mk.Variable]) -> None:
    """Makes the variables that an optimizer keeps for some others, and changes nothing else."""
    pairs = [(jnp.zeros(v.shape, v.dtype), v) for v in variables]
    mk.build(lambda: optimizer.apply_gradients(pairs))


def _parts(model: Parts, optimizer: mk.Optimizer | None) -> dict[str, Any]:
    named = {_MODEL: model} if isinstance(model, mk.Module) else {f"{_MODEL}.{name}": p for name, p in model.items()}
    has_slots = optimizer is not None and optimizer.paths()
    return {**named, _OPTIMIZER: optimizer} if has_slots else named


def _sync(folder: Path) -> None:
    """Brings the names in a folder to disk, where the system can do that."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
