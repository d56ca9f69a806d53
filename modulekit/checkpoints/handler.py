"""How orbax writes and reads the files of a state's arrays."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp

from modulekit.core.safetensors_file import write
from modulekit.core.safetensors_reading import Tensors
from modulekit.errors import CheckpointError

FILE = "arrays.safetensors"  # of the process that completes the state


class ArraysHandler(ocp.CheckpointHandler):
    """Writes and reads the files of a state's arrays, in the directory that orbax gives it."""

    def save(self, directory: Any, args: "Save") -> None:
        """Writes the values, and moves the files of other processes to them."""
        write(Path(directory) / FILE, args.values)
        for file in args.files:
            file.replace(Path(directory) / file.name)

    def restore(self, directory: Any, args: "Restore") -> dict[str, Tensors]:
        """Returns the files by name."""
        return {path.name: _opened(path) for path in sorted(Path(directory).glob("*.safetensors"))}


def _opened(path: Path) -> Tensors:
    try:
        return Tensors(path)
    except (OSError, CheckpointError) as error:
        raise CheckpointError(f"{path} is damaged: {error}. Delete that state to go on from an earlier one") from error


@ocp.args.register_with_handler(ArraysHandler, for_save=True)
@dataclass
class Save(ocp.args.CheckpointArgs):
    """What is written.

    Attributes:
      values: by key.
      files: of other processes.
    """

    values: Mapping[str, np.ndarray[Any, Any]]
    files: list[Path]


@ocp.args.register_with_handler(ArraysHandler, for_restore=True)
@dataclass
class Restore(ocp.args.CheckpointArgs):
    """Nothing to choose."""
