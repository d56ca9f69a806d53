"""A law of scripts: one that starts another process without a guard hears so, however much that process was to be given."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPT = """
import numpy as np
import modulekit as mk, scenarios

x = np.zeros([512, 1024], np.float32)  # 2 MiB: far more than a pipe holds
model = mk.Linear(1024)  # and 4 MiB
mk.build(model, [1, 1024])
parts = {"model": model, "optimizer": mk.optimizers.SGD(0.1), "loss": mk.losses.squared_error}
fit = scenarios.Supervised(8, batch_size=256, progress=False)


def case():
    return scenarios.testing.Case(scenarios.Supervised, {"steps": 8, "batch_size": 256}, parts, data=(x, x))


"""
CALLS = {
    "verify_resume": "fit.verify_resume(**parts, data=(x, x))",
    "preflight(mesh=...)": "fit.preflight(**parts, data=(x, x), mesh={'data': 2})",
    "check_scenario": "scenarios.testing.check_scenario(case)",
}


@pytest.mark.parametrize("name", CALLS)
def test_a_script_without_a_guard_is_told_so_and_does_not_wait_for_ever(name: str, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT + CALLS[name])
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1, done.stderr
    assert f'A script that calls {name} must do so under `if __name__ == "__main__":`, since ' in done.stderr
