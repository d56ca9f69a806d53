"""Weights as text: an exporter."""

import csv
import os
from typing import Any

import modulekit as mk


def write_csv(path: str | os.PathLike[str], module: mk.Module, *inputs: Any, **options: Any) -> None:
    """Writes each number of a module as a row: path of the variable, index, value.

    Args:
      path: of the file.
      module: with its variables.
      *inputs: what other exporters run it with; not needed here.
      **options: likewise.
    """
    with open(path, "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["variable", "index", "value"])
        for name, variable in module.paths().items():
            rows.writerows([name, index, value] for index, value in enumerate(variable.numpy().reshape(-1)))
