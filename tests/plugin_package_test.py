"""The plug-in package of the examples, installed with pip: it is listed, trains, is heard, writes, and obeys all laws."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "examples" / "plugin"
TRAINING = """
import csv, sys
import numpy as np
import modulekit as mk
from scenarios import plugins
from scenarios.testing import check_scenario

if __name__ == "__main__":
    QuantileRegression, Goal, write_csv = map(plugins.load, ("QuantileRegression", "Goal", "csv"))
    assert check_scenario(QuantileRegression).passed
    rng = np.random.default_rng(0)
    x = rng.normal(size=[2000, 1]).astype(np.float32)
    y = (x[:, 0] + rng.normal(size=2000)).astype(np.float32)
    model, fit = mk.Linear(1), QuantileRegression(2000, quantile=0.9, batch_size=200, eval_interval=100, progress=False)
    result = fit(model, mk.optimizers.Adam(0.01), data=(x, y), eval_data=(x, y))
    assert abs(result.metrics["below"] - 0.9) < 0.01, result.metrics
    again = QuantileRegression(2000, quantile=0.9, batch_size=200, eval_interval=100, progress=False)
    ended = again(mk.Linear(1), mk.optimizers.Adam(0.01), data=(x, y), eval_data=(x, y), hooks=[Goal("loss", 0.2)])
    assert ended.step < 2000 and ended.reason == "loss has reached 0.2", ended
    write_csv("weights.csv", model, x)
    with open("weights.csv") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["variable", "index", "value"] and {row[0] for row in rows[1:]} == {"w", "b"}
    assert [np.float32(row[2]) for row in rows[1:] if row[0] == "w"] == list(model.w.numpy().reshape(-1))
    print("the plug-in works")
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which pip has installed the package, with nothing from a network."""
    folder = tmp_path_factory.mktemp("plugin")
    shutil.copytree(PACKAGE, folder / "source")
    options = ["--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check", "--quiet"]
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        *options,
        "--target",
        str(folder / "site"),
        str(folder / "source"),
    ]
    done = subprocess.run(command, text=True, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "site"


def run(arguments: list[str], installed: Path, directory: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(installed), str(ROOT)])}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, env=environment, cwd=directory, text=True, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_installed_package_is_listed(installed: Path, tmp_path: Path) -> None:
    printed = run(["-m", "scenarios", "list"], installed, tmp_path)
    rows = [[cell.strip() for cell in line.split("│")[1:4]] for line in printed.splitlines() if line.startswith("│")]
    package = "modulekit-quantiles 1.0"
    for row in (["QuantileRegression", "scenario", package], ["Goal", "hook", package], ["csv", "exporter", package]):
        assert row in rows
    assert "cannot be had" not in printed


def test_the_installed_package_trains_is_heard_writes_and_obeys_all_laws(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "training.py").write_text(TRAINING)
    assert run(["training.py"], installed, tmp_path).endswith("the plug-in works\n")
