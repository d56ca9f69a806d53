"""What modulekit costs over hand-written JAX.

    python -m tests.benchmarks.step_overhead [--quick] [--out FILE] [--only PART ...]

Hand-written JAX means: `jax.jit`, parameters in nested dicts, donation of parameters and optimizer state, `optax.adam`,
the same arithmetic on the same data. Four parts are measured: the compiled training `step`, the time to the `first`
finished step, a `scenario` with its default settings, and the `import`.
"""

import argparse
import contextlib
import functools
import importlib
import io
import math
import pathlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

if not __package__:
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

import modulekit as mk
from tests.benchmarks import timing
from tests.benchmarks.timing import Row, medians, pretty

WIDTH = 16
BATCH = 32
LEARNING_RATE = 1e-3
Params = dict[str, dict[str, jax.Array]]


def make_data(examples: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns inputs `[examples, WIDTH]` and labels `[examples]`."""
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(examples, WIDTH)).astype(np.float32)
    return inputs, generator.integers(WIDTH, size=examples).astype(np.int32)


# Hand-written JAX.


def make_params(depth: int) -> Params:
    """Returns the weights of `depth` layers."""
    deviation = 1 / math.sqrt(WIDTH)
    return {
        f"linear_{index}": {
            "w": jax.random.truncated_normal(key, -2.0, 2.0, (WIDTH, WIDTH)) * deviation,
            "b": jnp.zeros([WIDTH]),
        }
        for index, key in enumerate(jax.random.split(jax.random.key(0), depth))
    }


def loss_of(params: Params, x: jax.Array, y: jax.Array) -> jax.Array:
    """Returns the mean cross-entropy of a batch."""
    for index in range(len(params)):
        layer = params[f"linear_{index}"]
        x = x @ layer["w"] + layer["b"]
        if index < len(params) - 1:
            x = jax.nn.relu(x)
    return optax.softmax_cross_entropy_with_integer_labels(x, y).mean()


@functools.partial(jax.jit, donate_argnums=(0, 1))
def update(params: Params, state: Any, x: jax.Array, y: jax.Array) -> tuple[Params, Any, jax.Array]:
    """Returns parameters and optimizer state after one step of Adam, and the loss before it."""
    loss, gradients = jax.value_and_grad(loss_of)(params, x, y)
    updates, state = optax.adam(LEARNING_RATE).update(gradients, state, params)
    return optax.apply_updates(params, updates), state, loss


def hand_written(params: Params) -> Callable[[Any, Any], jax.Array]:
    """Returns a training step in JAX, from these weights on."""
    state = optax.adam(LEARNING_RATE).init(params)

    def step(x: Any, y: Any) -> jax.Array:
        nonlocal params, state
        params, state, loss = update(params, state, x, y)
        return loss

    return step


# The same with modulekit.


def make_model(depth: int) -> mk.nets.MLP:
    """Returns a network of `depth` layers that has not been called."""
    return mk.nets.MLP([WIDTH] * depth)


def with_modulekit(model: mk.nets.MLP) -> Callable[[Any, Any], jax.Array]:
    """Returns a training step of the model."""
    optimizer = mk.optimizers.Adam(LEARNING_RATE)

    @mk.jit
    def step(x: Any, y: Any) -> jax.Array:
        loss, gradients = mk.value_and_grad(lambda: mk.losses.softmax_cross_entropy(model(x), y).mean(), model)()
        optimizer.apply(gradients, model.trainable_variables)
        return loss

    return step


def params_of(model: mk.nets.MLP) -> Params:
    """Returns copies of the model's weights, as hand-written JAX keeps them."""
    return {layer.name: {"w": jnp.array(layer.w.numpy()), "b": jnp.array(layer.b.numpy())} for layer in model.layers}


STEPS = {
    "jax": lambda depth: hand_written(make_params(depth)),
    "modulekit": lambda depth: with_modulekit(make_model(depth)),
}


# What is measured.


def step_times(depth: int, rounds: int, makings: int) -> dict[str, float]:
    """Returns the median seconds per training step of each contender, over rounds with several makings of each.

    Where weights happen to lie in memory moves a step's time by some percent, hence the makings.
    """
    x, y = map(jnp.asarray, make_data(BATCH))
    pooled: dict[str, list[float]] = {name: [] for name in STEPS}
    for _ in range(makings):
        runs = {name: functools.partial(make(depth), x, y) for name, make in STEPS.items()}
        for run in runs.values():
            jax.block_until_ready([run() for _ in range(3)])
        calls = timing.calls_for(lambda run=runs["jax"]: jax.block_until_ready(run()), 0.05)
        contenders = {name: timing.per_call(run, jax.block_until_ready, calls) for name, run in runs.items()}
        for name, values in timing.alternate(contenders, rounds).items():
            pooled[name] += values
    return medians(pooled)


def compare(times: dict[str, float]) -> tuple[float, str]:
    """Returns modulekit's time over that of hand-written JAX, and both in words."""
    ours, theirs = times["modulekit"], times["jax"]
    return ours / theirs, f"modulekit {pretty(ours)}, hand-written {pretty(theirs)}"


def step_rows(quick: bool) -> Iterator[Row]:
    """The compiled step: two networks, and a sweep over the number of variables."""
    rounds, makings = (9, 1) if quick else (15, 4)
    for depth, goal in ((3, 1.05), (50, 1.00)):
        yield Row(f"step, {depth}x{WIDTH} MLP", *_goal_between(compare(step_times(depth, rounds, makings)), goal))
    ratios = {}
    for variables in (4, 20, 100, 400) if quick else (4, 20, 100, 400, 2000):
        times = step_times(variables // 2, rounds, 1 if variables > 100 else makings)
        ratios[variables], detail = compare(times)
        yield Row(f"step, {variables} variables", ratios[variables], None, detail)
    few, many = min(ratios), max(ratios)
    yield Row(
        f"step, growth of the ratio from {few} to {many} variables", ratios[many] / ratios[few], 1.00,
        f"{ratios[few]:.3f} to {ratios[many]:.3f}",
    )  # fmt: skip


def first_rows(quick: bool) -> Iterator[Row]:
    """The time to the first finished step, imports excluded, each in a process of its own."""
    for depth in (3, 50):
        contenders = {name: functools.partial(_child, "first", name, str(depth)) for name in STEPS}
        times = medians(timing.alternate(contenders, 3 if quick else 7))
        yield Row(f"first step, {depth}x{WIDTH} MLP", *_goal_between(compare(times), 1.25))


def scenario_rows(quick: bool) -> Iterator[Row]:
    """A scenario with default settings, per step, against a loop that gathers each batch."""
    label = f"scenario, 3x{WIDTH} MLP"
    try:
        contenders = {
            "modulekit": functools.partial(_child, "scenario", "modulekit", "3"),
            "jax": functools.partial(_child, "scenario", "jax", "3"),
        }
        times = medians(timing.alternate(contenders, 1 if quick else 5))
    except RuntimeError as error:
        named = [line for line in str(error).splitlines() if "Error" in line.partition(":")[0]]
        yield Row(label, None, 0.35, (named or ["no error was named"])[-1])
        return
    yield Row(label, *_goal_between(compare(times), 0.35))


def import_rows(quick: bool) -> Iterator[Row]:
    """The time of `import modulekit` over that of `import jax, optax`, in seconds."""
    code = "import time; start = time.perf_counter(); import {}; print(time.perf_counter() - start)"
    contenders = {
        name: functools.partial(timing.fresh_process, ["-c", code.format(names)])
        for name, names in (("modulekit", "modulekit"), ("jax", "jax, optax"))
    }
    timing.alternate(contenders, 1)  # fills the caches of byte code and files
    times = medians(timing.alternate(contenders, 3 if quick else 5))
    detail = f"modulekit {pretty(times['modulekit'])}, jax and optax {pretty(times['jax'])}"
    yield Row("import, seconds over jax and optax", times["modulekit"] - times["jax"], 0.15, detail)


PARTS = {"step": step_rows, "first": first_rows, "scenario": scenario_rows, "import": import_rows}


def _goal_between(compared: tuple[float, str], goal: float) -> tuple[float, float, str]:
    return compared[0], goal, compared[1]


# What a process of its own measures.


def _child(what: str, contender: str, depth: str) -> float:
    return timing.fresh_process(["-m", "tests.benchmarks.step_overhead", "--child", what, contender, depth])


def first_step_seconds(contender: str, depth: int) -> float:
    """Returns the seconds from nothing but imports to the end of the first training step."""
    x, y = make_data(BATCH)
    jax.devices()  # starting XLA counts as import
    start = time.perf_counter()
    jax.block_until_ready(STEPS[contender](depth)(x, y))
    return time.perf_counter() - start


def scenario_seconds(contender: str, depth: int, least: float = 1.0) -> float:
    """Returns the seconds per step in the steady state: a long run less a short one, over the steps between.

    Args:
      contender: whose loop.
      depth: the number of layers.
      least: how many seconds the long run takes over the short one, at least.
    """
    data = make_data(10_000)
    run = {"jax": _run_loop, "modulekit": _run_scenario}[contender]
    short, steps = 1_000, 10_000
    run(short, depth, data)
    while True:
        times = {number: run(number, depth, data) for number in (short, short + steps)}
        extra = times[short + steps] - times[short]
        if extra >= least:
            return extra / steps
        steps *= 2 if extra > least / 4 else 4


def _run_loop(steps: int, depth: int, data: tuple[np.ndarray, np.ndarray]) -> float:
    start = time.perf_counter()
    step, generator, (inputs, labels) = STEPS["jax"](depth), np.random.default_rng(0), data
    per_epoch = len(inputs) // BATCH
    for index in range(steps):
        if index % per_epoch == 0:
            order = generator.permutation(len(inputs))
        chosen = order[index % per_epoch * BATCH :][:BATCH]
        loss = step(inputs[chosen], labels[chosen])
    jax.block_until_ready(loss)
    return time.perf_counter() - start


def _run_scenario(steps: int, depth: int, data: tuple[np.ndarray, np.ndarray]) -> float:
    # The package is imported here because the other parts must run where it is not installed.
    supervised = importlib.import_module("scenarios").Supervised
    start = time.perf_counter()
    model, optimizer = make_model(depth), mk.optimizers.Adam(LEARNING_RATE)
    with contextlib.redirect_stdout(io.StringIO()):
        supervised(steps=steps, batch_size=BATCH)(model, optimizer, mk.losses.softmax_cross_entropy, data=data)
    jax.block_until_ready([variable.value for variable in model.variables])
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds and sizes")
    parser.add_argument("--out", type=pathlib.Path, help="a JSON file for the numbers")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="which parts to measure")
    parser.add_argument("--child", nargs=3, metavar=("WHAT", "CONTENDER", "DEPTH"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        what, contender, depth = options.child
        print({"first": first_step_seconds, "scenario": scenario_seconds}[what](contender, int(depth)))
        return
    rows = []
    for part in options.only:
        for row in PARTS[part](options.quick):
            print(f"{row.label}: {'no number' if row.measured is None else f'{row.measured:.3f}'}", file=sys.stderr)
            rows.append(row)
    timing.report(rows, "modulekit over hand-written JAX", options.out)


if __name__ == "__main__":
    main()
