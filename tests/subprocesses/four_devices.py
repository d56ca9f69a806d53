"""Four devices, data and models for the laws of replicas. Imported before JAX starts."""

import os
from typing import Any

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"

import jax
import jax.numpy as jnp
import numpy as np
from laws import near

import modulekit as mk

REPLICAS = 4
RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(8, 5)).astype(np.float32)
Y = RANDOM.normal(size=(8, 2)).astype(np.float32)
replicator = mk.distribute.Replicator()


def all_near(actual: Any, expected: Any, tolerance: float = 1e-5) -> None:
    for one, other in zip(actual, expected, strict=True):
        near(one, other, tolerance)


def split(*arrays: np.ndarray) -> Any:
    return next(iter(replicator.experimental_distribute_dataset([arrays])))


def same_everywhere(variables: Any) -> None:
    for variable in variables:
        shards = [np.asarray(shard.data) for shard in variable.value.addressable_shards]
        assert len(shards) == REPLICAS and shards[0].shape == variable.shape, variable
        for shard in shards:
            np.testing.assert_array_equal(shard, shards[0], strict=True)


def reduce_gradients(gradients: Any) -> Any:
    return mk.distribute.get_replica_context().all_reduce("mean", gradients)


def waves(shape: Any, dtype: Any) -> jax.Array:
    """First weights that do not depend on what was made before."""
    return jnp.cos(jnp.arange(np.prod(shape), dtype=dtype)).reshape(shape)


class Parts:
    """A model, its optimizer, and a training step on the replicas or without them."""

    def __init__(self, on: Any = None, make: Any = lambda: mk.nets.MLP([6, 2], waves, activation=jnp.tanh)) -> None:
        self.model, self.optimizer, self.on = make(), mk.optimizers.Adam(0.01), on

    def loss(self, x: Any, y: Any) -> Any:
        return jnp.mean(jnp.square(self.model(x) - y))

    def update(self, x: Any, y: Any) -> Any:
        loss, gradients = mk.value_and_grad(lambda: self.loss(x, y), self.model)()
        if self.on is not None:
            gradients = reduce_gradients(gradients)
        self.optimizer.apply(gradients, self.model.trainable_variables)
        return loss

    def step(self, x: Any, y: Any) -> Any:
        if self.on is None:
            return self.update(x, y)
        return self.on.reduce("mean", self.on.run(self.update, args=(x, y)))

    @property
    def variables(self) -> list[mk.Variable]:
        return [*self.model.variables, *self.optimizer.variables]


def values(variables: Any) -> list[np.ndarray]:
    return [v.numpy() for v in variables]
