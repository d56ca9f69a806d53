"""Unpacking of archives from elsewhere: each file lands inside of the directory, or nothing does."""

import os
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TypeAlias

Member: TypeAlias = tuple[str, bool, Callable[[], IO[bytes] | None]]


def unpack(archive: Path, directory: Path) -> Path:
    """Unpacks a zip or tar file, compressed or not, into a directory that appears when it is complete.

    Only files and directories are made, with the permissions of any new file. A name that leads out of the directory,
    a link or a device is a `ValueError`, and so is a file that is no archive.
    """
    if directory.is_dir():
        return directory
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=f"{directory.name}.") as temporary:
        content = Path(temporary).resolve() / "content"
        content.mkdir()
        for name, is_directory, opened in _members(archive):
            _write(archive, content, name, is_directory, opened)
        try:
            os.rename(content, directory)
        except OSError:
            if not directory.is_dir():  # otherwise another process was faster, with the same content
                raise
    return directory


def _write(archive: Path, content: Path, name: str, is_directory: bool, opened: Callable[[], IO[bytes] | None]) -> None:
    target = (content / name).resolve()
    if not target.is_relative_to(content):
        raise ValueError(
            f"{archive} holds {name!r}, which leads out of the directory; do not trust where it comes from"
        )
    if is_directory:
        target.mkdir(parents=True, exist_ok=True)
        return
    source = opened()
    if source is None:
        raise ValueError(
            f"{archive} holds {name!r}, which is neither a file nor a directory but a link or a device; unpack it by hand "
            f"if you trust where it comes from"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    with source, target.open("wb") as file:
        shutil.copyfileobj(source, file)


def _members(archive: Path) -> Iterator[Member]:
    """Yields the name of each member, whether it is a directory, and what opens it if it is a file."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as packed:
            for entry in packed.infolist():
                yield entry.filename, entry.is_dir(), lambda entry=entry: packed.open(entry)  # type: ignore[misc]
    elif tarfile.is_tarfile(archive):
        with tarfile.open(archive) as packed_tar:
            for member in packed_tar:
                regular = member if member.isreg() else None
                yield (
                    member.name,
                    member.isdir(),
                    lambda regular=regular: regular and packed_tar.extractfile(regular),  # type: ignore[misc]
                )
    else:
        raise ValueError(f"expected a zip or tar archive, got {archive}, which is neither; download it without unpack")
