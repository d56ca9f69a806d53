"""What modulekit's numbers may be at most, as ratios to hand-written JAX in the same run."""

from collections.abc import Iterator, Mapping
from typing import Any

from tests.benchmarks.results import Results
from tests.benchmarks.timing import Row, pretty

_OURS, _SCENARIO = "modulekit", "modulekit scenario"
_LABELS = {"step": "step", "first": "first step", "memory": "memory"}

# By part and contender, and by workload.
GOALS: Mapping[tuple[str, str], Mapping[str, float]] = {
    ("step", _OURS): {
        "mlp_3x16": 0.60,
        "mlp_50x16": 0.60,
        "variables_400": 0.06,
        "variables_2000": 0.02,
        "classifier": 1.00,
        "convnet": 1.00,
        "lstm": 1.00,
        "transformer": 1.00,
    },
    ("step", _SCENARIO): {
        "mlp_3x16": 0.25,
        "mlp_50x16": 0.45,
        "variables_400": 0.12,
        "variables_2000": 0.05,
        "classifier": 0.90,
        "convnet": 1.00,
        "lstm": 1.00,
        "transformer": 1.00,
    },
    ("first", _OURS): {
        "mlp_3x16": 1.10,
        "mlp_50x16": 1.10,
        "variables_400": 0.60,
        "variables_2000": 0.60,
        "classifier": 1.10,
        "convnet": 1.10,
        "lstm": 1.10,
        "transformer": 1.10,
    },
    ("memory", _OURS): {"classifier": 1.02},
}
_ON_CPU = {("step", _OURS, "convnet"): 0.50}


def verdicts(results: Results) -> Iterator[Row]:
    """Yields a row for each goal whose numbers were measured."""
    for (part, contender), by_workload in GOALS.items():
        for workload, goal in by_workload.items():
            ratio = results.ratio(part, workload, contender)
            if ratio is None:
                continue
            if results.machine.get("platform") == "cpu":
                goal = _ON_CPU.get((part, contender, workload), goal)
            label = f"{contender}, {_LABELS[part]}, {workload}"
            yield Row(label, ratio, goal, _detail(results, part, workload, contender))


def shown(part: str, value: Any) -> str:
    """Returns a number of a cell with its unit; nothing for None."""
    if value is None:
        return ""
    return f"{value / 1e6:.2f} MB" if part == "memory" else pretty(value)


def _detail(results: Results, part: str, workload: str, contender: str) -> str:
    ours, theirs = (shown(part, results.value(part, workload, name)) for name in (contender, "jax"))
    return f"{ours}, hand-written {theirs}"
