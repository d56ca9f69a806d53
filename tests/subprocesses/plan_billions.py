"""Plans a transformer of billions of weights on 256 devices; prints its sizes and the peaks of both processes' memory."""

import json
import resource
from collections.abc import Mapping
from typing import Any

import jax

import modulekit as mk
import scenarios


class Copying(scenarios.Scenario):
    """Trains a model to return what it is given."""

    def update(self, batch: Any, *, model: Any, optimizer: Any) -> Mapping[str, Any]:
        return {"loss": optimizer.minimize(lambda: ((model(batch) - batch) ** 2).mean(), model)}


if __name__ == "__main__":
    decoder = mk.nets.Transformer(num_layers=2, num_heads=128, key_size=128)
    plan = Copying(10, batch_size=512).preflight(
        decoder,
        mk.optimizers.Adam(1e-4),
        data=jax.ShapeDtypeStruct([10**5, 4, 128 * 128], "float32"),
        mesh={"data": 128, "model": 2},
        placement="fully_sharded",
        memory_limit=80 * 10**9,
    )
    users = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    peaks = [1024 * resource.getrusage(user).ru_maxrss for user in users]
    print(json.dumps({**plan.in_json(), "peaks": peaks}))
