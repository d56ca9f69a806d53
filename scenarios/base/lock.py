"""One process trains in a directory at a time; two would delete each other's states."""

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from modulekit.core.processes import agreed, is_first
from modulekit.errors import CheckpointError

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]

NAME = ".lock"  # in a run's directory; the system lets go of it when its process ends, however it ends


@contextmanager
def sole_use(directory: Path | None) -> Iterator[None]:
    """Context in which nobody else trains in a directory, which must exist: no other process, no other run of this one.

    Of several processes that train together the first one asks for all, and the others wait for what it hears.

    Raises:
      CheckpointError: somebody does already.
    """
    if directory is None or fcntl is None:
        yield
        return
    with ExitStack() as held:
        refusal = held.enter_context(_locked(directory)) if is_first() else None
        if refusal is not None:
            agreed(1)
            raise CheckpointError(refusal)
        if agreed(0):
            raise CheckpointError(f"{directory} is in use, as the first of these processes reports")
        yield


@contextmanager
def _locked(directory: Path) -> Iterator[str | None]:
    """Context in which this process has a directory to itself, or a sentence that says who has it."""
    with (directory / NAME).open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            yield (
                f"{directory} is in use by {file.read() or 'another process'}: wait until it has ended, stop it, or choose "
                "another save_dir"
            )
            return
        except OSError:  # a file system without locks
            yield None
            return
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield None
        file.truncate(0)
