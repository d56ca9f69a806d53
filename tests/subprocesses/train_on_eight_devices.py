"""Laws of runs on several devices: checks each, and prints one JSON object of the laws that fail, with the reason."""

import functools
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # the laws are about numbers, and compiling takes most of the time

import jax
import jax.numpy as jnp
import numpy as np
from launched import Net
from laws import check_laws, law, near, refused

import modulekit as mk
import scenarios
from modulekit.checkpoints import CheckpointStore
from modulekit.data import Arrays, batch_indices
from scenarios.base.devices import Devices
from scenarios.base.feeding import arrays_feed

PLACES: list[tuple[dict[str, int], Any]] = [
    ({"data": 2}, "data_parallel"),
    ({"data": 8}, {"model/mlp/layers/0/w": ["data"], "optimizer/**": []}),
    ({"data": 2, "model": 4}, "tensor_parallel + fully_sharded"),
]
RANDOM = np.random.default_rng(0)
X, Y = RANDOM.normal(size=(200, 16)).astype(np.float32), RANDOM.integers(8, size=200)


def adam() -> mk.Optimizer:
    return mk.optimizers.Adam(1e-3)


def run(
    steps: int = 40,
    make: Callable[[], Net] = Net,
    optimizer: Callable[[], mk.Optimizer] = adam,
    policy: Any = None,
    **settings: Any,
) -> tuple[scenarios.Result, Net]:
    mk.seed(1)
    net = make()
    mk.mixed_precision.set_policy(net, policy)
    settings = {"batch_size": 32, "log_interval": 10, "eval_interval": 20, "eval_batch_size": 16, **settings}
    train = scenarios.Supervised(steps, progress=False, **settings)
    loss, data = mk.losses.softmax_cross_entropy, (X, Y)
    return train(net, optimizer(), loss, data=data, eval_data=(X[:50], Y[:50])), net


def numbers(result: scenarios.Result) -> np.ndarray:
    return np.concatenate([[value for _, value in sorted(row.items())] for row in result.history])


@law
def a_run_is_the_same_on_any_devices_in_any_form_and_for_uneven_batches() -> None:
    for batch_size, forms in ((32, [{"steps_per_call": 7}, {"data_on_device": False}]), (30, [{"steps_per_call": 1}])):
        expected = numbers(run(batch_size=batch_size)[0])
        for mesh, placement in PLACES:
            for form in forms:
                result, net = run(batch_size=batch_size, mesh=mesh, placement=placement, **form)
                near(numbers(result), expected, 1e-5)
                w = net.mlp.layers[0].w.value.sharding
                assert w.num_devices == int(np.prod(list(mesh.values())))
                assert w.is_fully_replicated == (placement == "data_parallel")


@law
def uneven_batches_from_the_host_are_divided_by_examples_and_not_by_features() -> None:
    expected = numbers(run(batch_size=30)[0])
    near(numbers(run(batch_size=30, data_on_device=False, mesh={"data": 8})[0]), expected, 1e-5)


@law
def what_comes_from_the_host_is_sent_in_parts() -> None:
    devices = Devices({"data": 8}, "data_parallel")
    place = functools.partial(devices.place_of, leading=1)
    for size, part in ((32, 4), (30, 30)):
        choose = functools.partial(batch_indices, len(X), size, 0)
        feed = arrays_feed(Arrays((X, Y)), choose, 0, False, devices.everywhere, place)
        chunk = feed.take(0, 1, 1)
        feed.close()
        assert chunk is not None
        stacks = jax.tree.leaves(chunk.source)
        assert {shard.data.shape[1] for stack in stacks for shard in stack.addressable_shards} == {part}


def next_token(logits: Any, tokens: Any) -> Any:
    return mk.losses.softmax_cross_entropy(logits[:, :-1], tokens[:, 1:]).mean(axis=-1)


@law
def the_axis_after_the_batch_is_divided_along_the_mesh_axis_sequence() -> None:
    tokens = RANDOM.integers(11, size=(40, 16))

    def trained(**settings: Any) -> Any:
        mk.seed(2)
        net = mk.nets.Transformer(num_layers=1, num_heads=2, key_size=8, vocab_size=11)
        train = scenarios.Supervised(30, batch_size=8, log_interval=5, progress=False, steps_per_call=5, **settings)
        return train(net, adam(), next_token, data=(tokens, tokens)).column("loss")[1]

    expected = trained()
    for mesh in ({"sequence": 8}, {"data": 2, "sequence": 4}, {"data": 2, "sequence": 2, "model": 2}):
        near(trained(mesh=mesh, placement="tensor_parallel"), expected)
    divided = Devices({"data": 2, "sequence": 4}, "data_parallel").divided
    compiled = (
        jax.jit(lambda batch: divided(batch, 0) * 2).lower(jax.ShapeDtypeStruct((8, 16, 3), jnp.float32)).compile()
    )
    (place,) = jax.tree.leaves(compiled.output_shardings)
    assert place.shard_shape((8, 16, 3)) == (4, 4, 3)


@law
def weights_are_made_where_they_are_to_lie() -> None:
    net = run(1, mesh={"data": 8}, placement="fully_sharded")[1]
    shards = net.mlp.layers[0].w.value.addressable_shards
    assert {shard.data.shape for shard in shards} == {(16, 64)} and len(shards) == 8


@law
def slots_and_averages_lie_as_their_variables() -> None:
    made = []

    def optimizer() -> mk.Optimizer:
        made.append(mk.optimizers.Accumulated(adam(), every=2))
        return made[-1]

    for placement in ({"**/layers/*/w": ["model"]}, "tensor_parallel + fully_sharded"):
        mesh = {"data": 2, "model": 4}
        result, net = run(4, optimizer=optimizer, mesh=mesh, placement=placement, ema_decay=0.9)
        assert result.ema is not None
        owners = {**made[-1].slot_owners(), **made[-1].optimizer.slot_owners(), **result.ema.slot_owners()}
        divided = {v for v in net.trainable_variables if not v.value.sharding.is_fully_replicated}
        assert divided and len(owners) == 4 * len(net.trainable_variables), (len(owners), divided)
        for slot, variable in owners.items():
            assert slot.value.sharding.is_equivalent_to(variable.value.sharding, variable.ndim), (slot, variable)


@law
def a_run_on_one_device_after_it_is_on_one_device() -> None:
    run(2, mesh={"data": 8})
    net = run(2)[1]
    assert {len(v.value.sharding.device_set) for v in net.variables} == {1}


@law
def what_is_saved_on_eight_devices_goes_on_on_two_and_on_one() -> None:
    expected = numbers(run(60)[0])
    for second in ({"mesh": {"data": 2}, "placement": "fully_sharded"}, {}):
        with tempfile.TemporaryDirectory() as folder:
            _, net = run(40, mesh={"data": 4, "model": 2}, placement="tensor_parallel+fully_sharded", save_dir=folder)
            store = CheckpointStore(Path(folder) / "states")
            arrays, _ = store.restore(40)
            store.close()
            for path, variable in net.paths().items():
                np.testing.assert_array_equal(arrays[f"model.{path}"], variable.numpy(), strict=True)
            near(numbers(run(60, save_dir=folder, **second)[0]), expected, 1e-5)


class Thrifty(Net):
    """The same, computing its layers again in the backward pass."""

    def __call__(self, x: Any, is_training: bool) -> Any:
        return mk.remat(super().__call__)(x, is_training)


@law
def rematerialization_accumulation_and_precision_combine_with_meshes() -> None:
    accumulated = lambda: mk.optimizers.Accumulated(adam(), every=3)  # noqa: E731
    scaled = lambda: mk.optimizers.LossScaled(accumulated())  # noqa: E731
    half, brain = mk.mixed_precision.Policy(jnp.float16), mk.mixed_precision.Policy(jnp.bfloat16)
    mesh, placement = PLACES[2]
    for make, optimizer, policy, tolerance in [
        (Thrifty, accumulated, None, 1e-5), (Thrifty, scaled, half, 2e-2), (Net, adam, brain, 5e-2),
    ]:  # fmt: skip
        same = {"make": make, "optimizer": optimizer, "policy": policy}
        expected, _ = run(20, **same)
        found, net = run(20, **same, mesh=mesh, placement=placement)
        near(numbers(found), numbers(expected), tolerance)
        assert {v.dtype for v in net.trainable_variables} == {jnp.dtype(jnp.float32)}


@law
def what_does_not_fit_is_refused() -> None:
    refused(ValueError, "no preset 'fsdp'. There are data_parallel", lambda: run(1, mesh={"data": 2}, placement="fsdp"))
    refused(ValueError, "no variable fits the pattern 'norm/**'. Paths begin with a part: model.mlp",
            lambda: run(1, mesh={"data": 2}, placement={"norm/**": []}))  # fmt: skip
    refused(ValueError, "do not fit 8 devices", lambda: run(1, mesh={"data": 16}))
    refused(TypeError, "mesh=8: expected a number of devices for each axis", lambda: run(1, mesh=8))
    refused(TypeError, "placement=3: expected the name of a preset", lambda: run(1, mesh={"data": 2}, placement=3))


check_laws(8)
