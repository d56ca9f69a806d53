"""What a run needs on each of many devices, as a report."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from scenarios.base.collectives import Collectives
from scenarios.base.program_cost import ProgramCost
from scenarios.base.sizes import PartSize, in_bytes, sizes_table


@dataclass(frozen=True)
class MeshPlan:
    """What one update of a run takes on each device of a mesh that need not be there. As text it is a report.

    It tells of the program that XLA makes for so many CPUs. Compilers for other devices fuse operations in other ways, so
    that they need less memory in between, and may join collectives, replace one kind by another (a reduce-scatter for an
    all-reduce of which each device needs a part), and run them beside the arithmetic. Sums of 16-bit numbers, which CPUs
    add up in 32 bits, are sent in 16 elsewhere. What goes in and out, and the order of magnitude of what is sent, is the
    same.

    Attributes:
      scenario: its name.
      mesh: how many devices there are along each axis.
      placement: how variables lie, as in `scenarios.Settings`.
      parts: how large each of them is; bytes are those on one device.
      examples: in an update, on all devices together.
      examples_per_device: likewise, on each of them.
      are_even: whether each device has as many of them; else the last one has fewer.
      data: bytes of the examples that lie on each device: all of them, or some batches.
      cost: of an update as a program, on one device.
      collectives: what one device sends in an update.
      memory_limit: bytes of one device, if they are known.

    >>> import jax, modulekit as mk, scenarios
    >>> data = jax.ShapeDtypeStruct([10_000, 64], "float32"), jax.ShapeDtypeStruct([10_000], "int32")
    >>> train = scenarios.Supervised(100, batch_size=512)
    >>> parts = mk.nets.MLP([512, 10]), mk.optimizers.SGD(0.1), mk.losses.softmax_cross_entropy
    >>> plan = train.preflight(*parts, data=data, mesh={"data": 256}, placement="fully_sharded")
    >>> plan.devices, plan.examples_per_device, plan.warnings
    (256, 2, [])
    >>> [traffic.kind for traffic in plan.collectives.kinds]
    ['all-gather', 'all-reduce']
    """

    scenario: str
    mesh: Mapping[str, int]
    placement: Any
    parts: tuple[PartSize, ...]
    examples: int
    examples_per_device: int
    are_even: bool
    data: int
    cost: ProgramCost
    collectives: Collectives
    memory_limit: int | None

    @property
    def devices(self) -> int:
        """The number of devices."""
        return math.prod(self.mesh.values())

    @property
    def parameters(self) -> int:
        """The number of trainable numbers, each shared variable counted once."""
        return sum(part.trainable for part in self.parts)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the variables on each device, without those of optimizers."""
        return sum(part.bytes for part in self.parts if not part.is_optimizer)

    @property
    def optimizer_bytes(self) -> int:
        """Bytes of the optimizers' slots and counters on each device."""
        return sum(part.bytes for part in self.parts if part.is_optimizer)

    @property
    def warnings(self) -> list[str]:
        """One sentence for each thing that is wrong, or may be."""
        found = []
        if self.memory_limit is not None and self.cost.memory > self.memory_limit:
            found.append(
                f"an update does not fit in the memory of a device: it takes {in_bytes(self.cost.memory)} of "
                f"{in_bytes(self.memory_limit)}. Take more devices, a placement that divides more, or a smaller batch"
            )
        if not self.are_even:
            found.append(
                f"the batch has no equal parts: {self.examples_per_device} examples on each device, and fewer on the last, "
                "which computes zeros in their place. Choose a batch_size that can be divided"
            )
        if not self.collectives.are_all:
            found.append(
                "more may be sent: XLA does not know how often a loop with collectives runs, and it counts once"
            )
        return found

    def in_json(self) -> dict[str, Any]:
        """Returns all of it as JSON can hold it."""
        derived = {
            "devices": self.devices,
            "parameters": self.parameters,
            "weight_bytes": self.weight_bytes,
            "optimizer_bytes": self.optimizer_bytes,
            "memory": self.cost.memory,
            "sent": self.collectives.sent,
            "warnings": self.warnings,
        }
        placement = (
            self.placement if isinstance(self.placement, str) else {k: str(v) for k, v in self.placement.items()}
        )
        return {**asdict(self), "mesh": dict(self.mesh), "placement": placement, **derived}

    def __str__(self) -> str:
        axes = ", ".join(f"{name} {size}" for name, size in self.mesh.items())
        limit = "" if self.memory_limit is None else f" of {in_bytes(self.memory_limit)}"
        lines = [
            f"{self.scenario} on {self.devices:,} devices ({axes}), {self.placement}: {self.parameters:,} trainable numbers",
            sizes_table(self.parts, "Memory of a device"),
            f"batch: {self.examples:,} examples, {self.examples_per_device:,} on a device, which holds "
            f"{in_bytes(self.data)} of data",
            f"each device, in an {self.cost}{limit}",
            str(self.collectives),
            "this is XLA's program for CPUs: other devices fuse and join in other ways",
            *(f"warning: {warning}" for warning in self.warnings),
        ]
        return "\n".join(lines)
