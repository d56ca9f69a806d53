"""What an update of a GAN costs over a hand-written loop that calls a compiled step of each player in turn.

Both players have two hidden layers of 16 units, the data is a ring of Gaussians, batches have 32 points, and Adam trains
both. The loop donates the state and keeps the losses on the device; the scenario also reports accuracies and gradient
norms. Run as `python -m tests.benchmarks.gan_overhead`. A run is timed by its own events, between a tenth of its steps and
its end, so that compilation does not count.
"""

import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import modulekit as mk
import scenarios
from modulekit.data import batch_indices
from tests.benchmarks import timing
from tests.benchmarks.run_overhead import Clock
from tests.benchmarks.timing import Row, pretty

BATCH, LATENT = 32, 2
HIDDEN = [16, 16]


def made_data() -> np.ndarray:
    """Returns points of the ring."""
    return scenarios.gan.RingOfGaussians().sample(10_000)


def scenario(data: np.ndarray, steps: int, d_steps: int) -> float:
    """Returns the seconds per update of a GAN."""
    clock = Clock()
    fight = scenarios.GAN(steps, d_steps=d_steps, latent_size=LATENT, samples=4, batch_size=BATCH, progress=False)
    fight(
        mk.nets.MLP([*HIDDEN, 2]), mk.nets.MLP([*HIDDEN, 1]), mk.optimizers.Adam(1e-3), mk.optimizers.Adam(1e-3),
        data=data, hooks=[clock],
    )  # fmt: skip
    return clock.seconds_per_step


def make_weights(sizes: list[int], seed: int) -> Any:
    """Returns the weights of an MLP."""
    keys = jax.random.split(jax.random.key(seed), len(sizes))
    layers = zip(keys, sizes, sizes[1:], strict=False)
    return [(jax.random.normal(key, [m, n]) / np.sqrt(m), jnp.zeros([n])) for key, m, n in layers]


def forward(weights: Any, x: Any) -> Any:
    """Returns the outputs of an MLP."""
    for index, (w, b) in enumerate(weights):
        x = x @ w + b
        x = jax.nn.relu(x) if index < len(weights) - 1 else x
    return x


def generated(weights: Any, key: Any, draw: Any) -> Any:
    """Returns a batch of points."""
    return forward(weights, jax.random.normal(jax.random.fold_in(key, draw), [BATCH, LATENT]))


def move_discriminator(state: Any, generator: Any, real: Any, key: Any, draw: Any) -> tuple[Any, Any]:
    """Takes a step of the discriminator by hand."""

    def loss(weights: Any) -> Any:
        return (
            jax.nn.softplus(-forward(weights, real))
            + jax.nn.softplus(forward(weights, generated(generator, key, draw)))
        ).mean()

    return _adam(state, loss)


def move_generator(state: Any, discriminator: Any, key: Any, draw: Any) -> tuple[Any, Any]:
    """Takes a step of the generator by hand."""
    return _adam(state, lambda weights: jax.nn.softplus(-forward(discriminator, generated(weights, key, draw))).mean())


def _adam(state: Any, loss: Any) -> tuple[Any, Any]:
    weights, slots = state
    value, gradients = jax.value_and_grad(loss)(weights)
    changes, slots = optax.adam(1e-3).update(gradients, slots)
    return (optax.apply_updates(weights, changes), slots), value


def loop(data: np.ndarray, steps: int, d_steps: int) -> float:
    """Returns the seconds per update of a loop that calls two compiled steps, as most people write it."""
    states = [
        (weights, optax.adam(1e-3).init(weights))
        for weights in (make_weights([LATENT, *HIDDEN, 2], 0), make_weights([2, *HIDDEN, 1], 1))
    ]
    step_d, step_g = jax.jit(move_discriminator, donate_argnums=0), jax.jit(move_generator, donate_argnums=0)
    rows = batch_indices(len(data), BATCH, 0, 0, steps * d_steps).reshape(steps, d_steps, BATCH)
    key = jax.random.key(0)
    for index, of_update in enumerate(rows):
        if index == steps // 10:
            jax.block_until_ready(states)
            began = time.perf_counter()
        for move, taken in enumerate(of_update):
            states[1], _ = step_d(states[1], states[0][0], data[taken], key, np.int32(index * (d_steps + 1) + move))
        states[0], _ = step_g(states[0], states[1][0], key, np.int32(index * (d_steps + 1) + d_steps))
    jax.block_until_ready(states)
    return (time.perf_counter() - began) / (steps - steps // 10)


def rows(quick: bool) -> Iterator[Row]:
    """Measures updates with one move of the discriminator, and with three."""
    data, steps = made_data(), 5_000 if quick else 20_000
    for d_steps, goal in ((1, 0.6), (3, None)):
        contenders = {
            "scenario": lambda d_steps=d_steps: scenario(data, steps, d_steps),
            "loop": lambda d_steps=d_steps: loop(data, steps // 4, d_steps),
        }
        times = timing.medians(timing.alternate(contenders, 3 if quick else 5))
        detail = ", ".join(f"{name} {pretty(seconds)}" for name, seconds in times.items()) + " per update"
        label = f"an update with d_steps={d_steps}, over a loop of steps"
        yield Row(label, times["scenario"] / times["loop"], goal, detail)


if __name__ == "__main__":
    timing.command(__doc__, "GANs over hand-written JAX", rows)
