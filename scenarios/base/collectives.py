"""What the devices of a compiled program send to each other, read from XLA's text of it.

A program for many devices is one program that all of them run, with shapes that are those of one device. Where they need
each other's values, it has a *collective*: each device gives its operands, and gets a result of those of its group.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from modulekit.core.describe import table
from scenarios.base.sizes import in_bytes

# Of the bytes that a device gives to a group of n devices, how many times as many it sends in a ring.
_SENT: Mapping[str, Callable[[int], float]] = {
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "all-gather": lambda n: n - 1,
    "reduce-scatter": lambda n: (n - 1) / n,
    "all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1,
}
_HEAD = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
_SHAPE = re.compile(r"([a-z]+)(\d*)\w*\[([\d,]*)\]")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_BRANCHES = re.compile(r"branch_computations=\{(.*?)\}|(?:true|false)_computation=%?([\w.\-]+)")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition)=%?([\w.\-]+)")


@dataclass(frozen=True)
class Traffic:
    """What the collectives of one kind send in one run of a program.

    Attributes:
      kind: as XLA calls it.
      count: how many there are.
      given: bytes of their operands on one device.
      sent: bytes that one device sends, where the devices of a group stand in a ring.
    """

    kind: str
    count: int
    given: int
    sent: int


@dataclass(frozen=True)
class Collectives:
    """What one device sends to the others in one run of a program.

    A device that gives `s` bytes to a group of `n` sends `2 (n-1)/n s` of them in an all-reduce, `(n-1) s` in an all-gather
    (whose result has `n s`), `(n-1)/n s` in a reduce-scatter and in an all-to-all, and `s` in a collective-permute. A loop
    counts as often as XLA knows that it runs, and of the branches of a condition the one that sends most.

    Attributes:
      kinds: those that there are.
      are_all: False where a loop counts once, since XLA does not know how often it runs.

    Source: Thakur et al., Optimization of collective communication operations in MPICH, 2005, the ring algorithms; so also
    NCCL tests, `PERFORMANCE.md`, "bus bandwidth".
    """

    kinds: tuple[Traffic, ...]
    are_all: bool = True

    @property
    def sent(self) -> int:
        """Bytes that one device sends."""
        return sum(traffic.sent for traffic in self.kinds)

    def __str__(self) -> str:
        if not self.kinds:
            return "the devices send nothing to each other"
        rows = [(t.kind, f"{t.count:,}", in_bytes(t.given), in_bytes(t.sent)) for t in self.kinds]
        least = "" if self.are_all else "at least "
        return (
            f"{table(('Collective', 'Count', 'Given', 'Sent'), rows)}\neach device sends {least}{in_bytes(self.sent)}"
        )


def collectives_in(text: str) -> Collectives:
    """Returns the collectives of a compiled program.

    Args:
      text: `as_text()` of a `jax.stages.Compiled`.

    >>> collectives_in('''HloModule f, num_partitions=8
    ... ENTRY %main (x: f32[4]) -> f32[4] {
    ...   %x = f32[4]{0} parameter(0)
    ...   ROOT %sum = f32[4]{0} all-reduce(%x), replica_groups=[2,4]<=[8], to_apply=%add
    ... }''').kinds
    (Traffic(kind='all-reduce', count=1, given=16, sent=24),)
    """
    computations, entry = _computations(text)
    devices = math.prod(int(n) for n in re.findall(r"num_(?:partitions|replicas)=(\d+)", text.split("\n", 1)[0]))
    found = _Count()
    _add(computations, entry, devices, 1, found)
    kinds = (Traffic(kind, *(round(number) for number in found.by_kind[kind])) for kind in sorted(found.by_kind))
    return Collectives(tuple(kinds), found.are_all)


@dataclass
class _Count:
    """Count, bytes given and bytes sent, by kind."""

    by_kind: dict[str, list[float]] = field(default_factory=dict)
    are_all: bool = True

    def add(self, kind: str, numbers: tuple[float, float, float]) -> None:
        known = self.by_kind.setdefault(kind, [0.0, 0.0, 0.0])
        self.by_kind[kind] = [old + new for old, new in zip(known, numbers, strict=True)]

    def join(self, other: "_Count") -> None:
        for kind, (count, given, sent) in other.by_kind.items():
            self.add(kind, (count, given, sent))
        self.are_all &= other.are_all

    @property
    def sent(self) -> float:
        return sum(sent for _, _, sent in self.by_kind.values())


@dataclass(frozen=True)
class _Instruction:
    """A line of a computation: its name, the bytes of its result, its operation, and what comes after that."""

    name: str
    size: float
    operation: str
    rest: str


def _computations(text: str) -> tuple[dict[str, list[_Instruction]], str]:
    """Returns the instructions of each computation, and the name of the one that runs first."""
    found: dict[str, list[_Instruction]] = {}
    entry, inside = "", ""
    for line in text.splitlines():
        head = None if line.startswith(" ") else _HEAD.match(line)
        if head is not None:
            inside = head[2]
            found[inside] = []
            entry = inside if head[1] else entry
        elif inside and (matched := _INSTRUCTION.match(line.strip())):
            name, shape, operation, rest = matched.groups()
            found[inside].append(_Instruction(name, _bytes_of(shape), operation, rest))
    return found, entry


def _bytes_of(shape: str) -> float:
    """Returns the size of an array, or of those in a tuple."""
    size = 0.0
    for letters, bits, axes in _SHAPE.findall(shape):
        width = 8 if letters == "pred" else int(bits or 0)
        size += width / 8 * math.prod(int(axis) for axis in axes.split(",") if axis)
    return size


def _add(computations: Mapping[str, list[_Instruction]], name: str, devices: int, times: int, found: _Count) -> None:
    """Adds what a computation sends that runs so many times."""
    sizes: dict[str, float] = {}
    for instruction in computations.get(name, ()):
        sizes[instruction.name] = instruction.size
        operation, rest = instruction.operation, instruction.rest
        kind = operation.removesuffix("-start")
        if kind in _SENT:
            given = sum(sizes[operand] for operand in _operands(rest))
            sent = given * _SENT[kind](_group_size(rest, devices))
            found.add(kind, (times, times * given, times * sent))
        elif operation == "conditional":
            branches = list(_branches(computations, rest, devices, times))
            found.join(max(branches, key=lambda branch: branch.sent))
        elif not operation.endswith(("-done", "-update")):
            trips = _TRIPS.search(rest)
            rounds = int(trips[1]) if operation == "while" and trips else 1
            inner = _Count()
            for called in _CALLED.findall(rest):
                _add(computations, called, devices, times * rounds, inner)
            inner.are_all &= operation != "while" or trips is not None or not inner.by_kind
            found.join(inner)


def _operands(rest: str) -> list[str]:
    """Returns the names of the operands, which stand before the first closing bracket."""
    return re.findall(r"%([\w.\-]+)", rest.split(")", 1)[0])


def _branches(computations: Mapping[str, list[_Instruction]], rest: str, devices: int, times: int) -> Iterator[_Count]:
    for several, one in _BRANCHES.findall(rest):
        for called in re.findall(r"[\w.\-]+", several or one):
            found = _Count()
            _add(computations, called, devices, times, found)
            yield found


def _group_size(rest: str, devices: int) -> int:
    """Returns how many devices exchange values: of lists, of a matrix of groups, or along the axes of a mesh."""
    if re.search(r"source_target_pairs=", rest):
        return devices
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", rest):
        return listed[1].count(",") + 1
    if matrix := re.search(r"replica_groups=\[\d+,(\d+)\]", rest):
        return int(matrix[1])
    if mesh := re.search(r"replica_groups=mesh\[(.*?)\] ?\{(.*?)\}", rest):
        sizes = dict(re.findall(r"'([^']*)'=(\d+)", mesh[1]))
        axes: list[Any] = re.findall(r"'([^']*)'(?::\(\d+\)(\d+))?", mesh[2])
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    return devices
