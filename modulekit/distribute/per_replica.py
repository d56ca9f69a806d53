"""Values that differ from replica to replica."""

from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as Spec

from modulekit.transforms.replicas import AXIS


class PerReplica:
    """One array for each replica: what `Replicator.run` returns, and splits among the replicas where it is an argument.

    To JAX's functions it is a structure that holds one array, so that it may go in and out of compiled functions.

    Attributes:
      stacked: the arrays of all replicas, `[replicas, ...]`.

    >>> PerReplica(jax.numpy.arange(6.0).reshape(2, 3)).values[1].tolist()
    [3.0, 4.0, 5.0]
    """

    def __init__(self, stacked: Any) -> None:
        self.stacked = stacked

    @property
    def values(self) -> tuple[Any, ...]:
        """The array of each replica."""
        return tuple(self.stacked[replica] for replica in range(self.stacked.shape[0]))

    def __repr__(self) -> str:
        return f"PerReplica({self.stacked!r})"


jax.tree_util.register_pytree_node(
    PerReplica, lambda value: ((value.stacked,), None), lambda _, parts: PerReplica(*parts)
)


def is_per_replica(value: Any) -> bool:
    """Returns whether a value is a `PerReplica`."""
    return isinstance(value, PerReplica)


def split(batch: Any, mesh: Mesh) -> Any:
    """Returns a structure of arrays `[batch, ...]` with equal parts of each array on the devices of a mesh."""

    def parts(array: Any) -> PerReplica:
        array = array if isinstance(array, jax.Array) else np.asarray(array)
        if array.ndim == 0 or array.shape[0] % mesh.size:
            raise ValueError(
                f"a batch of shape {list(array.shape)} has no {mesh.size} equal parts along its first axis, one for each "
                "replica: choose another batch size, and drop or pad the last batch"
            )
        stacked = array.reshape(mesh.size, array.shape[0] // mesh.size, *array.shape[1:])
        return PerReplica(jax.device_put(stacked, NamedSharding(mesh, Spec(AXIS))))

    return jax.tree.map(parts, batch)


class DistributedDataset:
    """Batches, each of which is split among the replicas; it can be iterated as often as the batches can.

    Args:
      batches: an iterable of structures of arrays `[batch, ...]`.
      mesh: the replicas' devices.
    """

    def __init__(self, batches: Iterable[Any], mesh: Mesh) -> None:
        self._batches = batches
        self._mesh = mesh

    def __iter__(self) -> Iterator[Any]:
        for batch in self._batches:
            yield split(batch, self._mesh)
