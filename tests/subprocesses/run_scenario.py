"""Runs rows of the catalogue of scenarios: a JSON job on each line of the standard input, a JSON reply to each.

A job names the row, the settings, the seed of the first weights, and a file for the final weights. With `hold`, the run
writes the file `held` after that many updates and waits until there is a file `go`.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from scenario_catalogue import ROW

from scenarios import events


def holding(job: dict[str, Any]) -> Any:
    """Returns a hook that waits once, at the first progress from step `hold` on."""
    folder, deadline = Path(job["folder"]), time.monotonic() + 60

    def hook(event: events.Event) -> None:
        if not isinstance(event, events.Progressed) or event.step < job["hold"] or (folder / "held").exists():
            return
        (folder / "held").write_text(str(event.step))
        while not (folder / "go").exists() and time.monotonic() < deadline:
            time.sleep(0.005)

    return hook


for line in sys.stdin:
    job = json.loads(line)
    hooks = [holding(job)] if "hold" in job else []
    result, state = ROW[job["row"]].start(hooks, seed=job["seed"], **job["settings"])
    np.savez(job["output"], **state)
    reply = {"step": result.step, "metrics": result.metrics, "history": result.history, "reason": result.reason}
    print(json.dumps(reply), flush=True)
