"""What `shard` and `build` have done, as a table."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from jax.sharding import Mesh, PartitionSpec

from modulekit.core.describe import table
from modulekit.sharding.rules import mesh_axes


class Entry(NamedTuple):
    """How a variable lies.

    Attributes:
      path: of the variable.
      shape: of all of it.
      spec: its partition spec.
      bytes: of all of it.
      bytes_per_device: of what one device keeps.
    """

    path: str
    shape: tuple[int, ...]
    spec: PartitionSpec
    bytes: int
    bytes_per_device: int


class ShardingReport:
    """How variables lie, and which patterns fitted none. It is true if each pattern has fitted some.

    Attributes:
      mesh: the devices.
      entries: of the variables, in the order of the model.
      unmatched: patterns that fitted no variable.

    >>> from jax.sharding import PartitionSpec as P
    >>> from modulekit.sharding import make_mesh
    >>> report = ShardingReport(make_mesh(), [Entry("w", (4, 2), P("data"), 32, 4)], ["*/b"])
    >>> bool(report), report.bytes_per_device
    (False, 4)
    """

    def __init__(self, mesh: Mesh, entries: Sequence[Entry], unmatched: Sequence[str]) -> None:
        self.mesh = mesh
        self.entries = list(entries)
        self.unmatched = list(unmatched)

    @property
    def bytes_per_device(self) -> int:
        """The bytes of all variables that one device keeps."""
        return sum(entry.bytes_per_device for entry in self.entries)

    def __bool__(self) -> bool:
        return not self.unmatched

    def __str__(self) -> str:
        cells = [[e.path, str(list(e.shape)), str(e.spec), f"{e.bytes_per_device:,}"] for e in self.entries]
        axes = ", ".join(f"{name} {size}" for name, size in self.mesh.shape.items())
        total = sum(entry.bytes for entry in self.entries)
        lines = [
            table(["Path", "Shape", "Spec", "Bytes per device"], cells),
            f"{self.bytes_per_device:,} of {total:,} bytes on each of {self.mesh.size} devices ({axes})",
        ]
        lines += [f"no variable fits {pattern!r}" for pattern in self.unmatched]
        return "\n".join(lines)

    __repr__ = __str__


def entry_of(path: str, shape: tuple[int, ...], itemsize: int, spec: PartitionSpec, mesh: Mesh) -> Entry:
    """Returns the entry of a variable."""
    size = math.prod(shape) * itemsize
    parts = math.prod(mesh.shape[name] for axes in spec for name in mesh_axes(axes))
    return Entry(path, shape, spec, size, size // parts)
