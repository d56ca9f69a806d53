"""Tables of variables."""

import logging
from collections.abc import Sequence
from typing import Any

from modulekit.core.variable import Variable

_log = logging.getLogger("modulekit")
_SHORT = {"float": "f", "bfloat": "bf", "uint": "u", "int": "i", "complex": "c"}


def spec_of(variable: Any) -> str:
    """Returns shape and dtype of a variable or array in short, such as `f32[784,10]`."""
    text = str(variable.dtype)
    word = text.rstrip("0123456789")
    return f"{_SHORT.get(word, word)}{text[len(word) :]}[{','.join(str(size) for size in variable.shape)}]"


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table of texts: a line of headers, a rule, and a line for each row."""
    widths = [max(len(row[i]) for row in (headers, *rows)) for i in range(len(headers))]
    lines = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in rows]
    head = "| " + " | ".join(cell.ljust(w) for cell, w in zip(headers, widths, strict=True)) + " |"
    rule = "|" + "+".join("-" * (w + 2) for w in widths) + "|"
    return "\n".join([head, rule, *lines])


def format_variables(variables: Sequence[Variable]) -> str:
    """Returns the variables as a table of name, specification, trainability and device.

    Args:
      variables: the variables, in any order; the table is sorted by scope, then falling rank, then name.

    Source: Sonnet 2, `snt.format_variables`.

    >>> print(format_variables([Variable(1.0, name="rate", trainable=False)]))
    | Variable | Spec  | Trainable | Device |
    |----------+-------+-----------+--------|
    | rate     | f32[] | False     | CPU    |
    """
    ordered = sorted(variables, key=lambda v: (v.name.rpartition("/")[0], -v.ndim, v.name))
    rows = [(v.name, spec_of(v), str(v.trainable), _device(v)) for v in ordered]
    return table(("Variable", "Spec", "Trainable", "Device"), rows)


def _device(variable: Variable) -> str:
    devices = sorted(str(device.platform).upper() for device in variable.stored().devices())
    return devices[0] if len(devices) == 1 else f"{devices[0]} x{len(devices)}"


def log_variables(variables: Sequence[Variable]) -> None:
    """Logs the table of `format_variables` line by line, to the logger `modulekit`.

    Args:
      variables: the variables.

    Source: Sonnet 2, `snt.log_variables`.

    >>> import logging, sys
    >>> logger, handler = logging.getLogger("modulekit"), logging.StreamHandler(sys.stdout)
    >>> logger.addHandler(handler); logger.setLevel(logging.INFO)
    >>> log_variables([Variable(1.0, name="rate", trainable=False)])
    | Variable | Spec  | Trainable | Device |
    |----------+-------+-----------+--------|
    | rate     | f32[] | False     | CPU    |
    >>> logger.removeHandler(handler); logger.setLevel(logging.NOTSET)
    """
    for line in format_variables(variables).split("\n"):
        _log.info(line)


def summary(module: Any) -> str:
    """Returns a table of a module's variables by path, a shared one once, and the totals.

    Args:
      module: a `Module`; anything with `paths()`.

    >>> import modulekit as mk
    >>> class Scale(mk.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.factor = Variable([1.0, 2.0], name="factor")
    >>> print(summary(Scale()))
    Scale()
    | Path   | Name         | Spec   | Trainable | Size |
    |--------+--------------+--------+-----------+------|
    | factor | scale/factor | f32[2] | True      | 2    |
    2 parameters in 1 variable, 2 of them trainable, 8 bytes
    """
    paths = module.paths()
    rows = [(path, v.name, spec_of(v), str(v.trainable), f"{v.size:,}") for path, v in paths.items()]
    total = sum(v.size for v in paths.values())
    trainable = sum(v.size for v in paths.values() if v.trainable)
    size = sum(v.size * v.dtype.itemsize for v in paths.values())
    plural = "" if len(paths) == 1 else "s"
    return (
        f"{module!r}\n{table(('Path', 'Name', 'Spec', 'Trainable', 'Size'), rows)}\n"
        f"{total:,} parameters in {len(paths)} variable{plural}, {trainable:,} of them trainable, {size:,} bytes"
    )
