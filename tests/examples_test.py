"""The examples, as a user starts them: a second process, a reduced run, the number that they print."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]
ROW = re.compile(r"│ (one process|2 workers) *│([\d. │]*)│\n")  # of a table


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


def test_variational_digits_shows_bounds_and_a_collapse_and_draws_samples(tmp_path: Path) -> None:
    output = run("variational_digits", "--steps", "600", "--betas", "1", "20", directory=tmp_path)
    assert -27 < last_number(output) < -20
    assert "alarm with beta 20: the posterior has collapsed to the prior" in output
    picture = np.asarray(Image.open(tmp_path / "variational_digits.png").convert("L"))
    assert picture.shape[0] > 400 and picture.std() > 20


def test_distill_compares_students_with_and_without_teachers(tmp_path: Path) -> None:
    output = run("distill", "--steps", "300", "--seeds", "1", "--hidden", "64", directory=tmp_path)
    assert abs(last_number(output)) < 0.5
    assert re.search(r"student alone\W+1,210\W+1\W+0\.\d{4}", output)
    assert re.search(r"student distilled\W+1,210\W+1\W+0\.\d{4}", output), "frozen teachers do not count"


def test_the_image_filter_finds_the_edges_of_both_photographs(tmp_path: Path) -> None:
    output = run("image_filter", "--steps", "800", directory=tmp_path)
    assert last_number(output) > 0.8
    assert "one filter, 153 parameters, 4 variables" in output
    picture = np.asarray(Image.open(tmp_path / "image_filter.png").convert("L"))
    assert picture.shape[0] > 400 and picture.std() > 20


def test_generated_digits_come_closer_to_real_ones_and_are_drawn(tmp_path: Path) -> None:
    output = run("gan_digits", "--steps", "400", "--eval-interval", "100", directory=tmp_path)
    assert last_number(output) < 0.5
    assert "360 generated digits beside 360 test digits" in output
    assert "features: hidden layer of a digit classifier, 64 units" in output
    picture = np.asarray(Image.open(tmp_path / "gan_digits.png").convert("L"))
    assert picture.shape[0] > 300 and picture.std() > 20


def test_the_average_of_an_ensemble_is_better_than_its_members(tmp_path: Path) -> None:
    output = run("ensemble_digits", "--steps", "200", "--seeds", "0", "1", directory=tmp_path)
    assert last_number(output) > 0
    assert "mean" in output and "spread" in output and "gain over the best member" in output
    assert np.asarray(Image.open(tmp_path / "ensemble_digits" / "ensemble.png").convert("L")).std() > 10


def test_serial_sharing_goes_on_from_what_was_learned(tmp_path: Path) -> None:
    output = run("serial_sharing", "--steps", "300", "--seeds", "0", "1", directory=tmp_path)
    assert last_number(output) < 0.3
    assert (
        "both phases train one network" in output.replace("\n", " ") and "each phase trains its own network" in output
    )
    assert np.asarray(Image.open(tmp_path / "serial_sharing.png").convert("L")).std() > 10


def test_share_by_name_has_one_set_of_variables(tmp_path: Path) -> None:
    output = run("share_by_name", "--steps", "200", directory=tmp_path)
    assert last_number(output) >= 0.98
    assert "97 parameters in 4 variables" in output
    assert re.search(r"variable 'layer_0/w' already exists: it was first defined at .*share_by_name\.py:\d+\.", output)


def test_aggregate_graphs_trains_the_same_in_one_process_and_with_workers(tmp_path: Path) -> None:
    output = run("aggregate_graphs", "--steps", "30", directory=tmp_path)
    assert last_number(output) < 1e-3
    rows = {name: [float(n) for n in numbers.split("│")] for name, numbers in ROW.findall(output)}
    assert rows.keys() == {"one process", "2 workers"}
    assert all(nodes >= 0.95 and connected >= 0.9 for _, _, nodes, connected in rows.values())


def test_custom_scenario_obeys_all_laws_and_reaches_its_accuracy(tmp_path: Path) -> None:
    output = run("custom_scenario", "--steps", "600", directory=tmp_path)
    assert "Smoothed obeys 11 of 11 laws of scenarios" in output
    assert "not tried: another process" not in output
    assert last_number(output) >= 0.95
    assert len((ROOT / "examples" / "custom_scenario.py").read_text().splitlines()) < 40
