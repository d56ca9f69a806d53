"""Several devices at once: Sonnet's `distribute`."""

from modulekit.distribute.cross_replica_batch_norm import CrossReplicaBatchNorm
from modulekit.distribute.per_replica import PerReplica
from modulekit.distribute.replicator import Replicator, TpuReplicator, create_variables_eagerly
from modulekit.transforms.replicas import get_replica_context

__all__ = [
    "CrossReplicaBatchNorm",
    "PerReplica",
    "Replicator",
    "TpuReplicator",
    "create_variables_eagerly",
    "get_replica_context",
]
