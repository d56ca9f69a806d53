"""Where the processes of a run leave their parts of a state, until the first one completes it.

A state is one directory, which appears when it is complete. So each of the other processes writes a file of its own
elsewhere, and then, as the sign that it is there, a list of what it holds; the first process takes them over. All of
them see the same file system.
"""

import secrets
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from modulekit.checkpoints.arrays import Block, blocks_of
from modulekit.checkpoints.files import read_json, write_json
from modulekit.core.processes import agreed, is_first
from modulekit.core.safetensors_file import write
from modulekit.errors import CheckpointError

_PAUSE = 0.005  # seconds between two looks at the disk


class Exchange:
    """A folder in a store's directory. Each process makes it at the same time; what an earlier run has left there goes.

    Args:
      directory: of the store.
    """

    def __init__(self, directory: Path) -> None:
        root = directory / ".parts"
        if is_first():
            shutil.rmtree(root, ignore_errors=True)
        self._folder = root / str(int(agreed(secrets.randbelow(2**24))))

    def give(self, step: int, arrays: Mapping[str, Any]) -> None:
        """Writes what this process has of arrays that lie in parts."""
        number = jax.process_index()
        folder = self._folder / str(step)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            values, blocks = blocks_of(arrays, f"arrays_{number}.safetensors", with_whole=False)
            write(folder / f"arrays_{number}.safetensors", values)
        except Exception as error:
            write_json(folder / f"{number}.json", {"error": str(error)})
            raise
        write_json(folder / f"{number}.json", {"blocks": blocks})

    def take(self, step: int) -> tuple[list[Path], list[Block]]:
        """Waits for the parts of the others; returns their files, and what these hold.

        Raises:
          CheckpointError: another process could not write its part.
        """
        folder = self._folder / str(step)
        files: list[Path] = []
        blocks: list[Block] = []
        for number in range(1, jax.process_count()):
            sign = folder / f"{number}.json"
            while not sign.exists():
                time.sleep(_PAUSE)
            content = read_json(sign)
            if "error" in content:
                raise CheckpointError(f"process {number} could not write its part of step {step}: {content['error']}")
            files.append(folder / f"arrays_{number}.safetensors")
            blocks += [Block(*block) for block in content["blocks"]]
        return files, blocks

    def forget(self, step: int) -> None:
        """Removes what is left of a state that is complete."""
        shutil.rmtree(self._folder / str(step), ignore_errors=True)
