"""What a run left in its directory: its log, its manifest, and the report of an evaluation."""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Curve = dict[int, float]  # values by step


@dataclass(frozen=True)
class Record:
    """A run, read from its directory; whatever is missing there is empty.

    Attributes:
      directory: where it is.
      events: the log's lines, as they were written.
      unreadable: how many lines of the log are none, as the last one of a run that was killed may be.
      manifest: what the run was made of.
      report: the report of an evaluation.
    """

    directory: Path
    events: list[dict[str, Any]]
    unreadable: int
    manifest: dict[str, Any]
    report: dict[str, Any]

    def curves(self, event: str) -> dict[str, Curve]:
        """Returns each metric of the events of a kind (`logged`, `evaluated`) by step; of a step told twice, the later."""
        found: dict[str, Curve] = {}
        for line in self.events:
            if line.get("event") != event or not isinstance(line.get("metrics"), dict):
                continue
            for name, value in flat(line["metrics"]):
                if value is not None and not isinstance(value, bool | str):
                    found.setdefault(name, {})[int(line["step"])] = float(value)
        return {name: dict(sorted(curve.items())) for name, curve in found.items()}

    def all_curves(self) -> dict[str, Curve]:
        """Returns all curves: those of training under their names, those of evaluation as `eval_...`."""
        evaluated = {f"eval_{name}": curve for name, curve in self.curves("evaluated").items()}
        return self.curves("logged") | evaluated

    def last(self, key: str) -> Any:
        """Returns what the last line that has a key says."""
        return next((line[key] for line in reversed(self.events) if key in line), None)


def read_record(directory: str | os.PathLike[str]) -> Record:
    """Reads the directory of a run, also of one that is still going on or was killed.

    Raises:
      FileNotFoundError: there is no log.
      ValueError: the manifest or the report is no JSON object.
    """
    folder = Path(directory)
    log = folder / "log.jsonl"
    if not log.is_file():
        raise FileNotFoundError(f"{folder} holds no log.jsonl: expected the save_dir of a run")
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    events = [event for event in map(_event, lines) if event is not None]
    return Record(
        folder,
        events,
        len(lines) - len(events),
        _object(folder / "manifest.json"),
        _object(folder / "report" / "report.json"),
    )


def flat(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the leaves of nested JSON objects, under paths such as `settings.seed`.

    >>> list(flat({"settings": {"seed": 0, "devices": ["cpu"]}}))
    [('settings.seed', 0), ('settings.devices', ['cpu'])]
    """
    for key, value in content.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _event(line: str) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and isinstance(event.get("step"), int) else None


def _object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}; write it again, or remove it") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, not a {type(content).__name__}")
    return content
