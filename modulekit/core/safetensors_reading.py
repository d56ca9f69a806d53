"""Reading a safetensors file: its header at once, and each tensor when it is asked for."""

import json
import os
from pathlib import Path
from typing import Any, BinaryIO

import safetensors

from modulekit.core.safetensors_layout import RESERVED
from modulekit.errors import CheckpointError


class Tensors:
    """What a safetensors file holds.

    Attributes:
      path: of the file.
      entries: of the header: dtype, shape and place of each tensor by name.
      metadata: texts.

    Args:
      path: of the file.

    Raises:
      FileNotFoundError: there is none.
      CheckpointError: it is no safetensors file, cut off, or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            self._stamp = _stamp(file)
            try:
                with safetensors.safe_open(
                    path, framework="np"
                ):  # checks that header and values cover the file exactly
                    pass
            except safetensors.SafetensorError as error:
                raise CheckpointError(
                    f"{path} is no safetensors file, or it is cut off or damaged ({self._stamp[-1]} bytes): {error}"
                ) from error
            size = int.from_bytes(file.read(8), "little")
            self.entries: dict[str, Any] = json.loads(file.read(size))
        self._start = 8 + size
        self.metadata: dict[str, str] = dict(self.entries.pop(RESERVED, {}))

    def read(self, name: str) -> bytearray:
        """Returns the bytes of a tensor.

        Raises:
          CheckpointError: the file has changed since it was opened.
        """
        begin, end = self.entries[name]["data_offsets"]
        with self.path.open("rb") as file:
            if _stamp(file) != self._stamp:
                raise CheckpointError(
                    f"{self.path} has changed since it was opened: read it again. Nothing has changed"
                )
            file.seek(self._start + begin)
            return bytearray(file.read(end - begin))


def _stamp(file: BinaryIO) -> tuple[int, ...]:
    """Returns what tells a file from a later one of its name."""
    status = os.fstat(file.fileno())
    return status.st_ino, status.st_mtime_ns, status.st_size
