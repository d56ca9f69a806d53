"""Batches on the devices of a mesh."""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def split(batch: Any, mesh: Mesh, axis: str | tuple[str, ...] = "data") -> Any:
    """Returns a structure of arrays `[batch, ...]`, of which each device along an axis of the mesh has a part.

    Args:
      batch: arrays, in any structure. Where there are several processes, each gives its own examples.
      mesh: the devices.
      axis: of the mesh, or several.

    Raises:
      ValueError: an array cannot be divided evenly.

    Source: JAX, `jax.device_put` with a sharding, and `jax.make_array_from_process_local_data`.

    >>> from modulekit.sharding import make_mesh
    >>> split(np.ones([4, 2]), make_mesh()).sharding.spec
    P('data',)
    """
    names = (axis,) if isinstance(axis, str) else axis
    sharding = NamedSharding(mesh, PartitionSpec(axis))
    processes = jax.process_count()
    parts = int(np.prod([mesh.shape[name] for name in names]))

    def placed(array: Any) -> jax.Array:
        array = array if isinstance(array, jax.Array) else np.asarray(array)
        if array.ndim == 0 or array.shape[0] * processes % parts:
            raise ValueError(
                f"a batch of shape {list(array.shape)} cannot be divided among {parts} devices along its first axis: choose "
                "another batch size, and drop or pad the last batch"
            )
        if processes > 1:
            return jax.make_array_from_process_local_data(sharding, np.asarray(array))
        return jax.device_put(array, sharding)

    return jax.tree.map(placed, batch)
