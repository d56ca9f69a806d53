"""One process trains in a directory at a time; two would delete each other's states."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from modulekit.errors import CheckpointError

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]

NAME = ".lock"  # in a run's directory; the system lets go of it when its process ends, however it ends


@contextmanager
def sole_use(directory: Path | None) -> Iterator[None]:
    """Context in which no other process, and no other run of this one, trains in a directory, which must exist.

    Raises:
      CheckpointError: one does already.
    """
    if directory is None or fcntl is None:
        yield
        return
    with (directory / NAME).open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise CheckpointError(
                f"{directory} is in use by {file.read() or 'another process'}: wait until it has ended, stop it, or choose "
                "another save_dir"
            ) from error
        except OSError:  # a file system without locks
            yield
            return
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield
        file.truncate(0)
