"""The manifest of a run: what it was made of and where it ran, for whoever wants to run it again."""

import platform
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax

from modulekit.checkpoints import read_json, write_json

NAME = "manifest.json"  # in a run's directory
_PACKAGES = ("modulekit", "jax", "jaxlib", "numpy", "optax", "orbax-checkpoint")
_PATIENCE = 10.0  # seconds for git


def write_manifest(directory: Path, identity: Mapping[str, Any], step: int, parameters: int) -> None:
    """Writes the manifest of a run that begins; where it goes on, adds where it does to the manifest that is there.

    Args:
      directory: the run's.
      identity: what the run is made of.
      step: where it begins.
      parameters: the number of trainable numbers.
    """
    path = directory / NAME
    begun = {"step": step, "time": datetime.now(UTC).isoformat(timespec="seconds"), **surroundings()}
    if step and path.exists():
        content = read_json(path)
        content["resumed"] = [*content.get("resumed", []), begun]
    else:
        content = {**identity, "parameters": parameters, "command": command(), **begun}
    write_json(path, content)


def surroundings() -> dict[str, Any]:
    """Returns what a run stands on: versions, devices, and the commit of the working directory."""
    return {"versions": _versions(), "devices": _devices(), "git": _git()}


def command() -> dict[str, Any] | None:
    """Returns how this program was started, so that it can be started again; None in an interactive session."""
    main = sys.modules.get("__main__")
    spec = getattr(main, "__spec__", None)
    if spec is not None:
        name = spec.name.removesuffix(".__main__")
        return {"module": name, "arguments": sys.argv[1:], "directory": str(Path.cwd())}
    file = getattr(main, "__file__", None)
    if file is None or not Path(file).exists():
        return None
    return {"script": str(Path(file).absolute()), "arguments": sys.argv[1:], "directory": str(Path.cwd())}


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def _devices() -> list[str]:
    return [f"{device.platform}: {device.device_kind}" for device in jax.devices()]


def _git() -> dict[str, Any] | None:
    """Returns the commit of the working directory and the files that differ from it; None outside of any repository."""
    commit, status = _ask_git("rev-parse", "HEAD"), _ask_git("status", "--porcelain")
    if commit is None or status is None:
        return None
    return {"commit": commit.strip(), "dirty": sorted(line[3:] for line in status.splitlines())}


def _ask_git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=_PATIENCE, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
