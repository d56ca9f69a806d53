"""What recurrent networks cost over hand-written JAX.

    python -m tests.benchmarks.recurrent_overhead [--quick] [--out FILE]

Hand-written JAX means: `jax.jit` around `jax.lax.scan` with the weights in a dict, the same arithmetic on the same data.
An LSTM is unrolled over a sequence, forward and with the gradient of its weights, by `dynamic_unroll` and by
`UnrolledLSTM`. Beside them stands a second hand-written program, which multiplies inputs and weight for all steps at once,
before the loop: it tells on which machines, and for which sizes, `UnrolledLSTM` would gain by doing so.
"""

import argparse
import functools
import math
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

if not __package__:
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

import modulekit as mk
from tests.benchmarks import timing
from tests.benchmarks.timing import Row, pretty

STEPS = 500
SIZES = ((8, 16, 32), (32, 64, 128))  # of batch, inputs and hidden state
Params = dict[str, jax.Array]
Program = Callable[[jax.Array], Any]


def make_inputs(steps: int, batch: int, features: int) -> jax.Array:
    """Returns a sequence `[steps, batch, features]`."""
    return jnp.asarray(np.random.default_rng(0).normal(size=(steps, batch, features)).astype(np.float32))


# Hand-written JAX.


def make_params(features: int, hidden: int) -> Params:
    """Returns the weights of an LSTM."""
    keys = jax.random.split(jax.random.key(0), 2)
    return {
        "w_i": jax.random.truncated_normal(keys[0], -2.0, 2.0, (features, 4 * hidden)) / math.sqrt(features),
        "w_h": jax.random.truncated_normal(keys[1], -2.0, 2.0, (hidden, 4 * hidden)) / math.sqrt(hidden),
        "b": jnp.zeros([4 * hidden]).at[hidden : 2 * hidden].add(1.0),
    }


def step_of(gates: jax.Array, cell: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns hidden state and cell after a step."""
    i, f, g, o = jnp.split(gates, 4, axis=-1)
    cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(cell), cell


def unroll_by_step(params: Params, sequence: jax.Array, state: Any) -> tuple[jax.Array, Any]:
    """Returns all outputs and the final state, with one product of inputs and weight per step."""

    def step(state: Any, x: jax.Array) -> tuple[Any, jax.Array]:
        hidden, cell = state
        hidden, cell = step_of(x @ params["w_i"] + hidden @ params["w_h"] + params["b"], cell)
        return (hidden, cell), hidden

    state, outputs = jax.lax.scan(step, state, sequence)
    return outputs, state


def unroll_at_once(params: Params, sequence: jax.Array, state: Any) -> tuple[jax.Array, Any]:
    """Returns all outputs and the final state, with one product of inputs and weight for all steps."""

    def step(state: Any, gates: jax.Array) -> tuple[Any, jax.Array]:
        hidden, cell = state
        hidden, cell = step_of(gates + hidden @ params["w_h"], cell)
        return (hidden, cell), hidden

    state, outputs = jax.lax.scan(step, state, sequence @ params["w_i"] + params["b"])
    return outputs, state


Unroll = Callable[[Params, jax.Array, Any], tuple[jax.Array, Any]]


def hand_written(unroll: Unroll, params: Params, gradient: bool) -> Program:
    """Returns a compiled function of the sequence: the outputs, or the gradient of their mean square."""
    hidden = params["w_h"].shape[0]

    @jax.jit
    def run(params: Params, sequence: jax.Array) -> Any:
        state = jnp.zeros([sequence.shape[1], hidden]), jnp.zeros([sequence.shape[1], hidden])
        if not gradient:
            return unroll(params, sequence, state)
        return jax.grad(lambda params: jnp.mean(jnp.square(unroll(params, sequence, state)[0])))(params)

    return functools.partial(run, params)


# The same with modulekit.


def with_modulekit(unrolled: bool, params: Params, gradient: bool) -> Program:
    """Returns the same with these weights, by `UnrolledLSTM` if `unrolled`, else by `dynamic_unroll` of an `LSTM`."""
    features, hidden = params["w_i"].shape[0], params["w_h"].shape[0]
    core: Any = mk.UnrolledLSTM(hidden) if unrolled else mk.LSTM(hidden)
    run_core = core if unrolled else functools.partial(mk.dynamic_unroll, core)
    mk.build(run_core, [1, 1, features], core.initial_state(1))
    for variable, value in ((core.input_to_hidden, "w_i"), (core.hidden_to_hidden, "w_h"), (core.b, "b")):
        variable.assign(params[value])

    @mk.jit
    def run(sequence: jax.Array) -> Any:
        state = core.initial_state(sequence.shape[1])
        if not gradient:
            return run_core(sequence, state)
        return mk.grad(lambda: jnp.mean(jnp.square(run_core(sequence, state)[0])), core)()

    return run


def contenders(params: Params, gradient: bool) -> dict[str, Program]:
    """Returns the programs, with the same weights."""
    return {
        "jax": hand_written(unroll_by_step, params, gradient),
        "dynamic_unroll": with_modulekit(False, params, gradient),
        "UnrolledLSTM": with_modulekit(True, params, gradient),
        "jax, one product for all steps": hand_written(unroll_at_once, params, gradient),
    }


# What is measured.


def times_of(sizes: tuple[int, int, int], gradient: bool, rounds: int, makings: int) -> dict[str, float]:
    """Returns the median seconds of each contender, over rounds with several makings of each."""
    batch, features, hidden = sizes
    sequence, params = make_inputs(STEPS, batch, features), make_params(features, hidden)

    def watches() -> dict[str, Callable[[], float]]:
        runs = {name: functools.partial(run, sequence) for name, run in contenders(params, gradient).items()}
        return timing.watches(runs, jax.block_until_ready, 0.05)

    return timing.over_makings(watches, makings, rounds)


def rows_of(quick: bool) -> Iterator[Row]:
    """The unrolled LSTM against hand-written JAX, and one way against the other."""
    rounds, makings = (15, 1) if quick else (30, 4)
    for sizes in SIZES[:1] if quick else SIZES:
        for gradient in (False, True):
            times = times_of(sizes, gradient, rounds, makings)
            label = f"{'gradient' if gradient else 'forward'}, batch {sizes[0]}, {sizes[1]} inputs, {sizes[2]} hidden"
            for name in list(times)[1:]:
                goal = 1.05 if name in ("dynamic_unroll", "UnrolledLSTM") else None
                detail = f"{pretty(times[name])}, hand-written {pretty(times['jax'])}"
                yield Row(f"{name}, {label}", times[name] / times["jax"], goal, detail)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds and sizes")
    parser.add_argument("--out", type=pathlib.Path, help="a JSON file for the numbers")
    options = parser.parse_args()
    rows = []
    for row in rows_of(options.quick):
        print(f"{row.label}: {row.measured:.3f}", file=sys.stderr)
        rows.append(row)
    timing.report(rows, f"an LSTM over {STEPS} steps, modulekit over hand-written JAX", options.out)


if __name__ == "__main__":
    main()
