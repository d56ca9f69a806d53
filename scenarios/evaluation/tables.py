"""Tables in Markdown that read well as plain text, and numbers in JSON that any reader takes."""

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


def in_json(content: Any) -> Any:
    """Returns content as strict JSON has it: lists for arrays, null for a number that is not finite.

    >>> in_json({"a": np.array([1.0, np.nan]), "b": np.int32(3)})
    {'a': [1.0, None], 'b': 3}
    """
    if isinstance(content, dict):
        return {str(key): in_json(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [in_json(value) for value in content]
    if hasattr(content, "tolist"):
        return in_json(content.tolist())
    return None if isinstance(content, float) and not math.isfinite(content) else content
