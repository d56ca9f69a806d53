"""Directories that can be written, and JSON files that are whole or not there."""

import json
import os
from pathlib import Path
from typing import Any

from modulekit.errors import CheckpointError


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
