"""Laws of `cache_dir`: a process compiles what no process has compiled before, and everything stays as it is without."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import pytest
from scenario_catalogue import ROW, exactly

import scenarios

REGRESSION = ROW["regression"]
PROGRAM = Path(__file__).parent / "subprocesses" / "run_cached.py"


def train(steps: int, save_dir: Path, cache_dir: Path) -> dict[str, Any]:
    """Trains in a process that has compiled nothing yet; returns what it compiled, and the last loss."""
    environment = {**os.environ, "PYTHONPATH": str(Path(scenarios.__file__).parents[1])}
    command = [sys.executable, str(PROGRAM), str(steps), str(save_dir), str(cache_dir)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def loops(folder: Path) -> list[str]:
    """Returns the files of compiled training loops."""
    return [path.name for path in folder.iterdir() if "arranged" in path.name and path.name.endswith("-cache")]


def test_another_process_compiles_nothing_and_one_that_goes_on_no_loop(tmp_path: Path) -> None:
    cache = tmp_path / "programs"
    first = train(20, tmp_path / "first", cache)
    assert first["misses"] > 0 == first["hits"]
    kept = loops(cache)
    assert kept
    again = train(20, tmp_path / "again", cache)
    assert again["misses"] == 0 < again["hits"]
    resumed = train(40, tmp_path / "again", cache)
    assert resumed["hits"] > 0
    assert loops(cache) == kept
    straight = train(40, tmp_path / "straight", tmp_path / "others")
    assert again["loss"] == first["loss"]
    assert resumed["loss"] == straight["loss"]


def test_jaxs_own_settings_are_afterwards_as_before(tmp_path: Path) -> None:
    def settings() -> list[Any]:
        kinds = (
            "compilation_cache_dir",
            "persistent_cache_min_compile_time_secs",
            "persistent_cache_min_entry_size_bytes",
        )
        return [(getattr(jax.config, f"jax_{kind}"), os.environ.get(f"JAX_{kind.upper()}")) for kind in kinds]

    before = settings()
    REGRESSION.start(steps=8, cache_dir=tmp_path)
    assert settings() == before
    assert loops(tmp_path)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / "programs"
    with pytest.raises(OSError, match=exactly(f"cannot write to cache_dir '{folder}': Not a directory")):
        REGRESSION.start(cache_dir=folder)
