"""The story of a training run, told from what it left in its directory."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scenarios.evaluation.plots import draw_curves
from scenarios.evaluation.record import Record, flat, read_record
from scenarios.evaluation.tables import table

LOSS = "loss"


def run_report(directory: str | os.PathLike[str], to: str | os.PathLike[str] | None = None, plots: bool = True) -> Path:
    """Writes `run.md`, and `run.png` with the curves, for a run that has ended, is going on, or was killed.

    Args:
      directory: the run's directory, with `log.jsonl`.
      to: where to write; `report` in the run's directory if None.
      plots: whether to draw; needs matplotlib.

    Returns:
      The path of `run.md`.

    Raises:
      FileNotFoundError: the directory holds no log.
      ImportError: matplotlib is not installed; the tables are written nevertheless.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as run:
    ...     _ = Path(run, "log.jsonl").write_text('{"event": "logged", "step": 10, "metrics": {"loss": 0.5}}')
    ...     print(run_report(run, plots=False).read_text().splitlines()[-1])
    | loss   | 0.5   | 0.5  | 0.5    | 10      | 0.5     | 10      |
    """
    record = read_record(directory)
    folder = record.directory / "report" if to is None else Path(to)
    folder.mkdir(parents=True, exist_ok=True)
    text = folder / "run.md"
    content = _markdown(record)
    text.write_text(content, encoding="utf-8")
    if plots and record.all_curves():
        draw_curves(_panels(record), folder / "run.png")
        text.write_text(f"{content}\n![Curves](run.png)\n", encoding="utf-8")
    return text


def best_evaluation(record: Record) -> tuple[int, float] | None:
    """Returns the step of the lowest loss among the evaluations, and the loss; None if none was evaluated."""
    curve = record.curves("evaluated").get(LOSS)
    if not curve:
        return None
    step = min(curve, key=lambda s: curve[s])
    return step, curve[step]


def _markdown(record: Record) -> str:
    parts = [f"# {record.last('scenario') or 'Run'}", _outcome(record)]
    best = best_evaluation(record)
    if best is not None:
        parts.append(f"Best evaluation: loss {best[1]:.6g} after step {best[0]}.")
    settings = list(flat(record.manifest.get("settings") or {}))
    if settings:
        parts += ["## Settings", table(["setting", "value"], settings)]
    spent = _spent(record.last("seconds"))
    if spent:
        total = sum(spent.values())
        shares = [
            [name, seconds, f"{100 * seconds / total:.1f} %" if total else None] for name, seconds in spent.items()
        ]
        parts += ["## Time", table(["activity", "seconds", "share"], shares)]
    curves = record.all_curves()
    if curves:
        header = ["metric", "first", "last", "lowest", "at step", "highest", "at step"]
        parts += ["## Metrics", table(header, [[name, *_extremes(curve)] for name, curve in curves.items()])]
    return "\n\n".join(parts) + "\n"


def _outcome(record: Record) -> str:
    step, steps = record.last("step"), record.last("steps")
    reached = f"step {0 if step is None else step}" + ("" if steps is None else f" of {steps}")
    last = record.events[-1] if record.events else {}
    if last.get("event") == "finished":
        told = f"The run ended after {reached}: {last.get('reason', 'done')}."
    else:
        told = f"The log ends at {reached}, without a word that the run is over: it is going on, or was killed."
    starts = sum(line.get("event") == "started" for line in record.events)
    if starts > 1:
        told += f" It was started {starts} times."
    if record.unreadable:
        told += f" Unreadable lines of the log: {record.unreadable}."
    return told


def _spent(seconds: Any) -> dict[str, float]:
    entries = flat(seconds) if isinstance(seconds, Mapping) else [("all", seconds)]
    return {name: float(s) for name, s in entries if isinstance(s, int | float) and not isinstance(s, bool)}


def _extremes(curve: dict[int, float]) -> list[Any]:
    low, high = min(curve, key=lambda s: curve[s]), max(curve, key=lambda s: curve[s])
    values = list(curve.values())
    return [values[0], values[-1], curve[low], low, curve[high], high]


def _panels(record: Record) -> dict[str, dict[str, tuple[list[int], list[float]]]]:
    """Returns a panel for each metric, training and evaluation in one."""
    panels: dict[str, dict[str, tuple[list[int], list[float]]]] = {}
    for title, event in (("training", "logged"), ("evaluation", "evaluated")):
        for name, curve in record.curves(event).items():
            panels.setdefault(name, {})[title] = (list(curve), list(curve.values()))
    return panels
