"""What an ensemble of small classifiers costs over training its members one after the other, each by `Supervised`.

Eight classifiers of 64-32-10 units, and eight of 16-16-10, with Adam and batches of 32, each with its own order of examples.
Run as `python -m tests.benchmarks.ensemble_overhead`. The first rows compare whole runs, as a user waits for them, with
compilation; the others the time of an update, from a tenth of the steps to the end.
"""

import time
from collections.abc import Iterator
from typing import Any

import numpy as np

import modulekit as mk
import scenarios
from tests.benchmarks import timing
from tests.benchmarks.run_overhead import Clock, Data, made_data
from tests.benchmarks.timing import Row, pretty

MEMBERS, BATCH = 8, 32
SIZES = {"64-32-10": [64, 32, 10], "16-16-10": [16, 16, 10]}
SETTINGS: dict[str, Any] = {"batch_size": BATCH, "progress": False}


def models(sizes: list[int], count: int = MEMBERS) -> list[Any]:
    """Returns classifiers that are not built yet, the same for each call."""
    mk.seed(0)
    return [mk.nets.MLP(sizes[1:], name=f"member_{k}") for k in range(count)]


def optimizers(count: int = MEMBERS) -> list[Any]:
    """Returns an optimizer for each."""
    return [mk.optimizers.Adam(1e-3) for _ in range(count)]


def side_by_side(data: Data, sizes: list[int], steps: int) -> tuple[float, float, list[Any]]:
    """Trains an ensemble; returns its seconds, its seconds per update, and the models."""
    clock, members, began = Clock(), models(sizes), time.perf_counter()
    train = scenarios.Ensemble(steps, seeds=range(MEMBERS), split="shuffled", **SETTINGS)
    train(members, optimizers(), mk.losses.softmax_cross_entropy, data=data, hooks=[clock])
    return time.perf_counter() - began, clock.seconds_per_step, members


def one_after_the_other(data: Data, sizes: list[int], steps: int) -> tuple[float, float, list[Any]]:
    """Trains the same members by themselves; returns the sums of their seconds and seconds per update, and the models."""
    members, per_update, began = models(sizes), 0.0, time.perf_counter()
    for seed, (model, optimizer) in enumerate(zip(members, optimizers(), strict=True)):
        clock = Clock()
        train = scenarios.Supervised(steps, seed=seed, **SETTINGS)
        train(model, optimizer, mk.losses.softmax_cross_entropy, data=data, hooks=[clock])
        per_update += clock.seconds_per_step
    return time.perf_counter() - began, per_update, members


def distance(data: Data, sizes: list[int], steps: int) -> float:
    """Returns the largest difference between a weight of a member and the same one trained alone."""
    pairs = zip(side_by_side(data, sizes, steps)[2], one_after_the_other(data, sizes, steps)[2], strict=True)
    differences = (
        np.abs(mine.numpy() - theirs.numpy()).max()
        for one, other in pairs
        for mine, theirs in zip(one.variables, other.variables, strict=True)
    )
    return float(max(differences))


def rows(quick: bool) -> Iterator[Row]:
    """Measures whole runs, and updates."""
    ways = {"ensemble": side_by_side, "one by one": one_after_the_other}
    for name, sizes in SIZES.items():
        data = made_data(sizes[0], 1500)
        for kind, steps, goal in ((0, 2000, 0.4), (1, 5000 if quick else 20_000, 0.4)):
            contenders = {
                way: lambda run=run, s=sizes, n=steps, k=kind, d=data: run(d, s, n)[k] for way, run in ways.items()
            }
            times = timing.medians(timing.alternate(contenders, 3 if quick else 5))
            what = "a run of 2,000 updates" if kind == 0 else "an update"
            detail = f"ensemble {pretty(times['ensemble'])}, one by one {pretty(times['one by one'])}"
            label = f"{what} of {MEMBERS} {name} classifiers, over one after the other"
            yield Row(label, times["ensemble"] / times["one by one"], goal, detail)
    apart = distance(made_data(64, 1500), SIZES["64-32-10"], 300)
    yield Row("largest difference of a weight after 300 updates, over training alone", apart, 1e-5, "")


if __name__ == "__main__":
    timing.command(__doc__, "ensembles over members one after the other", rows)
