"""The metrics of a run as a table: one row for each step at which something was logged or evaluated."""

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import BinaryIO

from scenarios.base.events import Evaluated, Event, Finished, Logged, Started
from scenarios.hooks.place import Given, place_of

_STEP = "step"


class CSV:
    """Writes the rows of the history to a file, as comma-separated values.

    The columns are `step`, the metrics that updates return, and those of evaluations as `eval_loss` and so on. A metric that
    appears late gets a column at the end, empty in the rows before: the file is then replaced by a wider one in one go. A
    row is on its way to the disk before the run goes on. A run that resumes keeps the rows up to its step, and goes on
    below them.

    Args:
      path: the file; `log.csv` in the run's directory if None.

    Raises:
      ValueError: when the run starts, if there is no place to write to, or the file is not such a table.

    >>> import tempfile, jax.numpy as jnp, modulekit as mk, scenarios
    >>> x, fit = jnp.ones([4, 1]), scenarios.Supervised(4, batch_size=4, log_interval=2, progress=False)
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     table = CSV(f"{directory}/log.csv")
    ...     result = fit(mk.Linear(1), mk.optimizers.SGD(0.0), mk.losses.squared_error, data=(x, x), hooks=[table])
    ...     open(f"{directory}/log.csv").read().splitlines()[0]
    'step,loss'
    """

    def __init__(self, path: Given = None) -> None:
        self._given = path
        self._file: BinaryIO | None = None

    def __call__(self, event: Event) -> None:
        """Writes the event's metrics."""
        if isinstance(event, Started):
            self._start(place_of("CSV", self._given, event, "log.csv"), event.step)
        if self._file is None:
            return  # another hook ended the run before it began
        if isinstance(event, Logged):
            self._add(self._file, event.step, event.metrics)
        elif isinstance(event, Evaluated):
            self._add(self._file, event.step, {f"eval_{name}": value for name, value in event.metrics.items()})
        elif isinstance(event, Finished):
            self._file.close()
            self._file = None

    def _start(self, path: Path, step: int) -> None:
        """Opens the file below the rows up to a step; what comes later in it will be written again."""
        self._path = path
        self._columns, rows = _read(path)
        rows = [row for row in rows if int(row[_STEP]) <= step]
        if not rows:
            self._columns = [_STEP]
        is_open = bool(rows) and int(rows[-1][_STEP]) == step  # the last row may get its evaluation yet
        self._row = rows.pop() if is_open else {}
        self._file = self._replaced(rows)
        if is_open:
            self._write(self._file)

    def _replaced(self, rows: Iterable[Mapping[str, str]]) -> BinaryIO:
        """Returns a new file with these rows in the place of the old one: who reads it meanwhile sees either of them."""
        temporary = self._path.with_name(f".{self._path.name}")
        temporary.write_text(_line(self._columns) + "".join(map(self._line_of, rows)), encoding="utf-8", newline="")
        temporary.replace(self._path)
        file = self._path.open("r+b")
        self._begin = file.seek(0, io.SEEK_END)
        return file

    def _add(self, file: BinaryIO, step: int, metrics: Mapping[str, float]) -> None:
        """Writes a row, or writes the last one anew if it is of the same step."""
        if self._row.get(_STEP) != str(step):
            self._begin = file.seek(0, io.SEEK_END)
            self._row = {_STEP: str(step)}
        self._row.update({name: repr(float(value)) for name, value in metrics.items()})
        new = [name for name in metrics if name not in self._columns]
        if new:
            file.truncate(self._begin)
            file.close()
            rows = _read(self._path)[1]
            self._columns = [*self._columns, *new]
            self._file = file = self._replaced(rows)
        self._write(file)

    def _write(self, file: BinaryIO) -> None:
        file.seek(self._begin)
        file.truncate()
        file.write(self._line_of(self._row).encode())
        file.flush()

    def _line_of(self, row: Mapping[str, str]) -> str:
        return _line([row.get(name, "") for name in self._columns])


def _line(cells: Iterable[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()


def _read(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Returns the columns and the complete rows of a file: a killed process may have left part of the last one."""
    if not path.exists():
        return [_STEP], []
    text = path.read_bytes().decode("utf-8", errors="replace")
    lines = list(csv.reader(io.StringIO(text[: text.rfind("\n") + 1], newline="")))
    if not lines:
        return [_STEP], []
    columns, *cells = lines
    if columns[0] != _STEP or not all(row and row[0].isdecimal() for row in cells):
        raise ValueError(f"{path} is no table of a run, whose first column is {_STEP!r}: {','.join(columns)[:80]!r}")
    return columns, [dict(zip(columns, row, strict=False)) for row in cells]
