"""Variables and batches on several devices: a mesh, rules from paths to places, and JAX's own SPMD does the rest.

A compiled function takes the variables as they lie, and gives them back so; XLA divides the arithmetic among the devices
and adds what they have to tell each other.
"""

from modulekit.sharding.batches import split
from modulekit.sharding.mesh import make_mesh
from modulekit.sharding.presets import data_parallel, fully_sharded, tensor_parallel
from modulekit.sharding.report import ShardingReport
from modulekit.sharding.rules import Rules
from modulekit.sharding.shard import build, placing, shard

__all__ = [
    "Rules",
    "ShardingReport",
    "build",
    "data_parallel",
    "fully_sharded",
    "make_mesh",
    "placing",
    "shard",
    "split",
    "tensor_parallel",
]
