"""Two runs beside each other: what was different, and what came of it."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scenarios.evaluation.plots import draw_curves
from scenarios.evaluation.record import Curve, Record, flat, read_record
from scenarios.evaluation.tables import table

MISSING = "(none)"


@dataclass(frozen=True)
class Row:
    """A metric of both runs; its difference is b - a, None where one has no number.

    Attributes:
      metric: its name; those of evaluations during training begin with `eval_`, those of a report with `report_`.
      step: the step; None at the end, where the runs may have different ones.
      a: its value in the first run.
      b: its value in the second run.

    >>> Row("loss", 100, 0.5, 0.25).difference
    -0.25
    """

    metric: str
    step: int | None
    a: float | None
    b: float | None

    @property
    def difference(self) -> float | None:
        """How much higher it is in the second run."""
        return None if self.a is None or self.b is None else self.b - self.a


@dataclass(frozen=True)
class Comparison:
    """The differences between two runs; `print` shows them as tables.

    Attributes:
      a: the first run's directory.
      b: the second run's directory.
      differing: what the manifests say differently, by path: `(in a, in b)`.
      steps: metrics at the steps that both runs have.
      end: each metric's last value, at whatever step.
      curves: of each metric, the values by step in "a" and in "b".

    >>> str(Comparison(Path("one"), Path("two"), {}, [], [Row("loss", None, 0.5, 0.25)])).splitlines()[-1]
    '| loss   | 0.5 | 0.25 | -0.25 |'
    """

    a: Path
    b: Path
    differing: dict[str, tuple[Any, Any]]
    steps: list[Row]
    end: list[Row]
    curves: dict[str, dict[str, Curve]] = field(default_factory=dict, repr=False)

    def __str__(self) -> str:
        """Shows the tables."""
        return self._markdown(level="")

    def save(self, directory: str | os.PathLike[str], plots: bool = True) -> Path:
        """Writes `comparison.md`, and `comparison.png` with both runs' curves.

        Args:
          directory: made if missing.
          plots: whether to draw; needs matplotlib.

        Returns:
          The path of `comparison.md`.

        Raises:
          ImportError: matplotlib is not installed; the tables are written nevertheless.
        """
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        text = folder / "comparison.md"
        text.write_text(f"# Comparison\n\n{self._markdown(level='## ')}\n", encoding="utf-8")
        if plots and self.curves:
            names = self._names()
            panels = {
                metric: {
                    name: (list(runs[key]), list(runs[key].values())) for key, name in names.items() if key in runs
                }
                for metric, runs in self.curves.items()
            }
            draw_curves(panels, folder / "comparison.png")
            with text.open("a", encoding="utf-8") as file:
                file.write("\n![Curves of both runs](comparison.png)\n")
        return text

    def _names(self) -> dict[str, str]:
        if self.a.name == self.b.name:
            return {"a": str(self.a), "b": str(self.b)}
        return {"a": self.a.name, "b": self.b.name}

    def _markdown(self, level: str) -> str:
        a, b = self._names().values()
        differing = [[path, *values] for path, values in self.differing.items()]
        at_steps = [[row.metric, row.step, row.a, row.b, row.difference] for row in self.steps]
        at_end = [[row.metric, row.a, row.b, row.difference] for row in self.end]
        parts = [
            f"a: {self.a}\nb: {self.b}",
            f"{level}Settings and surroundings",
            table(["entry", a, b], differing) if differing else "no difference in what the manifests say",
        ]
        if at_steps:
            parts += [f"{level}At common steps", table(["metric", "step", a, b, "b - a"], at_steps)]
        parts += [f"{level}At the end", table(["metric", a, b, "b - a"], at_end)]
        return "\n\n".join(parts)


def compare(a: str | os.PathLike[str], b: str | os.PathLike[str]) -> Comparison:
    """Compares two runs by what they left in their directories.

    Args:
      a: the first run's directory, with `log.jsonl`, and perhaps `manifest.json` and `report/report.json`.
      b: the second run's.

    Returns:
      The comparison.

    Raises:
      FileNotFoundError: a directory holds no log.
      ValueError: a manifest or report is no JSON object.

    >>> compare("no/such/run", "another")
    Traceback (most recent call last):
        ...
    FileNotFoundError: no/such/run holds no log.jsonl: expected the save_dir of a run
    """
    one, other = read_record(a), read_record(b)
    curves = _beside(one.all_curves(), other.all_curves())
    steps = [
        Row(metric, step, runs["a"][step], runs["b"][step])
        for metric, runs in curves.items()
        if len(runs) == 2
        for step in runs["a"]
        if step in runs["b"]
    ]
    end = [Row("last_step", None, _number(one.last("step")), _number(other.last("step")))]
    end += [Row(metric, None, _end(runs.get("a")), _end(runs.get("b"))) for metric, runs in curves.items()]
    for name, runs in _beside(_reported(one), _reported(other)).items():
        end.append(Row(f"report_{name}", None, _number(runs.get("a")), _number(runs.get("b"))))
    return Comparison(one.directory, other.directory, _differing(one, other), steps, end, curves)


def _differing(one: Record, other: Record) -> dict[str, tuple[Any, Any]]:
    both = _beside(dict(flat(one.manifest)), dict(flat(other.manifest)))
    pairs = {path: (values.get("a", MISSING), values.get("b", MISSING)) for path, values in both.items()}
    return {path: pair for path, pair in pairs.items() if pair[0] != pair[1]}


def _beside(a: dict[str, Any], b: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns for each key of either, in their order, what each has."""
    keys = [*a, *(key for key in b if key not in a)]
    return {key: {which: found[key] for which, found in (("a", a), ("b", b)) if key in found} for key in keys}


def _reported(record: Record) -> dict[str, Any]:
    metrics = record.report.get("metrics")
    return dict(flat(metrics)) if isinstance(metrics, dict) else {}


def _end(curve: Curve | None) -> float | None:
    return curve[max(curve)] if curve else None


def _number(value: Any) -> float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None
