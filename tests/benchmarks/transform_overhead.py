"""What each transform of modulekit costs over hand-written JAX.

    python -m tests.benchmarks.transform_overhead [--quick] [--out FILE] [--only NAME ...]

Hand-written JAX means: pure functions of nested dicts of arrays, with the same arithmetic; what a call replaces is donated.
Each transform stands inside `mk.jit`, its counterpart inside `jax.jit`. Two ratios are measured for each: the compiled
`call` in the steady state, and the time to the `first` result, traced and compiled, of functions made anew over weights
that exist. `eager` is a gradient that nothing compiles.
"""

import argparse
import dataclasses
import functools
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

if not __package__:
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

import modulekit as mk
from tests.benchmarks import timing
from tests.benchmarks.step_overhead import compare
from tests.benchmarks.timing import Row, medians
from tests.benchmarks.workloads.mlp import params_of
from tests.benchmarks.workloads.workload import Params

WIDTH = 64
DEPTH = 4
BATCH = 32
LANES = 8
STEPS = 50
GOAL = 1.10
Function = Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class Pair:
    """One transform, used in both ways.

    Attributes:
      ours: from a model and a variable, makes a function of `x`.
      theirs: makes a function `theirs(params, state, x)` that returns the new state and the result.
      shape: of `x`.
      has_state: whether a call writes the variable; without, `state` is None.
      depth: the number of layers.
      compiled: whether both are compiled.
    """

    ours: Callable[[mk.nets.MLP, mk.Variable], Function]
    theirs: Callable[[], Function]
    shape: tuple[int, ...] = (BATCH, WIDTH)
    has_state: bool = False
    depth: int = DEPTH
    compiled: bool = True


def forward(params: Params, x: jax.Array) -> jax.Array:
    """Returns the output of the network, `[batch, WIDTH]`."""
    for index in range(len(params)):
        x = x @ params[f"linear_{index}"]["w"] + params[f"linear_{index}"]["b"]
        if index < len(params) - 1:
            x = jax.nn.relu(x)
    return x


def mean_square(x: jax.Array) -> jax.Array:
    """Returns the loss of outputs."""
    return jnp.mean(jnp.square(x))


# Each transform with modulekit, and by hand.


def jit_ours(model: mk.nets.MLP, state: mk.Variable) -> Function:
    return lambda x: model(x)


def jit_theirs() -> Function:
    return lambda params, state, x: (state, forward(params, x))


def grad_ours(model: mk.nets.MLP, state: mk.Variable) -> Function:
    return mk.grad(lambda x: mean_square(model(x)), model)


def grad_theirs() -> Function:
    gradient = jax.grad(lambda params, x: mean_square(forward(params, x)))
    return lambda params, state, x: (state, gradient(params, x))


def vmap_ours(model: mk.nets.MLP, state: mk.Variable) -> Function:
    return mk.vmap(lambda x: model(x))


def vmap_theirs() -> Function:
    lanes = jax.vmap(lambda params, x: forward(params, x), in_axes=(None, 0))
    return lambda params, state, x: (state, lanes(params, x))


def recur(model: mk.nets.MLP, state: mk.Variable, x: jax.Array) -> jax.Array:
    """Takes one step of a recurrence whose hidden values are kept in a variable; returns their mean."""
    state.assign(jnp.tanh(model(state + x)))
    return state.value.mean()


def recurred(params: Params, state: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the hidden values after one step, and their mean."""
    state = jnp.tanh(forward(params, state + x))
    return state, state.mean()


def scan_ours(model: mk.nets.MLP, state: mk.Variable) -> Function:
    return lambda xs: mk.scan(lambda _, x: (None, recur(model, state, x)), None, xs)[1]


def scan_theirs() -> Function:
    return lambda params, state, xs: jax.lax.scan(lambda state, x: recurred(params, state, x), state, xs)


def while_loop_ours(model: mk.nets.MLP, state: mk.Variable) -> Function:
    def step(value: tuple[jax.Array, jax.Array], x: jax.Array) -> tuple[jax.Array, jax.Array]:
        return value[0] + 1, recur(model, state, x)

    def function(x: jax.Array) -> jax.Array:
        return mk.while_loop(lambda value: value[0] < STEPS, lambda value: step(value, x), (0, 0.0))[1]

    return function


def while_loop_theirs() -> Function:
    def function(params: Params, state: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        def step(value: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
            state, mean = recurred(params, value[1], x)
            return value[0] + 1, state, mean

        return jax.lax.while_loop(lambda value: value[0] < STEPS, step, (0, state, 0.0))[1:]

    return function


def cond_ours(model: mk.nets.MLP, state: mk.Variable) -> Function:
    return lambda x: mk.cond(x[0, 0] < 9.0, lambda x: recur(model, state, x), lambda x: model(x).mean(), x)


def cond_theirs() -> Function:
    def function(params: Params, state: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        taken = functools.partial(recurred, params)
        return jax.lax.cond(x[0, 0] < 9.0, taken, lambda state, x: (state, forward(params, x).mean()), state, x)

    return function


def remat_ours(model: mk.nets.MLP, state: mk.Variable) -> Function:
    def loss(x: jax.Array) -> jax.Array:
        for layer in model.layers:
            x = mk.remat(lambda x, layer=layer: jnp.tanh(layer(x)))(x)
        return mean_square(x)

    return mk.grad(loss, model)


def remat_theirs() -> Function:
    def loss(params: Params, x: jax.Array) -> jax.Array:
        block = jax.checkpoint(lambda layer, x: jnp.tanh(x @ layer["w"] + layer["b"]))
        for index in range(len(params)):
            x = block(params[f"linear_{index}"], x)
        return mean_square(x)

    gradient = jax.grad(loss)
    return lambda params, state, x: (state, gradient(params, x))


PAIRS = {
    "jit": Pair(jit_ours, jit_theirs),
    "grad": Pair(grad_ours, grad_theirs),
    "vmap": Pair(vmap_ours, vmap_theirs, (LANES, BATCH, WIDTH)),
    "scan": Pair(scan_ours, scan_theirs, (STEPS, BATCH, WIDTH), has_state=True),
    "cond": Pair(cond_ours, cond_theirs, has_state=True),
    "while_loop": Pair(while_loop_ours, while_loop_theirs, has_state=True),
    "remat": Pair(remat_ours, remat_theirs),
    "eager": Pair(grad_ours, grad_theirs, depth=3, compiled=False),
}


# What is measured.


def with_modulekit(pair: Pair, model: mk.nets.MLP) -> Callable[[jax.Array], Any]:
    """Returns a function of `x`, made anew."""
    function = pair.ours(model, mk.Variable(jnp.zeros([BATCH, WIDTH]), name="state"))
    return mk.jit(function) if pair.compiled else function


def hand_written(pair: Pair, params: Params) -> Callable[[jax.Array], Any]:
    """Returns a function of `x`, made anew; it keeps the state from call to call."""
    function, state = pair.theirs(), jnp.zeros([BATCH, WIDTH]) if pair.has_state else None
    if pair.compiled:
        function = jax.jit(function, donate_argnums=1)

    def run(x: jax.Array) -> Any:
        nonlocal state
        state, result = function(params, state, x)
        return result

    return run


def contenders_of(pair: Pair) -> tuple[dict[str, Callable[[], Callable[[jax.Array], Any]]], jax.Array]:
    """Returns what makes each contender's function, over equal weights, and the input of both."""
    model = mk.nets.MLP([WIDTH] * pair.depth)
    mk.build(model, [BATCH, WIDTH])
    makers = {
        "modulekit": functools.partial(with_modulekit, pair, model),
        "jax": functools.partial(hand_written, pair, params_of(model)),
    }
    return makers, jnp.asarray(np.random.default_rng(0).normal(size=pair.shape), jnp.float32)


def check_equal(pair: Pair) -> None:
    """Raises `AssertionError` unless both give the same numbers, in a few calls that see what those before them left."""
    makers, x = contenders_of(pair)
    runs = {name: make() for name, make in makers.items()}
    for call in range(3):
        results = {name: jax.tree.leaves(run(x * (1 - 0.1 * call))) for name, run in runs.items()}
        for ours, theirs in zip(results["modulekit"], results["jax"], strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def call_times(pair: Pair, rounds: int, makings: int, seconds: float) -> dict[str, float]:
    """Returns the median seconds per call of each contender, over rounds with several makings of each."""

    def watches() -> dict[str, Callable[[], float]]:
        makers, x = contenders_of(pair)
        runs = {name: functools.partial(make(), x) for name, make in makers.items()}
        return timing.watches(runs, jax.block_until_ready, seconds)

    return timing.over_makings(watches, makings, rounds)


def first_times(pair: Pair, rounds: int) -> dict[str, float]:
    """Returns the median seconds to the first result of each contender, tracing and compiling included."""
    makers, x = contenders_of(pair)

    def measure(make: Callable[[], Callable[[jax.Array], Any]]) -> float:
        run = make()
        start = time.perf_counter()
        jax.block_until_ready(run(x))
        return time.perf_counter() - start

    contenders = {name: functools.partial(measure, make) for name, make in makers.items()}
    timing.alternate(contenders, 1)  # what JAX keeps of its own functions is there for both
    return medians(timing.alternate(contenders, rounds))


def rows(name: str, quick: bool) -> Iterator[Row]:
    """Yields the lines of one transform."""
    pair = PAIRS[name]
    check_equal(pair)
    ratio, detail = compare(call_times(pair, *((5, 1, 0.01) if quick else (15, 5, 0.05))))
    if not pair.compiled:
        yield Row(f"{name} grad of a {pair.depth}x{WIDTH} MLP, call", ratio, None, detail)
        return
    yield Row(f"{name}, compiled call", ratio, GOAL, detail)
    ratio, detail = compare(first_times(pair, 1 if quick else 15))
    yield Row(f"{name}, first result", ratio, None, detail)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--out", type=pathlib.Path, help="a JSON file for the numbers")
    parser.add_argument("--only", nargs="+", choices=PAIRS, default=list(PAIRS), help="which transforms to measure")
    options = parser.parse_args(arguments)
    measured = []
    for name in options.only:
        for row in rows(name, options.quick):
            print(f"{row.label}: {row.measured:.3f}", file=sys.stderr)
            measured.append(row)
    timing.report(measured, "transforms: modulekit over hand-written JAX", options.out)


if __name__ == "__main__":
    main()
