"""Laws of `modulekit.sharding`: on eight devices, in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def test_laws_on_eight_devices() -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, HERE / "subprocesses" / "shard_on_eight_devices.py"],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout)
    assert len(report["laws"]) == 9
    assert not report["failed"], "\n".join(f"{name}\n{text}" for name, text in report["failed"].items())
