"""Laws of sharding, on eight devices: checks each, and prints one JSON object of the laws that fail, with the reason."""

import os
import tempfile
from typing import Any

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import jax
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec
from laws import check_laws, law, near, refused

import modulekit as mk
from modulekit import sharding
from scenarios.base.collectives import collectives_in

BATCH, FEATURES, CLASSES, STEPS = 32, 16, 8, 200
MESHES = {
    "data_parallel": (sharding.data_parallel(), {"data": 8}),
    "fully_sharded": (sharding.fully_sharded(least=1), {"data": 8}),
    "tensor_parallel": (sharding.tensor_parallel(), {"data": 2, "model": 4}),
    "both": (sharding.tensor_parallel() + sharding.fully_sharded(least=1), {"data": 2, "model": 4}),
}


class Net(mk.Module):
    """Attention over the features' groups, batch normalization, dropout and an MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = mk.MultiHeadAttention(num_heads=4, key_size=8)
        self.norm = mk.BatchNorm(True, True)
        self.mlp = mk.nets.MLP([64, CLASSES])
        self.dropout = mk.Dropout(0.5)

    def __call__(self, x: Any, is_training: bool) -> Any:
        net = self.attention(x.reshape(len(x), 4, FEATURES // 4)).reshape(len(x), -1)
        return self.mlp(self.dropout(self.norm(net, is_training=is_training), is_training=is_training))


class Parts:
    """A network, its optimizer and its step; on a mesh where rules are given."""

    def __init__(self, preset: str | None = None, born: bool = False) -> None:
        mk.seed(3)
        self.net, self.optimizer, self.mesh = Net(), mk.optimizers.Adam(1e-3), None
        if preset is not None:
            rules, axes = MESHES[preset]
            self.mesh = sharding.make_mesh(axes)
        if preset is not None and born:
            sharding.build(self.net, [BATCH, FEATURES], True, rules=rules, mesh=self.mesh)
        else:
            mk.build(self.net, [BATCH, FEATURES], True)
        if preset is not None and not born:
            sharding.shard(self.net, rules, self.mesh)
        self.step = mk.jit(self._step)

    def _step(self, x: Any, y: Any) -> Any:
        def mean() -> Any:
            return mk.losses.softmax_cross_entropy(self.net(x, True), y).mean()

        loss, gradients = mk.value_and_grad(mean, self.net)()
        self.optimizer.apply(gradients, self.net.trainable_variables)
        return loss

    def train(self, steps: int) -> list[float]:
        rng, losses = np.random.default_rng(0), []
        for _ in range(steps):
            batch = rng.normal(size=(BATCH, FEATURES)).astype(np.float32), rng.integers(CLASSES, size=BATCH)
            x, y = batch if self.mesh is None else sharding.split(batch, self.mesh)
            losses.append(float(self.step(x, y)))
        return losses

    def specs(self) -> dict[str, Any]:
        return {path: v.value.sharding for path, v in self.net.paths().items()}


@law
def two_hundred_steps_of_every_preset_are_those_of_one_device() -> None:
    expected = Parts().train(STEPS)
    for preset in MESHES:
        parts = Parts(preset, born=preset in ("fully_sharded", "both"))
        before = parts.specs()
        near(parts.train(STEPS), expected, 1e-5)
        assert parts.specs() == before, preset  # a step leaves everything where it is
        assert len(parts.step.traces) == 1, parts.step.traces
        (program,) = parts.step._plain_programs.values()
        assert program.compiled._cache_size() == 1, preset


@law
def variables_lie_as_the_report_says_and_slots_as_their_variables() -> None:
    for preset, (rules, axes) in MESHES.items():
        parts = Parts(preset)
        report = sharding.shard(parts.net, rules, sharding.make_mesh(axes))
        parts.train(1)
        for entry in report.entries:
            array = parts.net.paths()[entry.path].value
            assert array.sharding.spec == entry.spec, entry
            assert array.addressable_shards[0].data.nbytes == entry.bytes_per_device, entry
        for v, m in zip(parts.net.trainable_variables, parts.optimizer.m, strict=True):
            assert v.value.sharding.is_equivalent_to(m.value.sharding, v.ndim), (v, m)
        divided = [entry.path for entry in report.entries if entry.bytes_per_device < entry.bytes]
        assert bool(divided) == (preset != "data_parallel")


@law
def variables_made_on_the_mesh_have_the_values_of_those_made_elsewhere() -> None:
    expected = Parts().net
    for preset in MESHES:
        ours, moved = Parts(preset, born=True), Parts(preset)
        assert ours.specs() == moved.specs()
        for path, variable in expected.paths().items():
            near(ours.net.paths()[path].numpy(), variable.numpy(), 1e-6)


@law
def a_large_variable_is_never_whole_on_one_device_when_it_is_made() -> None:
    mk.seed(0)
    layer, mesh = mk.Linear(4096), sharding.make_mesh()
    with jax.log_compiles(False):
        before = {id(array) for array in jax.live_arrays()}
        sharding.build(layer, [1, 4096], rules=sharding.fully_sharded(), mesh=mesh)
    for array in (array for array in jax.live_arrays() if id(array) not in before):
        assert max(shard.data.size for shard in array.addressable_shards) <= 4096 * 4096 // 8
    alone = mk.Linear(4096, name="linear")
    mk.seed(0)
    mk.build(alone, [1, 4096])
    near(layer.w.numpy(), alone.w.numpy(), 1e-6)


@law
def a_table_is_never_whole_on_one_device_when_it_is_made() -> None:
    mk.seed(0)
    mesh, before = sharding.make_mesh({"data": 2, "model": 4}), {id(array) for array in jax.live_arrays()}
    with sharding.placing(None, sharding.tensor_parallel() + sharding.fully_sharded(), mesh):
        net = mk.nets.Transformer(num_layers=1, num_heads=2, key_size=256, vocab_size=4096)
    made = [array for array in jax.live_arrays() if id(array) not in before]
    assert made and max(shard.data.size for a in made for shard in a.addressable_shards) <= 4096 * 512 // 8
    assert net.embed.embeddings.value.sharding.spec == PartitionSpec("model", "data")
    mk.seed(0)
    alone = mk.nets.Transformer(num_layers=1, num_heads=2, key_size=256, vocab_size=4096, name="transformer")
    near(net.embed.embeddings.numpy(), alone.embed.embeddings.numpy(), 1e-6)


@law
def layers_that_are_alike_are_made_by_one_program() -> None:
    from modulekit.core import births

    mesh, compiled = sharding.make_mesh(), []
    original, births._compiled = births._compiled, lambda *given: compiled.append(original(*given)) or compiled[-1]
    try:
        sharding.build(mk.nets.MLP([16] * 6), [1, 16], rules=sharding.fully_sharded(least=1), mesh=mesh)
    finally:
        births._compiled = original
    assert len(compiled) == 6 and len(set(map(id, compiled))) == 1


@law
def what_is_assigned_loaded_or_copied_stays_where_the_variable_is() -> None:
    parts = Parts("fully_sharded")
    w = parts.net.mlp.layers[0].w
    place = w.value.sharding
    w.assign(np.zeros(w.shape, np.float32))
    assert w.value.sharding == place and not w.numpy().any()
    w.assign_add(1.0)
    assert w.value.sharding == place
    with tempfile.TemporaryDirectory() as folder:
        mk.weights.save(f"{folder}/x.safetensors", parts.net)
        w.assign(np.zeros(w.shape, np.float32))
        mk.weights.load(f"{folder}/x.safetensors", parts.net)
    assert w.value.sharding == place and (w.numpy() == 1).all()
    first = parts.train(1)
    assert np.isfinite(first).all() and w.value.sharding == place


@law
def a_model_that_was_trained_on_one_device_goes_on_on_eight() -> None:
    expected = Parts().train(6)
    moved, rng, losses = Parts(), np.random.default_rng(0), []
    for number in range(6):
        if number == 3:
            rules, axes = MESHES["fully_sharded"]
            moved.mesh = sharding.make_mesh(axes)
            sharding.shard({"net": moved.net, "optimizer": moved.optimizer}, rules, moved.mesh)
        batch = rng.normal(size=(BATCH, FEATURES)).astype(np.float32), rng.integers(CLASSES, size=BATCH)
        x, y = batch if moved.mesh is None else sharding.split(batch, moved.mesh)
        losses.append(float(moved.step(x, y)))
    near(losses, expected, 1e-5)
    assert moved.optimizer.m[0].value.sharding.num_devices == 8


@law
def the_program_has_the_collectives_of_hand_written_jax() -> None:
    for preset in MESHES:
        rules, axes = MESHES[preset]
        mesh = sharding.make_mesh(axes)
        model, optimizer = mk.nets.MLP([64, 64, CLASSES]), mk.optimizers.Adam(1e-3)
        mk.build(model, [BATCH, FEATURES])
        sharding.shard(model, rules, mesh)
        x, y = sharding.split((np.ones([BATCH, FEATURES], np.float32), np.zeros([BATCH], np.int32)), mesh)

        @mk.jit
        def step(x: Any, y: Any, model: Any = model, optimizer: Any = optimizer) -> Any:
            return optimizer.minimize(lambda: mk.losses.softmax_cross_entropy(model(x), y).mean(), model)

        step(x, y)
        params = {path: variable.value for path, variable in model.paths().items()}
        adam = optax.adam(1e-3)

        def loss(params: Any, x: Any, y: Any) -> Any:
            for k in range(3):
                x = x @ params[f"layers[{k}].w"] + params[f"layers[{k}].b"]
                x = jax.nn.relu(x) if k < 2 else x
            return optax.softmax_cross_entropy_with_integer_labels(x, y).mean()

        def by_hand(params: Any, slots: Any, x: Any, y: Any, adam: Any = adam, loss: Any = loss) -> Any:
            value, gradients = jax.value_and_grad(loss)(params, x, y)
            updates, slots = adam.update(gradients, slots, params)
            return optax.apply_updates(params, updates), slots, value

        slots = adam.init(params)
        everywhere = NamedSharding(mesh, PartitionSpec())
        places = jax.tree.map(lambda a, e=everywhere: a.sharding if isinstance(a.sharding, NamedSharding) else e, slots)
        kept = {path: value.sharding for path, value in params.items()}
        compiled = jax.jit(by_hand, donate_argnums=(0, 1), out_shardings=(kept, places, None))
        slots = jax.device_put(slots, places)
        theirs = collectives_in(compiled.lower(params, slots, x, y).compile().as_text())
        ours = collectives_in(step.lower(x, y).compile().as_text())
        assert ours == theirs and ours.sent > 0, (preset, ours, theirs)


@law
def what_does_not_fit_is_refused_and_nothing_moves() -> None:
    net, mesh = Parts().net, sharding.make_mesh({"data": 2, "model": 4})
    before = {path: variable.value for path, variable in net.paths().items()}
    rules = sharding.Rules
    refused(ValueError, "axis 1 of mlp.layers[1].w [64, 8] cannot be divided into 3", lambda: sharding.shard(
        net, rules({"mlp/layers/1/w": (None, "model")}), sharding.make_mesh({"model": 3}, jax.devices()[:3])))  # fmt: skip
    refused(ValueError, "is to be divided along 'rows', and the mesh has the axes ['data', 'model']", lambda: sharding.shard(
        net, rules({"**/w": ("rows",)}), mesh))  # fmt: skip
    refused(
        ValueError,
        "divided along 'model' twice",
        lambda: sharding.shard(net, rules({"mlp/**/w": ("model", "model")}), mesh),
    )
    refused(ValueError, "has more axes than", lambda: sharding.shard(net, rules({"**/b": ("model", None)}), mesh))
    refused(ValueError, "cannot be divided among 2 devices", lambda: sharding.split(np.ones([3, 2]), mesh))
    refused(ValueError, "do not fit 8 devices", lambda: sharding.make_mesh({"data": 3, "model": -1}))
    refused(ValueError, "do not fit 8 devices", lambda: sharding.make_mesh({"data": 9}))
    assert sharding.make_mesh({"data": 3}).size == 3
    refused(ValueError, "-1 for at most one", lambda: sharding.make_mesh({"data": -1, "model": -1}))
    for path, variable in net.paths().items():
        assert variable.value is before[path]
    report = sharding.shard(net, rules({"**/w": (None, "model"), "decoder/**": ("data",)}), mesh)
    assert report.unmatched == ["decoder/**"] and not report and "no variable fits 'decoder/**'" in str(report)


check_laws(8)
