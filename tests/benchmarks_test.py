"""What makes the benchmarks fair, both contenders compute the same; and that they print their table."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from modulekit.data import batch_indices
from tests.benchmarks import __main__ as benchmark
from tests.benchmarks import (
    contenders,
    gan_overhead,
    goals,
    idle_time,
    measuring,
    plot,
    readme_table,
    run_overhead,
    tables,
    timing,
    transform_overhead,
)
from tests.benchmarks.contender import Contender
from tests.benchmarks.results import TOLERANCE, Cell, Results
from tests.benchmarks.workloads import WORKLOADS
from tests.benchmarks.workloads.mlp import params_of


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


def test_idle_time_is_a_share_of_a_run_and_has_a_step_beside_it() -> None:
    step, share = idle_time.idle(WORKLOADS["mlp_3x16"], 0.3)
    assert 0 < step < 1
    assert share is not None
    assert 0 <= share < 1


def entrants(names: list[str]) -> list[Contender]:
    return [contenders.load(name) for name in names]


def test_all_contenders_that_are_installed_train_alike() -> None:
    names = contenders.installed()
    assert names[:4] == ["jax", "jax fused", "modulekit", "modulekit scenario"]
    differences = measuring.loss_differences(WORKLOADS["mlp_3x16"], entrants(names), 3)
    assert list(differences) == names
    assert max(differences.values()) <= TOLERANCE


@pytest.mark.parametrize("name", ["classifier", "convnet", "batchnorm_convnet", "lstm", "transformer"])
def test_a_module_trains_like_the_network_by_hand(name: str) -> None:
    differences = measuring.loss_differences(WORKLOADS[name], entrants(["jax", "modulekit"]), 3)
    assert differences["jax"] == 0
    assert differences["modulekit"] <= TOLERANCE


def wrong_contender() -> Contender:
    def make_step(workload: Any, params: Any) -> Any:
        return lambda x, y: 1.01 * workload.loss(params, {}, x, y)[0]

    return dataclasses.replace(contenders.load("jax"), name="faster", make_step=make_step)


def test_a_contender_whose_losses_differ_is_marked() -> None:
    theirs, faster = contenders.load("jax"), wrong_contender()
    differences = measuring.loss_differences(WORKLOADS["mlp_3x16"], [theirs, faster], 2)
    assert differences["faster"] == pytest.approx(0.01, rel=0.5)
    assert tables.agreement(cell(contender="faster", difference=differences["faster"])).startswith(
        "losses differ by 1."
    )
    assert not cell(difference=float("nan")).agrees
    with pytest.raises(ValueError, match="faster are compared with jax: let it take part"):
        measuring.loss_differences(WORKLOADS["mlp_3x16"], [faster], 2)


def test_the_statistics_by_hand_are_those_of_batch_normalization() -> None:
    workload = WORKLOADS["batchnorm_convnet"]
    params, (x, _) = workload.make_params(), workload.make_data(8)
    model, statistics = workload.model_with(params), workload.make_statistics()
    for factor in (1.0, 2.0):
        model(factor * x, True)
        _, statistics = workload.forward(params, statistics, jnp.asarray(factor * x))
    for index, norm in enumerate(model.norms):
        for moment, metric in (("mean", norm.moving_mean), ("variance", norm.moving_variance)):
            average = statistics[f"norm_{index}"][moment]
            np.testing.assert_allclose(metric.value, average["average"], rtol=1e-4, atol=1e-6)
            assert average["count"] == 2


def test_a_module_draws_weights_like_those_by_hand() -> None:
    workload = WORKLOADS["mlp_3x16"]
    params, model = workload.make_params(), workload.make_model()
    model(jnp.zeros([1, 16]))
    ours = params_of(model)
    assert jax.tree.map(jnp.shape, ours) == jax.tree.map(jnp.shape, params)
    w, hand = ours["linear_0"]["w"], params["linear_0"]["w"]
    assert abs(float(w.std()) - float(hand.std())) < 0.05
    assert float(abs(w).max()) <= 0.5 and float(abs(hand).max()) <= 0.5


def test_a_workload_takes_its_batches_in_the_order_of_a_scenario() -> None:
    workload, rows = WORKLOADS["mlp_3x16"], np.arange(100)
    batches = [labels for _, labels in workload.batches((rows, rows), 3)]
    np.testing.assert_array_equal(batches, batch_indices(100, 32, 0, 0, 3))


def test_a_file_is_all_that_a_further_contender_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "json_twice.py").write_text(
        "import json\nfrom tests.benchmarks.contenders.jax import CONTENDER as ONE\nCONTENDER = (json, ONE)\n"
    )
    (tmp_path / "nowhere.py").write_text("import nowhere\n")
    monkeypatch.setattr(contenders, "__path__", [*contenders.__path__, str(tmp_path)])
    assert "json twice" in contenders.installed()
    assert "nowhere" not in contenders.installed()
    assert contenders.load("json twice") == (json, contenders.load("jax"))
    monkeypatch.delitem(sys.modules, "tests.benchmarks.contenders.json_twice")


def cell(workload: str = "convnet", contender: str = "modulekit", **numbers: float | None) -> Cell:
    return Cell(workload, contender, **{"step": None, "first": None, "memory": None, "difference": 0.0, **numbers})  # type: ignore[arg-type]


def tiny_results(platform: str = "cpu") -> Results:
    cells = [
        cell("convnet", "jax", step=0.02, first=2.0, memory=4e6),
        cell("convnet", "modulekit", step=0.015, first=2.1, memory=4e6, difference=1e-7),
        cell("convnet", "flax", step=0.03, difference=1e-3),
        cell("classifier", "jax", memory=1e6),
        cell("classifier", "modulekit", memory=1.03e6),
    ]
    facts = {"processor": "a processor", "cores": 2, "load": 0.5, "python": "3.11", "jax": "0.10", "platform": platform}
    return Results(facts, True, {"jax": 1.0, "modulekit": 1.25}, cells)


def test_the_benchmark_prints_its_table_and_keeps_its_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results.json"
    asked = ["--quick", "--only", "mlp_3x16", "--contenders", "modulekit", "--parts", "memory", "--out", str(out)]
    assert benchmark.main(asked) == 0
    results = Results.load(out)
    assert (results.workloads, results.contenders) == (["mlp_3x16"], ["jax", "modulekit"])
    assert all(one.step is None and one.memory and one.memory > 0 for one in results.cells)
    printed = capsys.readouterr()
    assert "modulekit" in printed.out and "0.03 MB" in printed.out and "equal" in printed.out
    assert printed.err.splitlines()[0] == "mlp_3x16:"


def test_the_benchmark_fails_where_losses_differ(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = {"jax": contenders.load("jax"), "modulekit": wrong_contender()}
    monkeypatch.setattr(contenders, "load", chosen.__getitem__)
    monkeypatch.setattr(measuring, "machine", lambda entered: tiny_results().machine | timing.machine())
    assert benchmark.main(["--only", "mlp_3x16", "--contenders", "modulekit", "--parts", "memory"]) == 1
    assert "losses differ by 1." in capsys.readouterr().out


def test_goals_are_judged_where_there_are_numbers() -> None:
    rows = {row.label: (row.goal, row.verdict) for row in goals.verdicts(tiny_results())}
    assert rows == {
        "modulekit, step, convnet": (0.5, "missed"),
        "modulekit, first step, convnet": (1.1, "met"),
        "modulekit, memory, classifier": (1.02, "missed"),
    }
    elsewhere = {row.label: (row.goal, row.verdict) for row in goals.verdicts(tiny_results("gpu"))}
    assert elsewhere["modulekit, step, convnet"] == (1.0, "met")


def test_every_goal_is_of_a_workload() -> None:
    assert all(by_workload.keys() <= WORKLOADS.keys() for by_workload in goals.GOALS.values())


def test_the_tables_in_the_readme_are_written_from_the_results(tmp_path: Path) -> None:
    path, readme = tmp_path / "results.json", tmp_path / "README.md"
    results = tiny_results()
    results.save(path)
    assert Results.load(path) == results
    readme.write_text(f"before\n{readme_table.BEGIN}\nold\n{readme_table.END}\nafter\n")
    for _ in range(2):
        readme_table.main([str(path), "--readme", str(readme)])
        lines = readme.read_text().splitlines()
        assert lines[:2] == ["before", readme_table.BEGIN]
        assert lines[-2:] == [readme_table.END, "after"]
        assert "old" not in lines
        assert "| workload | jax | modulekit | flax |" in lines
        assert "| `convnet` | 20.00 ms | 0.75 | 1.50 (losses differ) |" in lines
        assert "| `classifier` | 1.00 MB | 1.03 |" in lines
        assert "| 1.00 | 1.25 |" in lines
    for wrong in ("", f"{readme_table.END}{readme_table.BEGIN}", 2 * readme.read_text()):
        with pytest.raises(ValueError, match="write each of them once, in this order"):
            readme_table.rewritten(wrong, "")


def test_the_readme_has_the_tables_of_the_recorded_results() -> None:
    recorded, readme = timing.ROOT / "tests/benchmarks/results.json", (timing.ROOT / "README.md").read_text()
    assert readme_table.rewritten(readme, tables.markdown_of(Results.load(recorded))) == readme


def test_results_are_drawn(tmp_path: Path) -> None:
    plot.draw(tiny_results(), tmp_path / "steps.png")
    assert (tmp_path / "steps.png").read_bytes().startswith(b"\x89PNG")


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
