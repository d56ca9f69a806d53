"""What modulekit costs over hand-written JAX.

    python -m tests.benchmarks.step_overhead [--quick] [--out FILE] [--only PART ...]

Hand-written JAX means: `jax.jit`, parameters in nested dicts, donation of parameters and optimizer state, `optax.adam`,
the same arithmetic on the same data. Four parts are measured: the compiled training `step`, the time to the `first`
finished step, a `scenario` with its default settings, and the `import`.
"""

import argparse
import contextlib
import functools
import io
import pathlib
import sys
import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

if not __package__:
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

import modulekit as mk
import scenarios
from tests.benchmarks import timing
from tests.benchmarks.contenders import jax as jax_contender
from tests.benchmarks.contenders import modulekit as modulekit_contender
from tests.benchmarks.timing import Row, medians, pretty
from tests.benchmarks.workloads.mlp import narrow
from tests.benchmarks.workloads.workload import LEARNING_RATE, Data, Workload, labeled_noise

WIDTH = 16
BATCH = 32


@functools.cache
def of_depth(depth: int) -> Workload:
    """Returns the workload of an MLP of `depth` layers."""
    return narrow(f"mlp_{depth}x{WIDTH}", depth)


def make_data(examples: int) -> Data:
    """Returns inputs `[examples, WIDTH]` and labels `[examples]`."""
    return labeled_noise((WIDTH,), WIDTH)(examples)


STEPS = {
    "jax": lambda depth: jax_contender.make_step(of_depth(depth), None),
    "modulekit": lambda depth: modulekit_contender.make_step(of_depth(depth), None),
}


# What is measured.


def step_times(depth: int, rounds: int, makings: int) -> dict[str, float]:
    """Returns the median seconds per training step of each contender, over rounds with several makings of each."""
    x, y = map(jnp.asarray, make_data(BATCH))

    def watches() -> dict[str, Callable[[], float]]:
        runs = {name: functools.partial(make(depth), x, y) for name, make in STEPS.items()}
        return timing.watches(runs, jax.block_until_ready, 0.05)

    return timing.over_makings(watches, makings, rounds)


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


def _run_loop(steps: int, depth: int, data: Data) -> float:
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


def _run_scenario(steps: int, depth: int, data: Data) -> float:
    start = time.perf_counter()
    model, optimizer = of_depth(depth).make_model(), mk.optimizers.Adam(LEARNING_RATE)
    with contextlib.redirect_stdout(io.StringIO()):
        scenarios.Supervised(steps=steps, batch_size=BATCH)(
            model, optimizer, mk.losses.softmax_cross_entropy, data=data
        )
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
