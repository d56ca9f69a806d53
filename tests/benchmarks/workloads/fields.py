"""A linear classifier over fields of features, each with a weight of its own: many variables and little arithmetic."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

import modulekit as mk
from tests.benchmarks.workloads.workload import Params, Workload, labeled_noise, without_statistics

FEATURES, CLASSES, BATCH = 4, 10, 32


def make_params(fields: int) -> Params:
    """Returns the weights."""
    stddev = 1 / math.sqrt(fields * FEATURES)
    keys = jax.random.split(jax.random.key(0), fields)
    return {f"field_{k}": stddev * jax.random.normal(key, [FEATURES, CLASSES]) for k, key in enumerate(keys)}


def forward(params: Params, x: jax.Array) -> jax.Array:
    """Returns the logits for features `[batch, fields * features]`."""
    return x @ jnp.concatenate([params[f"field_{k}"] for k in range(len(params))])


class Fields(mk.Module):
    """The classifier as a module, for so many fields."""

    def __init__(self, fields: int, name: str | None = None) -> None:
        super().__init__(name=name)
        self.fields = fields

    @mk.once
    def _initialize(self) -> None:
        init = mk.initializers.RandomNormal(stddev=1 / math.sqrt(self.fields * FEATURES))
        self.w = [mk.Variable(init([FEATURES, CLASSES], jnp.float32), name=f"w_{k}") for k in range(self.fields)]

    def __call__(self, x: Any) -> jax.Array:
        """Returns the logits."""
        self._initialize()
        return x @ jnp.concatenate([w.value for w in self.w])


def by_field(name: str, count: int, is_huge: bool = False) -> Workload:
    """Returns the workload with so many variables."""
    return Workload(
        name,
        "fields",
        BATCH,
        labeled_noise((count * FEATURES,), CLASSES),
        functools.partial(make_params, count),
        without_statistics(forward),
        lambda: Fields(count),
        lambda model: {f"field_{k}": w for k, w in enumerate(model.w)},
        sizes=(count,),
        is_huge=is_huge,
    )
