"""Tables in Markdown that read well as plain text."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

NOTHING = "-"


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Returns a Markdown table with columns of even width; what is None or NaN stands as `-`.

    >>> print(table(["name", "value"], [["loss", 0.25], ["nothing", None]]))
    | name    | value |
    | ------- | ----- |
    | loss    | 0.25  |
    | nothing | -     |
    """
    lines = [list(header), *([cell(value) for value in row] for row in rows)]
    widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| " + " | ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) + " |" for line in lines
    )


def cell(value: Any) -> str:
    """Returns a value as it stands in a table, on one line.

    >>> [cell(value) for value in (0.123456789, 3, float("nan"), "a|b")]
    ['0.123457', '3', '-', 'a\\\\|b']
    """
    if value is None or (isinstance(value, float | np.floating) and math.isnan(value)):
        return NOTHING
    text = f"{value:.6g}" if isinstance(value, float | np.floating) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")
