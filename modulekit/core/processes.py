"""Several processes that compute together, each with devices of its own (`jax.distributed`).

They run the same program in step: what one of them decides by itself, such as by a clock, all have to agree on first.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils


def is_first() -> bool:
    """Returns whether this process is the one that writes files, of several or alone."""
    return jax.process_index() == 0


def are_several() -> bool:
    """Returns whether there are other processes."""
    return jax.process_count() > 1


def put(arrays: Any, sharding: Any, **options: Any) -> Any:
    """Returns a structure of arrays, the same in each process, where they are to lie: as `jax.device_put`.

    Args:
      arrays: the arrays.
      sharding: of all of them, or a structure of shardings; None for JAX's own choice.
      **options: of `jax.device_put`.
    """
    places = [place for place in jax.tree.leaves(sharding) if not place.is_fully_addressable]
    if not places:
        return jax.device_put(arrays, sharding, **options)
    is_copied = not options.get("may_alias", True)

    def placed(array: Any, place: Any) -> Any:
        if isinstance(array, jax.Array) and not array.is_fully_addressable:
            return jax.device_put(array, place)
        whole = array if jnp.issubdtype(array.dtype, jax.dtypes.extended) else np.array(array, copy=is_copied or None)
        return jax.make_array_from_callback(np.shape(whole), place, lambda index: whole[index])

    if isinstance(sharding, jax.sharding.Sharding):
        return jax.tree.map(lambda array: placed(array, sharding), arrays)
    return jax.tree.map(placed, arrays, sharding)


def whole(arrays: Sequence[Any]) -> list[Any]:
    """Returns arrays as each process can read them, in all processes: those that lie in parts elsewhere are gathered."""
    return [_whole(array) if is_in_parts(array) else array for array in arrays]


def is_in_parts(array: Any) -> bool:
    """Returns whether a value is an array of which no process has the whole."""
    return isinstance(array, jax.Array) and not array.is_fully_addressable and not array.is_fully_replicated


def _whole(array: Any) -> Any:
    return multihost_utils.process_allgather(array, tiled=True)


def agreed(number: float) -> float:
    """Returns the number of the first process, in all of them."""
    return float(multihost_utils.broadcast_one_to_all(np.float32(number))) if are_several() else number


def largest(number: int) -> int:
    """Returns the largest of the processes' numbers, in all of them."""
    return int(np.max(multihost_utils.process_allgather(np.int32(number)))) if are_several() else number
