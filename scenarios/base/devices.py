"""The devices of a run: variables lie on a mesh as the settings say, and each batch is divided among them."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from modulekit import sharding
from modulekit.core.module import modules_in
from modulekit.core.processes import put
from modulekit.sharding.rules import Rule

MEMBERS = "members"  # the axis of a mesh that divides the members of an ensemble, and the preset that says so
PRESETS = {
    "data_parallel": sharding.data_parallel,
    "fully_sharded": sharding.fully_sharded,
    "tensor_parallel": sharding.tensor_parallel,
    MEMBERS: sharding.data_parallel,  # their work is divided; every device has their variables
}
BATCH_AXIS = "data"  # the axis of a mesh that divides batches
_EXAMPLE_AXES = (BATCH_AXIS, "sequence")  # those that divide the axis of the batch, and the one after it


class Devices:
    """Where a run's variables and examples lie.

    Args:
      axes: how many devices there are along each axis of the mesh; None for the one device that JAX takes.
      placement: the name of a preset, several joined by `+`, or partition specs by pattern of paths.
      has_members: whether the scenario trains members that can be divided among the devices.

    Attributes:
      members_axis: the axis of the mesh among which members are divided, None if they are not.

    Raises:
      ValueError: there are not so many devices, there is no such preset, or there is nothing that it could divide.
    """

    def __init__(
        self, axes: Mapping[str, int] | None, placement: str | Mapping[str, Any], has_members: bool = False
    ) -> None:
        self._rules = rules_of(placement)
        self._mesh = None if axes is None else sharding.make_mesh(axes)
        self._parts = 1 if self._mesh is None else self._mesh.shape.get(BATCH_AXIS, 1)
        divides = isinstance(placement, str) and MEMBERS in _names(placement)
        self.members_axis = MEMBERS if divides else None
        if divides and not has_members:
            raise ValueError(
                f"placement={placement!r} divides the members of an ensemble, and this scenario has none: leave out "
                "'members'"
            )
        if divides != (has_members and MEMBERS in (axes or {})):
            raise ValueError(
                f"mesh={axes} and placement={placement!r}: members are divided along an axis 'members' of the mesh by the "
                "preset 'members', and one of the two is missing. Give both, as in mesh={'members': 8}, placement='members'"
            )

    @property
    def everywhere(self) -> NamedSharding | None:
        """The sharding of what every device has; None for JAX's own choice."""
        return None if self._mesh is None else NamedSharding(self._mesh, PartitionSpec())

    @property
    def rows(self) -> NamedSharding | None:
        """The sharding of `[members, ...]`, of which each device has the rows of its own; None if they are not divided."""
        if self._mesh is None or self.members_axis is None:
            return None
        return NamedSharding(self._mesh, PartitionSpec(self.members_axis))

    def put(self, arrays: Any) -> Any:
        """Returns a structure of arrays that every device has."""
        return put(arrays, self.everywhere)

    def shown(self, values: Any) -> Any:
        """Returns traced arrays of which every device has the whole, so that every process can read them."""
        place = self.everywhere
        return values if place is None else jax.tree.map(lambda v: jax.lax.with_sharding_constraint(v, place), values)

    def making(self, parts: Mapping[str, Any]) -> AbstractContextManager[None]:
        """Returns a context in which variables that are made for some parts are made where they are to lie."""
        return nullcontext() if self._mesh is None else sharding.placing(_modules(parts), self._rules, self._mesh)

    def place(self, parts: Mapping[str, Any]) -> None:
        """Moves the variables of some parts to where they are to lie.

        Raises:
          ValueError: a pattern fits no variable.
        """
        if self._mesh is None:
            return
        report = sharding.shard(_modules(parts), self._rules, self._mesh)
        if report.unmatched:
            paths = ", ".join(entry.path for entry in report.entries[:20])
            raise ValueError(
                f"placement: no variable fits the pattern {report.unmatched[0]!r}. Paths begin with a part: {paths}"
            )

    def divided(self, batch: Any, leading: int) -> Any:
        """Returns traced arrays `[..., batch, ...]`, of which each device gets a part, with `leading` axes before the batch.

        Where the batch has no equal parts, the last device gets fewer examples, and zeros that nothing looks at. The axes
        before lie as what is done with them asks for.
        """
        mesh = self._mesh
        if mesh is None or not any(mesh.shape.get(name, 1) > 1 for name in _EXAMPLE_AXES):
            return batch

        def divide(array: Any) -> Any:
            size = array.shape[leading]
            widths = [(0, -size % self._parts if axis == leading else 0) for axis in range(array.ndim)]
            padded = jnp.pad(array, widths) if size % self._parts else array
            axes = self._example_axes(padded.shape, leading)
            spec = PartitionSpec(*[PartitionSpec.UNCONSTRAINED] * leading, *axes)
            placed = jax.lax.with_sharding_constraint(padded, NamedSharding(mesh, spec))
            return jax.lax.slice_in_dim(placed, 0, size, axis=leading) if size % self._parts else placed

        return jax.tree.map(divide, batch)

    def place_of(self, shape: tuple[int, ...], leading: int) -> NamedSharding | None:
        """Returns how examples from the host lie, `[..., batch, ...]`: each process sends its devices only their part.

        Args:
          shape: of an array. Where its batch has no equal parts, every device has all of it.
          leading: the number of axes before the batch.
        """
        if self._mesh is None:
            return None
        return NamedSharding(self._mesh, PartitionSpec(*[None] * leading, *self._example_axes(shape, leading)))

    def _example_axes(self, shape: tuple[int, ...], leading: int) -> list[str | None]:
        """Returns the axes of the mesh that divide the batch and the axis after it; None for one without equal parts."""
        parts = {} if self._mesh is None else self._mesh.shape
        pairs = zip(_EXAMPLE_AXES, shape[leading:], strict=False)
        return [name if parts.get(name, 1) > 1 and size % parts[name] == 0 else None for name, size in pairs]

    def check_divisible(self, members: Sequence[int]) -> None:
        """Raises `ValueError` if members that are trained side by side cannot be divided evenly among the devices."""
        parts = 1 if self.rows is None else self.rows.mesh.shape[MEMBERS]
        if len(members) % parts:
            raise ValueError(
                f"members {', '.join(map(str, members))} are {len(members)} that are trained side by side, and cannot be "
                f"divided evenly among {parts} devices: choose their number, or mesh={{'members': ...}}, so that they can. "
                "Side by side are those whose updates are the same program"
            )

    def own(self, values: Any, rest: Any = None) -> Any:
        """Returns traced arrays `[members, ...]`, of which each device has the rows of its own members.

        Args:
          values: in any structure; `[members]` are those that are trained side by side.
          rest: how their other axes lie: None as a whole, `PartitionSpec.UNCONSTRAINED` as they do.
        """
        place = self.rows
        if place is None:
            return values

        def divide(array: Any) -> Any:
            spec = PartitionSpec(*place.spec, *[rest] * (array.ndim - 1))
            return jax.lax.with_sharding_constraint(array, NamedSharding(place.mesh, spec))

        return jax.tree.map(divide, values)

    def told(self, values: Any) -> Any:
        """Returns traced arrays of which every device has all members' rows, where members are divided."""
        return values if self.rows is None else self.shown(values)


def rules_of(placement: str | Mapping[str, Any]) -> Rule:
    """Returns the rules that a setting stands for."""
    if isinstance(placement, Mapping):
        return sharding.Rules(placement)
    names = _names(placement)
    unknown = [name for name in names if name not in PRESETS]
    if unknown:
        raise ValueError(
            f"placement={placement!r}: there is no preset {unknown[0]!r}. There are {', '.join(PRESETS)}; join several by "
            "'+', or give partition specs by pattern, as in {'**/w': [None, 'model']}"
        )
    rules: Any = PRESETS[names[0]]()
    for name in names[1:]:
        rules = rules + PRESETS[name]()
    found: Rule = rules
    return found


def _names(placement: str) -> list[str]:
    return [name.strip() for name in placement.split("+")]


def _modules(parts: Mapping[str, Any]) -> dict[str, Any]:
    return {name: part for name, part in parts.items() if next(modules_in(part), None) is not None}
