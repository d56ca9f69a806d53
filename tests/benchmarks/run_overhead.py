"""What a run costs over hand-written loops, with all that a run does: progress bar, log, saved states.

The models are an MNIST classifier of 888,135 weights with batches of 100, and a 3x16 MLP with batches of 32, both with Adam.
Run as `python -m tests.benchmarks.run_overhead`, with `--data-dir` for the real MNIST; other data of its shape is made
without it. A run is timed by its own events, between a tenth of its steps and its end, so that compilation does not count.
"""

import argparse
import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console

import modulekit as mk
import scenarios
from modulekit.data import batch_indices
from scenarios.base.progress import ProgressBar
from tests.benchmarks import timing
from tests.benchmarks.timing import Row, pretty

SIZES, SMALL = [784, 625, 625, 10], [16, 16, 16, 16]
Data = tuple[np.ndarray, np.ndarray]


def made_data(inputs: int, size: int) -> Data:
    """Returns images `[size, inputs]` and labels, of the shape of MNIST's."""
    generator = np.random.default_rng(0)
    return generator.random([size, inputs], np.float32), generator.integers(0, 10, size).astype(np.int32)


class Clock:
    """A hook that notes when the run has passed a tenth of its steps, and when it ends."""

    def __init__(self) -> None:
        self._began: tuple[int, float] | None = None
        self.seconds_per_step = float("nan")

    def __call__(self, event: scenarios.events.Event) -> None:
        """Notes the time."""
        if isinstance(event, scenarios.events.Started):
            self._steps = event.steps
        elif isinstance(event, scenarios.events.Progressed) and event.step >= self._steps // 10:
            self._began = self._began or (event.step, time.perf_counter())
        elif isinstance(event, scenarios.events.Finished) and self._began is not None and self._began[0] < event.step:
            step, began = self._began
            self.seconds_per_step = (time.perf_counter() - began) / (event.step - step)


def batch_size(sizes: list[int]) -> int:
    """Returns how many examples a batch of a model has."""
    return 32 if sizes is SMALL else 100


def scenario(data: Any, sizes: list[int], steps: int, save_interval: int | None, **settings: Any) -> float:
    """Returns the seconds per step of a run with a progress bar, a log and saved states."""
    clock, rate = Clock(), mk.optimizers.Adam(1e-3)
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as nowhere:
        bar = ProgressBar(Console(file=nowhere, force_terminal=True, width=120))
        fit = scenarios.Supervised(
            steps,
            batch_size=batch_size(sizes),
            save_dir=folder,
            save_interval=save_interval,
            progress=False,
            **settings,
        )
        fit(
            mk.nets.MLP(sizes[1:]), rate, mk.losses.softmax_cross_entropy, data=data, hooks=[bar, clock],
        )  # fmt: skip
    return clock.seconds_per_step


def make_state(sizes: list[int]) -> Any:
    """Returns the weights and Adam's state of an MLP, as nested lists."""
    keys = jax.random.split(jax.random.key(0), len(sizes))
    layers = zip(keys, sizes, sizes[1:], strict=False)
    weights = [(jax.random.normal(key, [m, n]) / np.sqrt(m), jnp.zeros([n])) for key, m, n in layers]
    return weights, optax.adam(1e-3).init(weights)


def update(state: Any, batch: Any) -> tuple[Any, Any]:
    """Takes one step of Adam by hand."""
    images, labels = batch

    def loss(weights: Any) -> Any:
        x = images
        for index, (w, b) in enumerate(weights):
            x = x @ w + b
            x = jax.nn.relu(x) if index < len(weights) - 1 else x
        return optax.softmax_cross_entropy_with_integer_labels(x, labels).mean()

    weights, slots = state
    value, gradients = jax.value_and_grad(loss)(weights)
    changes, slots = optax.adam(1e-3).update(gradients, slots)
    return (optax.apply_updates(weights, changes), slots), value


def step_loop(data: Data, sizes: list[int], steps: int) -> float:
    """Returns the seconds per step of a loop that calls a compiled step with each batch, as most people write it."""
    step, state = jax.jit(update, donate_argnums=0), make_state(sizes)
    for index, rows in enumerate(batch_indices(len(data[0]), batch_size(sizes), 0, 0, steps)):
        if index == steps // 10:
            jax.block_until_ready(state)
            began = time.perf_counter()
        state, _ = step(state, (data[0][rows], data[1][rows]))
    jax.block_until_ready(state)
    return (time.perf_counter() - began) / (steps - steps // 10)


def scan_loop(data: Data, sizes: list[int], steps: int, length: int = 100) -> float:
    """Returns the seconds per step of a `lax.scan` over many steps, with all data on the device."""
    images, labels = map(jnp.asarray, data)

    def many(state: Any, images: Any, labels: Any, rows: Any) -> tuple[Any, Any]:
        return jax.lax.scan(lambda state, row: update(state, (images[row], labels[row])), state, rows)

    run, state = jax.jit(many, donate_argnums=0), make_state(sizes)
    for first in range(0, steps, length):
        if first == length:
            began = time.perf_counter()
        state, losses = run(state, images, labels, batch_indices(len(images), batch_size(sizes), 0, first, length))
        np.asarray(losses)
    jax.block_until_ready(state)
    return (time.perf_counter() - began) / (steps - length)


def small_rows(quick: bool) -> Iterator[Row]:
    """Measures the small MLP, where a step is little else than overhead."""
    data, steps = made_data(SMALL[0], 10_000), 20_000 if quick else 60_000
    contenders = {
        "scenario": lambda: scenario(data, SMALL, steps, None),
        "loop": lambda: step_loop(data, SMALL, steps // 4),
    }
    times = timing.medians(timing.alternate(contenders, 3 if quick else 5))
    yield _ratio("a step of the small MLP, over a loop of steps", times, "scenario", "loop", 0.35)


def mnist_rows(quick: bool, data: Data) -> Iterator[Row]:
    """Measures the classifier."""
    steps = 1000 if quick else 2000
    batches = mk.data.pipeline(data).shuffle(0).batch(batch_size(SIZES), drop_remainder=True)
    contenders = {
        "saving": lambda: scenario(data, SIZES, steps, 500),
        "not saving": lambda: scenario(data, SIZES, steps, None),
        "from the host": lambda: scenario(data, SIZES, steps, 500, data_on_device=False),
        "from an iterator": lambda: scenario(batches, SIZES, steps, 500),
        "scan": lambda: scan_loop(data, SIZES, steps),
        "loop": lambda: step_loop(data, SIZES, steps // 2),
    }
    times = timing.medians(timing.alternate(contenders, 3 if quick else 5))
    yield _ratio("a step of the classifier, over lax.scan", times, "saving", "scan", 1.02)
    yield _ratio("the same, over a loop of steps", times, "saving", "loop", None)
    yield _ratio("a state saved every 500 steps, over none", times, "saving", "not saving", 1.03)
    yield _ratio("arrays fed from the host, over data on the device", times, "from the host", "saving", 1.10)
    yield _ratio("an iterator on the host, over data on the device", times, "from an iterator", "saving", 1.10)


def _ratio(label: str, times: dict[str, float], one: str, other: str, goal: float | None) -> Row:
    detail = f"{one} {pretty(times[one])}, {other} {pretty(times[other])} per step"
    return Row(label, times[one] / times[other], goal, detail)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds and steps")
    parser.add_argument("--data-dir", type=pathlib.Path, help="of the four files of MNIST")
    parser.add_argument("--only", nargs="+", choices=["small", "mnist"], default=["small", "mnist"])
    parser.add_argument("--out", type=pathlib.Path, help="a JSON file for the numbers")
    options = parser.parse_args()
    data = made_data(784, 60_000)
    if options.data_dir is not None:
        images, labels = mk.data.mnist(options.data_dir)[0]
        data = images.reshape(len(images), -1), labels
    rows = [] if "small" not in options.only else list(small_rows(options.quick))
    rows += [] if "mnist" not in options.only else list(mnist_rows(options.quick, data))
    print(file=sys.stderr)
    timing.report(rows, "runs over hand-written JAX", options.out)


if __name__ == "__main__":
    main()
