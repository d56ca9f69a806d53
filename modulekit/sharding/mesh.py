"""Meshes: devices in rows and columns that have names."""

import math
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh


def make_mesh(axes: Mapping[str, int] | None = None, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns a mesh of devices, of all processes if there are several.

    Args:
      axes: how many devices there are along each axis; -1 for as many as remain, once. `{"data": -1}` if None.
      devices: all that JAX has if None.

    Raises:
      ValueError: the sizes are no division of the devices.

    Source: JAX, `jax.make_mesh`, whose axes are here all `AxisType.Auto`: XLA decides how results lie.

    >>> dict(make_mesh({"data": 1, "model": -1}, jax.devices()[:1]).shape)
    {'data': 1, 'model': 1}
    """
    sizes = dict(axes or {"data": -1})
    available = jax.devices() if devices is None else list(devices)
    open_axes = [name for name, size in sizes.items() if size == -1]
    wrong = [f"{name}={size}" for name, size in sizes.items() if size < 1 and size != -1]
    if wrong or len(open_axes) > 1:
        raise ValueError(f"axes={sizes}: expected a number of devices for each axis, and -1 for at most one")
    known = math.prod(size for size in sizes.values() if size != -1)
    if open_axes and len(available) % known == 0:
        sizes[open_axes[0]] = len(available) // known
    if math.prod(sizes.values()) != len(available):
        raise ValueError(
            f"axes={dict(axes or sizes)} do not divide {len(available)} devices: choose other sizes, or give `devices`"
        )
    if devices is None:
        return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))
    grid = np.array(available).reshape(tuple(sizes.values()))
    return Mesh(grid, tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))
