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
      devices: those that the axes divide; if None, all that JAX has, or the first of them if there are more.

    Raises:
      ValueError: the sizes do not fit the devices.

    Source: JAX, `jax.make_mesh`, whose axes are here all `AxisType.Auto`: XLA decides how results lie.

    >>> dict(make_mesh({"data": 1, "model": -1}, jax.devices()[:1]).shape)
    {'data': 1, 'model': 1}
    """
    sizes = dict(axes or {"data": -1})
    available = jax.devices() if devices is None else list(devices)
    open_axes = [name for name, size in sizes.items() if size == -1]
    wrong = [name for name, size in sizes.items() if size < 1 and size != -1]
    if wrong or len(open_axes) > 1:
        raise ValueError(f"axes={sizes}: expected a number of devices for each axis, and -1 for at most one")
    known = math.prod(size for size in sizes.values() if size != -1)
    if open_axes:
        sizes[open_axes[0]] = len(available) // known
    count = math.prod(sizes.values())
    if count > len(available) or (count < len(available) and (open_axes or devices is not None)) or not count:
        raise ValueError(
            f"axes={dict(axes or sizes)} do not fit {len(available)} devices: choose other sizes, or give `devices`"
        )
    shape, kinds = tuple(sizes.values()), (AxisType.Auto,) * len(sizes)
    if devices is None and count == len(available):
        return jax.make_mesh(shape, tuple(sizes), axis_types=kinds)
    return Mesh(np.array(available[:count]).reshape(shape), tuple(sizes), axis_types=kinds)
