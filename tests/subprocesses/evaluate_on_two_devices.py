"""Evaluates on two devices, where batches need filling, and compares with one. Prints "equal"."""

import os

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import modulekit as mk
from modulekit import metrics
from scenarios.evaluation import Evaluate, Predict

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(51, 6)).astype(np.float32)
LABELS = RANDOM.integers(4, size=51).astype(np.int32)
seen = []


def near(found: object, expected: object) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)  # type: ignore[call-overload]


class Model(mk.Module):
    """An MLP that says where its inputs lie, and writes."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = mk.nets.MLP([8, 4])
        self.calls = mk.Variable(0, trainable=False, name="calls")

    def __call__(self, x: jax.Array) -> jax.Array:
        jax.debug.inspect_array_sharding(x, callback=seen.append)
        self.calls.assign_add(1)
        return self.inner(x)


assert jax.device_count() == 2
model = Model()
expected, outputs = Evaluate()(model, data=(X, LABELS)), Predict()(model, data=X)
for where, batch_sizes in ((None, (1, 7, 64)), (jax.devices()[1], (7,))):  # weights anywhere, and bound to one device
    if where is not None:
        for variable in model.variables:
            variable.assign(jax.device_put(variable.value, where))
    before = [(v.value.sharding, v.numpy()) for v in model.variables]
    for batch_size in batch_sizes:
        seen.clear()
        near(Predict(batch_size=batch_size, devices=2)(model, data=X), outputs)
        assert any(len(s.device_set) == 2 and not s.is_fully_replicated for s in seen), seen
        if where is not None:
            continue
        report = Evaluate(batch_size=batch_size, devices=2)(model, data=(X, LABELS))
        assert report.metrics.keys() == expected.metrics.keys() and report.samples == 51
        for name, value in expected.metrics.items():
            near(report.metrics[name], value)
        near(report.confusion, expected.confusion)
    for variable, (sharding, value) in zip(model.variables, before, strict=True):
        assert variable.value.sharding == sharding, variable  # each array is where it was
        np.testing.assert_array_equal(variable.numpy(), value)

# Metrics of sharded arrays, inside of one compiled program.
spread = NamedSharding(Mesh(np.array(jax.devices()), ("batch",)), PartitionSpec("batch"))
for make in (metrics.NegativeLogLikelihood, metrics.CalibrationError, lambda: metrics.ConfusionMatrix(4)):
    whole, parts = make(), make()
    whole.update(X[:50, :4], LABELS[:50])
    mk.jit(parts.update)(*(jax.device_put(array, spread) for array in (X[:50, :4], LABELS[:50])))
    near(parts.value, whole.value)
print("equal")
