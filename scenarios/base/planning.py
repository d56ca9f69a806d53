"""Planning a run on devices that are not there: another process has as many CPU devices, and compiles an update for them.

Nothing is computed, and nothing is as large as it will be: variables are made without values, and examples are shapes.
"""

import io
import math
import os
import pickle
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from modulekit.core import births, storage
from modulekit.core.variable import Variable, state_of
from modulekit.data import Arrays
from modulekit.data.structure import map_leaves
from scenarios.base.collectives import collectives_in
from scenarios.base.devices import BATCH_AXIS, rules_of
from scenarios.base.elsewhere import CallError, call_elsewhere
from scenarios.base.feeding import fits_in, specification, stack_specification
from scenarios.base.mesh_plan import MeshPlan
from scenarios.base.program_cost import cost_of
from scenarios.base.run import Run
from scenarios.base.settings import Settings
from scenarios.base.sizes import part_sizes

_COUNT = "xla_force_host_platform_device_count"  # a flag that would set another number of devices


def settings_of_plan(settings: Settings, mesh: Any, placement: str | Mapping[str, Any] | None) -> Settings:
    """Returns the settings of a run on a mesh, which leaves nothing behind.

    Raises:
      TypeError: the mesh is no mapping to integers.
      ValueError: it has no axis, or one without devices; or there is no such preset.
    """
    quiet = replace(
        settings, mesh=mesh, placement=settings.placement if placement is None else placement, save_dir=None,
        save_interval=None, non_finite="stop", cache_dir=None, progress=False,
    )  # fmt: skip
    if not mesh or min(mesh.values()) < 1:
        raise ValueError(
            f"mesh={dict(mesh)}: a plan needs a number of devices for each axis, of at least 1. They need not be there, so "
            "that -1 cannot stand for those that remain"
        )
    rules_of(quiet.placement)
    return quiet


def stand_ins(data: Any) -> Any:
    """Returns arrays of zeros that take no memory in place of the `jax.ShapeDtypeStruct`s in a structure."""

    def stand_in(leaf: Any, path: str) -> Any:
        if not isinstance(leaf, jax.ShapeDtypeStruct):
            return leaf
        return np.broadcast_to(np.zeros((), jax.dtypes.canonicalize_dtype(leaf.dtype)), leaf.shape)

    return map_leaves(stand_in, data, "data")


def plan(run: Run, settings: Settings, memory_limit: int | None) -> MeshPlan:
    """Returns what an update of a run needs on the mesh of some settings, without having its devices.

    Args:
      run: of it, parts and the shapes of the examples are used, which are copied by pickling.
      settings: with the mesh; those of the run itself are not used.
      memory_limit: bytes of one device, if they are known.

    Raises:
      TypeError: the data is no structure of arrays.
      ValueError: something cannot be pickled, or the process ended.
      Exception: what making the variables, tracing or compiling raised there.
    """
    if not isinstance(run.examples, Arrays):
        raise TypeError(
            f"a plan knows the batches from the data, which is {run.examples.describe()}: give arrays, or in their place "
            "jax.ShapeDtypeStruct([examples, ...], dtype)"
        )
    forms = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), run.examples.arrays)
    environment = {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(math.prod((settings.mesh or {}).values())),
        "JAX_ENABLE_X64": str(int(jax.config.jax_enable_x64)),  # type: ignore[attr-defined]
        "XLA_FLAGS": " ".join(flag for flag in os.environ.get("XLA_FLAGS", "").split() if _COUNT not in flag),
    }
    pickled = _pickled(run, (run.scenario, settings, run.parts, forms, run.state))
    try:
        found: MeshPlan = call_elsewhere(
            "preflight(mesh=...)", _planned, pickled, memory_limit, environment=environment
        )
    except CallError as error:
        if error.error is None:
            raise ValueError(f"{run.name} could not be planned in another process: {error}") from None
        raise error.error from error
    return found


class _Pickler(pickle.Pickler):
    """Pickles variables without their values."""

    def reducer_override(self, value: Any) -> Any:
        if not isinstance(value, Variable):
            return NotImplemented
        return Variable.__new__, (Variable,), state_of(value, jax.ShapeDtypeStruct(value.shape, value.dtype))


def _pickled(run: Run, contents: Any) -> bytes:
    file = io.BytesIO()
    try:
        _Pickler(file).dump(contents)
    except Exception as error:
        raise ValueError(
            f"{run.name} cannot be planned in another process, since something that it was called with cannot be pickled "
            f"({error}): define classes and functions at the top of a module"
        ) from error
    return file.getvalue()


def _planned(pickled: bytes, memory_limit: int | None) -> MeshPlan:
    """Plans, in a process that has the devices."""
    scenario, settings, parts, forms, state = pickle.loads(pickled)
    data = Arrays(stand_ins(forms))
    with births.without_values():
        run = Run(scenario, settings, parts, data, state=state)
        *leading, examples = run.choose(0, 1).shape[1:]
        batch = specification(data, (*leading, examples))
        stepper, kept_parts = run.made(batch)
        if _lies_on_device(data, settings, memory_limit):
            source, row = specification(data, (data.size,)), jax.ShapeDtypeStruct((*leading, examples), np.int32)
            source = jax.tree.map(lambda a: _placed(a, run.devices.everywhere), source)
        else:
            source, row = stack_specification(batch), jax.ShapeDtypeStruct((), np.int32)
            source = jax.tree.map(lambda a: _placed(a, run.place_of_stack(a.shape)), source)
        compiled = stepper.lowered(source, row).compile()
    groups, divided = math.prod(leading), settings.mesh.get(BATCH_AXIS, 1)
    return MeshPlan(
        run.name,
        dict(settings.mesh),
        settings.placement,
        part_sizes(kept_parts, _bytes_on_one),
        groups * examples,
        groups * -(-examples // divided),
        examples % divided == 0,
        sum(math.prod(a.sharding.shard_shape(a.shape)) * a.dtype.itemsize for a in jax.tree.leaves(source)),
        cost_of(compiled),
        collectives_in(compiled.as_text() or ""),
        memory_limit,
    )


def _placed(form: jax.ShapeDtypeStruct, place: jax.sharding.Sharding | None) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(form.shape, form.dtype, sharding=place)


def _lies_on_device(data: Arrays, settings: Settings, memory_limit: int | None) -> bool:
    """Returns whether all examples lie on each device; else batches come from the host."""
    if settings.data_on_device is None:
        return memory_limit is not None and fits_in(data, memory_limit)
    return settings.data_on_device


def _bytes_on_one(variables: Iterable[Variable]) -> int:
    """Returns the bytes that one device holds of variables."""
    listed = list(variables)
    shapes = (
        v.shape if place is None else place.shard_shape(v.shape)
        for v, place in zip(listed, storage.shardings(listed), strict=True)
    )
    return sum(math.prod(shape) * v.dtype.itemsize for v, shape in zip(listed, shapes, strict=True))
