"""Starts the program of a saved run once more: the same module or script, arguments and working directory."""

import os
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from modulekit.checkpoints import read_json
from modulekit.errors import CheckpointError
from scenarios.base import requests
from scenarios.base.manifest import NAME


def start_again(directory: Path) -> None:
    """Runs the program of a run from its beginning; the run itself goes on from its newest saved state.

    Args:
      directory: the run's.

    Raises:
      CheckpointError: the directory holds no run, or one that was started interactively.
    """
    manifest = directory / NAME
    command = read_json(manifest)["command"]
    if command is None:
        raise CheckpointError(
            f"{manifest} names no command, since the run was started in an interactive session: call the scenario there "
            "again, with the same save_dir"
        )
    os.chdir(command["directory"])
    sys.argv = [command.get("script", command.get("module")), *command["arguments"]]
    if "module" in command:
        sys.path.insert(0, command["directory"])
        runpy.run_module(command["module"], run_name="__main__", alter_sys=True)
    else:
        sys.path.insert(0, str(Path(command["script"]).parent))
        runpy.run_path(command["script"], run_name="__main__")


def ask_program(directory: Path, answer: Callable[[Any], Any]) -> Any:
    """Starts the program of a run once more, up to the call of its scenario; there `answer` is called with the run.

    Args:
      directory: the run's.
      answer: a function of the `scenarios.base.run.Run`.

    Returns:
      What `answer` returned.

    Raises:
      CheckpointError: as `start_again`; or the program ended without calling a scenario with this directory.
    """
    directory = directory.resolve()
    requests.ask(directory, answer)
    try:
        start_again(directory)
    except requests.Answered as answered:
        return answered.answer
    finally:
        requests.withdraw()
    raise CheckpointError(f"the program of {directory} ended, and called no scenario with this save_dir")
