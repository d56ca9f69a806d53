"""One process works in a directory at a time; two would delete each other's files."""

import os
import socket
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from modulekit.core.processes import agreed, is_first
from modulekit.errors import CheckpointError

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]

NAME = ".lock"  # in the directory; the system lets go of it when its process ends, however it ends


class Lock:
    """A directory that nobody else has, while this object lives; on a file system without locks, it is a hope.

    Args:
      directory: must exist.
      setting: which setting gave it, for the message.

    Raises:
      CheckpointError: somebody has it.
    """

    def __init__(self, directory: Path, setting: str) -> None:
        descriptor = os.open(directory / NAME, os.O_RDWR | os.O_CREAT, 0o666)
        self.release = weakref.finalize(self, os.close, descriptor)
        try:
            if fcntl is not None:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.pread(descriptor, 1000, 0).decode() or "another process"
            self.release()
            raise CheckpointError(
                f"{directory} is in use by {owner}: wait until it has ended, stop it, or choose another {setting}"
            ) from error
        except OSError:
            return
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())


@contextmanager
def sole_use(directory: Path | None) -> Iterator[None]:
    """Context in which nobody else trains in a directory, which must exist: no other process, no other run of this one.

    Of several processes that train together the first one asks for all, and the others wait for what it hears.

    Raises:
      CheckpointError: somebody does already.
    """
    if directory is None:
        yield
        return
    lock, refusal = None, None
    if is_first():
        try:
            lock = Lock(directory, "save_dir")
        except CheckpointError as error:
            refusal = error
    is_refused = agreed(refusal is not None)
    if refusal is not None:
        raise refusal
    if is_refused:
        raise CheckpointError(f"{directory} is in use, as the first of these processes reports")
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


_ours: weakref.WeakValueDictionary[Path, Lock] = weakref.WeakValueDictionary()
_looking = threading.Lock()


def lock_of_this_process(directory: Path, setting: str) -> Lock:
    """Returns the lock of a directory, the same one to all in this process who ask; it is held while one of them keeps it.

    Raises:
      CheckpointError: another process has it.
    """
    with _looking:
        place = directory.resolve()
        lock = _ours.get(place)
        if lock is None:
            _ours[place] = lock = Lock(directory, setting)
        return lock
