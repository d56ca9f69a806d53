"""What the benchmark has measured: a cell for each contender in each workload, and the machine; kept as JSON."""

import dataclasses
import json
import pathlib
from typing import Any

BASELINE = "jax"
TOLERANCE = 1e-4  # relative, of the losses
PARTS = ("step", "first", "memory")  # of a cell


@dataclasses.dataclass(frozen=True)
class Cell:
    """One contender in one workload.

    Attributes:
      workload: its name.
      contender: its name.
      step: seconds per training step in the steady state; None, as below, where it was not measured.
      first: seconds to the end of the first call that trains.
      memory: the most bytes that the training program takes at one time.
      difference: the largest relative difference of a loss from hand-written JAX's.
    """

    workload: str
    contender: str
    step: float | None
    first: float | None
    memory: float | None
    difference: float

    @property
    def agrees(self) -> bool:
        """Whether its losses are those of hand-written JAX; not so where one is nan."""
        return self.difference <= TOLERANCE


@dataclasses.dataclass(frozen=True)
class Results:
    """All cells.

    Attributes:
      machine: what the numbers depend on: processor, cores, load, versions.
      quick: whether there were few rounds.
      imports: by contender, the seconds of its imports in a new process.
      cells: in the order of measurement.
    """

    machine: dict[str, Any]
    quick: bool
    imports: dict[str, float]
    cells: list[Cell]

    def value(self, part: str, workload: str, contender: str) -> float | None:
        """Returns one number of a cell, None where it was not measured."""
        for cell in self.cells:
            if (cell.workload, cell.contender) == (workload, contender):
                number: float | None = getattr(cell, part)
                return number
        return None

    def ratio(self, part: str, workload: str, contender: str) -> float | None:
        """Returns one number of a cell over that of hand-written JAX, None where one of them was not measured."""
        ours, theirs = (self.value(part, workload, name) for name in (contender, BASELINE))
        return None if ours is None or theirs is None else ours / theirs

    @property
    def workloads(self) -> list[str]:
        """The names of the workloads."""
        return list(dict.fromkeys(cell.workload for cell in self.cells))

    @property
    def contenders(self) -> list[str]:
        """The names of the contenders."""
        return list(dict.fromkeys(cell.contender for cell in self.cells))

    def save(self, path: pathlib.Path) -> None:
        """Writes all to a JSON file."""
        path.write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: pathlib.Path) -> "Results":
        """Reads what `save` has written."""
        fields = json.loads(path.read_text())
        return cls(**{**fields, "cells": [Cell(**cell) for cell in fields["cells"]]})
