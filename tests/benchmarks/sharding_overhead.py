"""What training on eight devices takes: memory of each, and time over hand-written JAX with the same shardings.

    python -m tests.benchmarks.sharding_overhead [--quick] [--out FILE]

The memory is what XLA plans for the training step of a transformer with 100 million weights and Adam, on one device and
fully sharded on eight. The time is that of a step of an MLP 784-625-625-10 with batches of 96 and Adam, compiled from
hand-written JAX and from modules, with the same shardings. Where there are not eight devices, a CPU stands for them.
"""

import functools
import os
from collections.abc import Callable, Iterator
from typing import Any

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

import jax
import jax.numpy as jnp
import numpy as np
import optax

import modulekit as mk
from modulekit import sharding
from tests.benchmarks import timing
from tests.benchmarks.timing import Row, pretty
from tests.benchmarks.workloads.mlp import forward, params_of

TRANSFORMER: dict[str, Any] = {"num_layers": 12, "num_heads": 12, "key_size": 64, "vocab_size": 20_000}
TOKENS = (8, 64)  # of a batch
SIZES, BATCH = (784, 625, 625, 10), 96
PRESETS: dict[str, tuple[Any, dict[str, int]]] = {
    "data parallel": (sharding.data_parallel(), {"data": 8}),
    "fully sharded": (sharding.fully_sharded(), {"data": 8}),
    "tensor parallel": (sharding.tensor_parallel(), {"data": 2, "model": 4}),
}


def planned_bytes(mesh: jax.sharding.Mesh | None) -> tuple[int, int]:
    """Returns the number of weights, and the bytes that each device needs for a training step."""
    model, optimizer = mk.nets.Transformer(**TRANSFORMER), mk.optimizers.Adam(1e-4)
    tokens = jnp.zeros(TOKENS, jnp.int32)
    if mesh is None:
        mk.build(model, tokens)
    else:
        sharding.build(model, tokens, rules=sharding.fully_sharded(), mesh=mesh)
        tokens = sharding.split(tokens, mesh)

    @mk.jit
    def step(tokens: Any) -> Any:
        mean = lambda: mk.losses.softmax_cross_entropy(model(tokens)[:, :-1], tokens[:, 1:]).mean()  # noqa: E731
        return optimizer.minimize(mean, model)

    planned: Any = step.lower(tokens).compile().memory_analysis()
    sizes = [getattr(planned, f"{kind}_size_in_bytes") for kind in ("argument", "output", "temp", "alias")]
    return sum(v.size for v in model.trainable_variables), sizes[0] + sizes[1] + sizes[2] - sizes[3]


def steps_of(preset: str) -> dict[str, Callable[[], Any]]:
    """Returns a training step as modules and as hand-written JAX, on the same data and shardings."""
    rules, axes = PRESETS[preset]
    mesh = sharding.make_mesh(axes)
    model, optimizer = mk.nets.MLP(SIZES[1:]), mk.optimizers.Adam(1e-3)
    mk.build(model, [BATCH, SIZES[0]])
    rng = np.random.default_rng(0)
    batch = rng.normal(size=(BATCH, SIZES[0])).astype(np.float32), rng.integers(SIZES[-1], size=BATCH)
    x, y = sharding.split(batch, mesh)
    sharding.shard(model, rules, mesh)
    places = {layer.name: {"w": layer.w.value.sharding, "b": layer.b.value.sharding} for layer in model.layers}
    params = jax.device_put(params_of(model), places)
    adam = optax.adam(1e-3)
    slots = adam.init(params)
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    slot_places = jax.tree.map(lambda a: a.sharding if len(a.devices()) > 1 else everywhere, slots)
    state = params, jax.device_put(slots, slot_places)

    def update(state: Any, x: Any, y: Any) -> Any:
        params, slots = state
        mean = lambda p: optax.softmax_cross_entropy_with_integer_labels(forward(p, x), y).mean()  # noqa: E731
        loss, gradients = jax.value_and_grad(mean)(params)
        updates, slots = adam.update(gradients, slots, params)
        return (optax.apply_updates(params, updates), slots), loss

    compiled = jax.jit(update, donate_argnums=0, out_shardings=((places, slot_places), None))

    def by_hand() -> Any:
        nonlocal state
        state, loss = compiled(state, x, y)
        return loss

    @mk.jit
    def step(x: Any, y: Any) -> Any:
        return optimizer.minimize(lambda: mk.losses.softmax_cross_entropy(model(x), y).mean(), model)

    return {"modules": lambda: step(x, y), "by hand": by_hand}


def watches_of(preset: str, seconds: float) -> dict[str, Callable[[], float]]:
    """Returns a measurement of each contender's step, all built anew."""
    return timing.watches(steps_of(preset), jax.block_until_ready, seconds)


def rows(quick: bool) -> Iterator[Row]:
    """Measures steps, and plans memory."""
    for preset in PRESETS:
        losses = {name: [float(run()) for _ in range(5)] for name, run in steps_of(preset).items()}
        np.testing.assert_allclose(losses["modules"], losses["by hand"], rtol=1e-5)
        make = functools.partial(watches_of, preset, 0.2 if quick else 0.5)
        times = timing.over_makings(make, makings=5, rounds=3 if quick else 9)
        detail = f"modules {pretty(times['modules'])}, by hand {pretty(times['by hand'])}"
        yield Row(f"a step, {preset}, over hand-written JAX", times["modules"] / times["by hand"], 1.05, detail)
    weights, whole = planned_bytes(None)
    _, part = planned_bytes(sharding.make_mesh())
    detail = f"{part / 1e6:.0f} MB of {whole / 1e6:.0f} MB"
    yield Row(
        f"memory per device, {weights / 1e6:.0f} million weights fully sharded, over one device",
        part / whole,
        0.2,
        detail,
    )


if __name__ == "__main__":
    timing.command(__doc__, "eight devices", rows)
