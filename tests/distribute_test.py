"""Laws of `modulekit.distribute`: on one device here, on four in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import modulekit as mk

HERE = Path(__file__).parent
X = np.random.default_rng(0).normal(size=(8, 5)).astype(np.float32)


def test_laws_on_four_devices() -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, HERE / "subprocesses" / "replicate.py"], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout)
    assert len(report["laws"]) == 20
    assert not report["failed"], "\n".join(f"{name}\n{text}" for name, text in report["failed"].items())


def train(replicator: Any) -> list[np.ndarray]:
    """Trains with dropout and moving averages, on a replicator or without one."""
    mk.seed(2)
    model = mk.Sequential([mk.Linear(6), mk.BatchNorm(True, True), mk.Linear(2)])
    dropout, optimizer = mk.Dropout(0.5), mk.optimizers.Adam(0.1)

    def update(x: Any) -> Any:
        def loss() -> Any:
            hidden = model.layers[1](model.layers[0](x), is_training=True)
            return jnp.mean(jnp.square(model.layers[2](dropout(hidden, is_training=True)) - 0.5))

        value, gradients = mk.value_and_grad(loss, model)()
        if replicator is not None:
            gradients = mk.distribute.get_replica_context().all_reduce("mean", gradients)
        optimizer.apply(gradients, model.trainable_variables)
        return value

    @mk.jit
    def step(x: Any) -> Any:
        return update(x) if replicator is None else replicator.reduce("mean", replicator.run(update, args=(x,)))

    batches = [X, -X, 2 * X] if replicator is None else replicator.experimental_distribute_dataset([X, -X, 2 * X])
    losses = [np.asarray(step(batch)) for batch in batches]
    return [*losses, *(v.numpy() for v in (*model.variables, *optimizer.variables))]


def test_one_device_is_bitwise_no_replicator() -> None:
    alone = train(None)
    for replicator in (mk.distribute.Replicator(), mk.distribute.Replicator(["CPU:0"])):
        for actual, expected in zip(train(replicator), alone, strict=True):
            np.testing.assert_array_equal(actual, expected, strict=True)


def test_on_one_device_values_are_themselves() -> None:
    replicator = mk.distribute.Replicator(jax.devices()[:1])
    assert replicator.num_replicas_in_sync == 1
    assert replicator.run(lambda x, y: x + y, args=(1,), kwargs={"y": 2}) == 3
    assert replicator.experimental_local_results([4]) == ([4],)
    assert replicator.experimental_distribute_values_from_function(lambda c: (c.num_replicas_in_sync, 7)) == (1, 7)
    assert replicator.reduce("sum", 3.0) == 3.0
    assert replicator.reduce("mean", {"a": X}, axis=0)["a"].shape == (5,)


def test_the_context_says_where_the_caller_runs() -> None:
    replicator = mk.distribute.Replicator(jax.devices()[:1])
    outside = mk.distribute.get_replica_context()
    assert (outside.num_replicas_in_sync, outside.replica_id_in_sync_group) == (1, 0)
    assert outside.all_reduce("SUM", [mk.Variable(2.0), None])[0] == 2.0
    with replicator.scope():
        assert mk.distribute.get_replica_context() is None
        assert replicator.run(mk.distribute.get_replica_context) == outside
    assert mk.distribute.get_replica_context() == outside
    with pytest.raises(ValueError, match="replicas are reduced by 'sum' or 'mean', not by 'max'"):
        outside.all_reduce("max", 1.0)


def test_cross_replica_batch_norm_refuses_where_no_replica_runs() -> None:
    replicator = mk.distribute.Replicator(jax.devices()[:1])
    average = mk.ExponentialMovingAverage
    with replicator.scope():
        norm = mk.distribute.CrossReplicaBatchNorm(True, True, average(0.9), average(0.9))
        with pytest.raises(TypeError, match="Cross replica batch norm cannot be called in cross-replica context: call"):
            norm(X, is_training=True)
        y = replicator.run(norm, args=(X,), kwargs={"is_training": True})
    np.testing.assert_allclose(y, (X - X.mean(0)) / np.sqrt(X.var(0) + 1e-5), rtol=1e-4, atol=1e-5)


def test_cross_replica_batch_norm_loses_no_digits_of_a_large_offset() -> None:
    average = mk.ExponentialMovingAverage
    norm = mk.distribute.CrossReplicaBatchNorm(False, False, average(0.9), average(0.9))
    norm(X + 1000, is_training=True)
    wide = (X + np.float32(1000)).astype(np.float64)
    np.testing.assert_allclose(norm.moving_variance.value[0], wide.var(0), rtol=1e-3)


def test_a_tpu_replicator_needs_a_tpu() -> None:
    with pytest.raises(RuntimeError, match=r"TpuReplicator needs a TPU, and this process has .*: use Replicator"):
        mk.distribute.TpuReplicator()


def test_devices_that_are_not_there_or_none_are_refused() -> None:
    with pytest.raises(ValueError, match=r"there is no device 'rocket:0' in this process; there are cpu:0"):
        mk.distribute.Replicator(["rocket:0"])
    with pytest.raises(ValueError, match="needs one or more devices, each once, and got"):
        mk.distribute.Replicator([])


def test_a_function_that_makes_variables_eagerly_is_itself() -> None:
    def f() -> None: ...

    assert mk.distribute.create_variables_eagerly(f) is f
