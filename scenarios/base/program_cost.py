"""What one update costs as a compiled program: memory and arithmetic, as XLA counts them. Nothing runs."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

import modulekit as mk
from scenarios.base.sizes import in_bytes, short


@dataclass(frozen=True)
class ProgramCost:
    """The cost of one update as a program of its own, which keeps the arrays before the update beside those after it.

    Attributes:
      arguments: bytes that go in: variables and a batch.
      results: bytes that come out: variables and metrics.
      temporaries: bytes in between.
      flops: floating-point operations, a loop's body counted once where XLA does not know how often it runs; None where
        XLA does not tell.
    """

    arguments: int
    results: int
    temporaries: int
    flops: float | None

    def __str__(self) -> str:
        arithmetic = "unknown" if self.flops is None else f"{short(self.flops)}FLOP"
        return (
            f"update: {arithmetic}, {in_bytes(self.memory)} of memory ({in_bytes(self.arguments)} in, "
            f"{in_bytes(self.results)} out, {in_bytes(self.temporaries)} in between)"
        )

    @property
    def memory(self) -> int:
        """Bytes that the program takes."""
        return self.arguments + self.results + self.temporaries


def program_cost(update: Callable[[Any], Any], batch: Any) -> ProgramCost:
    """Compiles an update for a batch of `jax.ShapeDtypeStruct`s, and returns what it costs.

    Raises:
      ValueError: the device does not tell.
    """
    return cost_of(mk.jit(update, donate=False).lower(batch).compile())


def cost_of(compiled: jax.stages.Compiled) -> ProgramCost:
    """Returns what a compiled program costs, on each device if there are several.

    Raises:
      ValueError: the device does not tell.
    """
    memory = compiled.memory_analysis()
    if memory is None:
        raise ValueError(f"{jax.local_devices()[0].device_kind} does not say how much memory a program takes")
    analysis = compiled.cost_analysis() or {}
    flops = analysis.get("flops") if isinstance(analysis, dict) else None
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return ProgramCost(
        memory.argument_size_in_bytes, results, memory.temp_size_in_bytes, None if flops is None else float(flops)
    )


@dataclass(frozen=True)
class DeviceMemory:
    """The memory in which updates run.

    Attributes:
      limit: bytes in all.
      occupied: bytes that others hold: what the process had put there before, and the examples.
      source: where the limit comes from.
    """

    limit: int
    occupied: int
    source: str

    def __str__(self) -> str:
        return (
            f"memory: {in_bytes(self.limit)} ({self.source}), {in_bytes(self.occupied)} of it occupied, by examples too"
        )

    @property
    def available(self) -> int:
        """Bytes that a program may take."""
        return max(0, self.limit - self.occupied)


def device_memory(limit: int | None, before: int, examples: int) -> DeviceMemory:
    """Returns the memory of the first device.

    Args:
      limit: bytes to reckon with; None asks the device.
      before: bytes in use on it before the run put anything there, but for its variables.
      examples: bytes of examples that stay on the device.
    """
    occupied = max(0, before) + examples
    if limit is not None:
        return DeviceMemory(limit, occupied, "as given")
    device = jax.local_devices()[0]
    told = (device.memory_stats() or {}).get("bytes_limit")
    if told is not None:
        return DeviceMemory(told, occupied, f"of {device.device_kind}")
    return DeviceMemory(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), occupied, "the host's")


def bytes_in_use() -> int:
    """Returns how many bytes of the first device are in use, 0 where that is not known."""
    return int((jax.local_devices()[0].memory_stats() or {}).get("bytes_in_use", 0))
