"""Runs that are planned, and also tried: with what, on which data, and how they lie on eight devices."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

import modulekit as mk
import scenarios


class Planned(NamedTuple):
    """A run and a mesh."""

    scenario: scenarios.Scenario
    parts: tuple[Any, ...]
    data: Any
    mesh: dict[str, int]
    placement: Any
    limit: int | None = None  # of memory


class Language(scenarios.Scenario):
    """Predicts each token from those before it."""

    def update(self, batch: Any, *, model: Any, optimizer: Any) -> Mapping[str, Any]:
        def loss() -> Any:
            return mk.losses.softmax_cross_entropy(model(batch[:, :-1]), batch[:, 1:]).mean()

        return {"loss": optimizer.minimize(loss, model)}


class Twice(scenarios.Scenario):
    """Takes two batches for an update."""

    batches_per_update = 2

    def update(self, batch: Any, *, model: Any, optimizer: Any) -> Mapping[str, Any]:
        return {"loss": optimizer.minimize(lambda: sum((model(x) ** 2).mean() for x in batch), model)}


EXAMPLES, FEATURES = 200, 16
X, Y = np.zeros([EXAMPLES, FEATURES], np.float32), np.zeros([EXAMPLES], np.int32)


def classifier(**settings: Any) -> tuple[scenarios.Scenario, tuple[Any, ...], Any]:
    fit = scenarios.Supervised(10, **{"batch_size": 32, "progress": False, **settings})
    return fit, (mk.nets.MLP([64, 64, 8]), mk.optimizers.Adam(1e-3), mk.losses.softmax_cross_entropy), (X, Y)


def language() -> tuple[scenarios.Scenario, tuple[Any, ...], Any]:
    decoder = mk.nets.Transformer(num_layers=2, num_heads=4, key_size=8, vocab_size=128)
    fit = Language(10, batch_size=8, data_on_device=False, progress=False)
    return fit, (decoder, mk.optimizers.Momentum(1e-3, 0.9)), np.zeros([64, 9], np.int32)


def twice() -> tuple[scenarios.Scenario, tuple[Any, ...], Any]:
    fit = Twice(10, batch_size=20, data_on_device=False, progress=False)
    return fit, (mk.nets.MLP([64, 8]), mk.optimizers.SGD(1e-3)), X


PLANNED: dict[str, Callable[[], Planned]] = {
    "data parallel": lambda: Planned(*classifier(), {"data": 8}, "data_parallel", 10**9),
    "fully sharded, with averages": lambda: Planned(
        *classifier(data_on_device=False, ema_decay=0.9), {"data": 8}, {"model/**/w": ["data"], "**": []}
    ),
    "tensor parallel": lambda: Planned(*language(), {"data": 2, "model": 4}, "tensor_parallel + fully_sharded"),
    "uneven batches": lambda: Planned(*twice(), {"data": 8}, "fully_sharded"),
}


def planned(case: Planned, values: bool = True) -> scenarios.MeshPlan:
    """Plans a run, from its data or from their shapes alone."""
    data = case.data if values else jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), case.data)
    return case.scenario.preflight(
        *case.parts, data=data, mesh=case.mesh, placement=case.placement, memory_limit=case.limit
    )
