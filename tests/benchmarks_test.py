"""What makes the benchmarks fair, both contenders compute the same; and that they print their table."""

import dataclasses
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from tests.benchmarks import gan_overhead, run_overhead, step_overhead, timing, transform_overhead


def test_the_contenders_for_a_run_all_train_and_say_how_long_a_step_takes() -> None:
    data = run_overhead.made_data(run_overhead.SMALL[0], 200)
    seconds = [
        run_overhead.scenario(data, run_overhead.SMALL, 40, 10),
        run_overhead.step_loop(data, run_overhead.SMALL, 40),
        run_overhead.scan_loop(data, run_overhead.SMALL, 40, length=10),
    ]
    assert all(0 < value < 1 for value in seconds)


def test_the_contenders_for_a_gan_train_and_say_how_long_an_update_takes() -> None:
    data = gan_overhead.made_data()
    assert all(0 < contender(data, 20, 2) < 1 for contender in (gan_overhead.scenario, gan_overhead.loop))


@pytest.mark.parametrize("depth", [3, 8])
def test_the_benchmark_compares_equal_arithmetic(depth: int) -> None:
    inputs, labels = step_overhead.make_data(20 * step_overhead.BATCH)
    batches = [
        (inputs[start : start + step_overhead.BATCH], labels[start : start + step_overhead.BATCH])
        for start in range(0, len(inputs), step_overhead.BATCH)
    ]
    model = step_overhead.make_model(depth)
    model(jnp.asarray(inputs[:1]))
    steps = {
        "jax": step_overhead.hand_written(step_overhead.params_of(model)),
        "modulekit": step_overhead.with_modulekit(model),
    }
    losses = {name: np.array([float(step(x, y)) for x, y in batches]) for name, step in steps.items()}
    assert len(losses["jax"]) == 20
    assert losses["jax"][0] != losses["jax"][-1]
    np.testing.assert_allclose(losses["modulekit"], losses["jax"], atol=1e-5, rtol=0)


def test_the_benchmark_makes_equal_shapes_of_weights() -> None:
    params = step_overhead.make_params(3)
    model = step_overhead.make_model(3)
    model(jnp.zeros([1, step_overhead.WIDTH]))
    ours = step_overhead.params_of(model)
    assert {key: {k: v.shape for k, v in layer.items()} for key, layer in params.items()} == {
        key: {k: v.shape for k, v in layer.items()} for key, layer in ours.items()
    }
    w, hand = ours["linear_0"]["w"], params["linear_0"]["w"]
    assert abs(float(w.std()) - float(hand.std())) < 0.05
    assert float(abs(w).max()) <= 0.5 and float(abs(hand).max()) <= 0.5


def test_contenders_take_turns_in_an_order_that_turns() -> None:
    calls: list[str] = []

    def measure(name: str) -> float:
        calls.append(name)
        return float(len(calls))

    measured = timing.alternate({name: lambda name=name: measure(name) for name in "ab"}, rounds=3)
    assert "".join(calls) == "abbaab"
    assert measured == {"a": [1.0, 4.0, 5.0], "b": [2.0, 3.0, 6.0]}
    assert timing.medians(measured) == {"a": 4.0, "b": 3.0}


def test_a_row_knows_whether_its_goal_is_met() -> None:
    verdicts = [timing.Row("x", measured, goal, "").verdict for measured, goal in ((1.0, 1.0), (1.1, 1.0), (1.0, None))]
    assert verdicts == ["met", "missed", ""]
    assert timing.Row("x", None, 1.0, "").verdict == "failed"


@pytest.mark.parametrize("pair", transform_overhead.PAIRS.values(), ids=list(transform_overhead.PAIRS))
def test_each_transform_and_its_counterpart_give_equal_numbers(pair: transform_overhead.Pair) -> None:
    transform_overhead.check_equal(pair)
    with_other_numbers = dataclasses.replace(pair, theirs=lambda: lambda p, s, x: pair.theirs()(p, s, 1.01 * x))
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        transform_overhead.check_equal(with_other_numbers)


def test_a_quick_run_over_transforms_prints_the_table_and_writes_its_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "table.json"
    transform_overhead.main(["--quick", "--only", "cond", "eager", "--out", str(out)])
    rows = json.loads(out.read_text())["rows"]
    labels = ["cond, compiled call", "cond, first result", "eager grad of a 3x64 MLP, call"]
    assert [(row["label"], row["goal"]) for row in rows] == list(zip(labels, (1.10, None, None), strict=True))
    assert all(row["measured"] > 0 for row in rows)
    printed = capsys.readouterr().out
    assert all(label in printed for label in labels)
