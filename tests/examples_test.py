"""The examples, as a user starts them: a second process, a reduced run, the number that they print."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]


def run(name: str, *arguments: str, directory: Path) -> str:
    command = [sys.executable, "-m", f"examples.{name}", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def last_number(output: str) -> float:
    return float(re.findall(r"-?\d+\.\d+", output)[-1])


def test_linear_regression_finds_the_slope_three_times(tmp_path: Path) -> None:
    output = run("linear_regression", directory=tmp_path)
    assert output.count("y = 5.0000 x") == 3
    assert last_number(output) < 1e-4


def test_classify_digits_reaches_its_accuracy(tmp_path: Path) -> None:
    output = run("classify_digits", "--steps", "600", directory=tmp_path)
    assert last_number(output) >= 0.96


def test_the_tied_autoencoder_beats_the_untied_one_and_draws_it(tmp_path: Path) -> None:
    output = run("tied_autoencoder", "--steps", "2000", directory=tmp_path)
    assert last_number(output) > 0.005
    assert "12,964" in output and "6,564" in output, "a shared parameter counts once"
    picture = np.asarray(Image.open(tmp_path / "tied_autoencoder.png").convert("L"))
    assert picture.shape[0] > 400 and picture.std() > 20


def test_share_by_name_has_one_set_of_variables(tmp_path: Path) -> None:
    output = run("share_by_name", "--steps", "200", directory=tmp_path)
    assert last_number(output) >= 0.98
    assert "97 parameters in 4 variables" in output
    assert re.search(r"variable 'layer_0/w' already exists: it was first defined at .*share_by_name\.py:\d+\.", output)
