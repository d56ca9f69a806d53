"""Laws of several devices, of which each program here gives its process eight."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PROGRAMS = {
    "shard_on_eight_devices.py": 10,
    "train_on_eight_devices.py": 10,
    "send_on_eight_devices.py": 5,
    "divide_members_on_eight_devices.py": 6,
}


@pytest.mark.parametrize(("program", "laws"), PROGRAMS.items())
def test_laws_on_eight_devices(program: str, laws: int) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, HERE / "subprocesses" / program],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout)
    assert len(report["laws"]) == laws
    assert not report["failed"], "\n".join(f"{name}\n{text}" for name, text in report["failed"].items())
