"""How large the parts of a run are: in memory, and saved on disk."""

import math
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modulekit.core.describe import table
from modulekit.core.variable import Variable
from scenarios.base.parts import is_optimizer, variables_by_path
from scenarios.base.settings import Settings


@dataclass(frozen=True)
class PartSize:
    """What one part holds; a variable that parts share counts for the first of them.

    Attributes:
      name: the part's.
      numbers: in its variables.
      trainable: those of them that are trained.
      bytes: of its variables.
      is_optimizer: whether they are slots and counters of an optimizer.
    """

    name: str
    numbers: int
    trainable: int
    bytes: int
    is_optimizer: bool


def part_sizes(
    parts: Mapping[str, Any], size_of: Callable[[Iterable[Variable]], int] | None = None
) -> tuple[PartSize, ...]:
    """Returns the size of each part that holds variables.

    Args:
      parts: the parts by name.
      size_of: the bytes that count of variables; those of their arrays if None.
    """
    counted: set[Variable] = set()
    found = []
    for name, part in parts.items():
        own = [v for v in variables_by_path({name: part}).values() if v not in counted]
        counted.update(own)
        if own:
            trainable = sum(v.size for v in own if v.trainable)
            numbers = sum(v.size for v in own)
            found.append(PartSize(name, numbers, trainable, (size_of or bytes_of)(own), is_optimizer(part)))
    return tuple(found)


def sizes_table(sizes: Iterable[PartSize], of_bytes: str = "Memory") -> str:
    """Returns the sizes as a table; `of_bytes` heads the column of bytes."""
    rows = [
        (s.name, f"{s.numbers:,}", f"{s.trainable:,}", in_bytes(s.bytes) + " of slots" * s.is_optimizer) for s in sizes
    ]
    return table(("Part", "Numbers", "Trainable", of_bytes), rows)


@dataclass(frozen=True)
class SavedSize:
    """What saved states take on disk.

    Attributes:
      bytes: of one state: all variables that are saved, averages of weights included.
      states: how many there are at most: those kept, and one that is written before an old one goes; 0 without `save_dir`.
      free: bytes on the disk of `save_dir`; None without one.
    """

    bytes: int
    states: int
    free: int | None

    def __str__(self) -> str:
        one = f"saved state: {in_bytes(self.bytes)}"
        if self.free is None:
            return f"{one}; nothing is saved, since there is no save_dir"
        return f"{one}, at most {self.states} at a time: {in_bytes(self.total)} of {in_bytes(self.free)} that are free"

    @property
    def total(self) -> int:
        """Bytes that all states take."""
        return self.bytes * self.states

    @property
    def warnings(self) -> list[str]:
        """What is wrong."""
        if self.free is None or self.total <= self.free:
            return []
        return [
            f"the saved states do not fit on the disk: {self.states} of {in_bytes(self.bytes)} are "
            f"{in_bytes(self.total)}, and {in_bytes(self.free)} are free. Lower keep or keep_best, or take another save_dir"
        ]


def saved_size(variables: Iterable[Variable], settings: Settings) -> SavedSize:
    """Returns what the saved states of a run take."""
    size = bytes_of(variables)
    if settings.directory is None:
        return SavedSize(size, 0, None)
    anchors = settings.non_finite == "rollback"
    folder = settings.directory.absolute()
    existing = next(place for place in (folder, *folder.parents) if place.is_dir())
    return SavedSize(size, settings.keep + settings.keep_best + anchors + 1, free_bytes(existing))


def free_bytes(folder: Path) -> int:
    """Returns how many bytes can be written in a directory that exists."""
    return shutil.disk_usage(folder).free


def bytes_of(variables: Iterable[Variable]) -> int:
    """Returns the number of bytes of the variables' arrays."""
    return sum(v.size * v.dtype.itemsize for v in variables)


def in_bytes(count: float) -> str:
    """Returns a number of bytes to read.

    >>> in_bytes(512), in_bytes(20_480), in_bytes(3_200_000_000)
    ('512 bytes', '20.5 kB', '3.2 GB')
    """
    return f"{count:.0f} bytes" if abs(count) < 1000 else f"{short(count)}B"


def short(count: float) -> str:
    """Returns a number of three digits with a prefix.

    >>> short(12), short(49_152), short(2.5e12)
    ('12 ', '49.2 k', '2.5 T')
    """
    power = min(5, int(math.log10(max(abs(count), 1)) + 1e-9) // 3)
    return f"{count / 1000**power:.3g} {['', 'k', 'M', 'G', 'T', 'P'][power]}"
