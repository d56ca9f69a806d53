"""Plans a transformer of billions of weights on 256 devices; prints its sizes and the peaks of both processes' memory.

The peak of this process is the one of its own address space (`VmHWM`): `ru_maxrss` begins with the peak of whoever
started it, here a test process of any size.
"""

import json
import resource
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

import modulekit as mk
import scenarios


class Copying(scenarios.Scenario):
    """Trains a model to return what it is given."""

    def update(self, batch: Any, *, model: Any, optimizer: Any) -> Mapping[str, Any]:
        return {"loss": optimizer.minimize(lambda: ((model(batch) - batch) ** 2).mean(), model)}


def peaks() -> list[int]:
    """The most memory in bytes that this process and the largest one that it started ever held."""
    (own,) = (
        line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")
    )
    return [1024 * int(own), 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss]


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
    print(json.dumps({**plan.in_json(), "peaks": peaks()}))
