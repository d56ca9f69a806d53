"""Writing a safetensors file so that there is a whole one or none, whenever the process is killed."""

import os
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy


def write(path: Path, arrays: Mapping[str, np.ndarray[Any, Any]], texts: Mapping[str, str] | None = None) -> None:
    """Writes arrays to a file, in place of what was there.

    It is written in a folder of its own beside its place, `.<name>.<letters>`, which a killed process leaves behind, and
    renamed once it is on disk. Its permissions are those of any new file.

    Args:
      path: of the file; its folder is there.
      arrays: in order C, of dtypes that the format has, by name.
      texts: metadata.

    Raises:
      OSError: it cannot be written. What was there is there still.
    """
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        written, ordinary = Path(folder, path.name), Path(folder, "permissions")
        try:
            safetensors.numpy.save_file(dict(arrays), written, None if texts is None else dict(texts))
        except safetensors.SafetensorError as error:
            raise OSError(f"cannot write {path}: {error}") from error
        ordinary.touch()
        written.chmod(stat.S_IMODE(ordinary.stat().st_mode))  # some versions of the writer let nobody else read
        with written.open("rb") as file:
            os.fsync(file.fileno())  # the name must not come to disk before the bytes
        written.replace(path)
