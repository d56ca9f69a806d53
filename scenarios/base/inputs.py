"""What a run reads: how many examples, how often, and what is wrong with the first of them."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from modulekit.data.structure import leaves_of


@dataclass(frozen=True)
class Inputs:
    """The data of a run.

    Attributes:
      examples: of training; None for a stream, which does not tell.
      batch_size: examples of an update.
      steps: the number of updates.
      evaluated: examples of evaluation.
      description: of a stream.
      findings: what is wrong with the first batches.
    """

    examples: int | None
    batch_size: int
    steps: int
    evaluated: int
    description: str | None
    findings: tuple[str, ...]

    @property
    def epochs(self) -> float | None:
        """How often each example is used."""
        return None if self.examples is None else self.steps * self.batch_size / self.examples

    def __str__(self) -> str:
        if self.examples is None:
            text = f"data: {self.description}; batches of {self.batch_size}, an unknown number of them in an epoch"
        else:
            batches = self.examples / self.batch_size
            text = f"data: {self.examples:,} examples, {batches:.5g} batches of {self.batch_size}, {self.epochs:.3g} epochs"
        return f"{text}; {self.evaluated:,} examples of evaluation"

    @property
    def warnings(self) -> list[str]:
        """What is wrong."""
        return list(self.findings)


def findings(batches: Iterable[Any], name: str) -> list[str]:
    """Returns what is wrong with batches: values that are not finite, arrays in which all values are the same.

    Args:
      batches: the first ones, of one structure.
      name: of the data.
    """
    columns: dict[str, list[np.ndarray[Any, Any]]] = {}
    for batch in batches:
        for path, leaf in leaves_of(batch, name):
            columns.setdefault(path, []).append(np.asarray(leaf).reshape(-1))
    found = []
    for path, pieces in columns.items():
        values = np.concatenate(pieces)
        where = f"in the first {len(pieces)} batches" if len(pieces) > 1 else "in the first batch"
        wrong = int(np.count_nonzero(~np.isfinite(values)))
        if wrong:
            found.append(f"{path} has {wrong} values that are not finite {where}")
        elif values.size > 1 and (values == values[0]).all():
            found.append(f"{path} is {values[0]} everywhere {where}")
    return found
