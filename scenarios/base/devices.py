"""The devices of a run: variables lie on a mesh as the settings say, and each batch is divided among them."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from modulekit import sharding
from modulekit.core.module import modules_in
from modulekit.core.processes import put
from modulekit.sharding.rules import Rule

PRESETS = {
    "data_parallel": sharding.data_parallel,
    "fully_sharded": sharding.fully_sharded,
    "tensor_parallel": sharding.tensor_parallel,
}
_BATCH = "data"  # the axis of a mesh that divides batches


class Devices:
    """Where a run's variables and examples lie.

    Args:
      axes: how many devices there are along each axis of the mesh; None for the one device that JAX takes.
      placement: the name of a preset, several joined by `+`, or partition specs by pattern of paths.

    Raises:
      ValueError: there are not so many devices, or there is no such preset.
    """

    def __init__(self, axes: Mapping[str, int] | None, placement: str | Mapping[str, Any]) -> None:
        self._rules = rules_of(placement)
        self._mesh = None if axes is None else sharding.make_mesh(axes)
        self._parts = 1 if self._mesh is None else self._mesh.shape.get(_BATCH, 1)

    @property
    def everywhere(self) -> NamedSharding | None:
        """The sharding of what every device has; None for JAX's own choice."""
        return None if self._mesh is None else NamedSharding(self._mesh, PartitionSpec())

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

        Where the batch has no equal parts, the last device gets fewer examples, and zeros that nothing looks at.
        """
        if self._mesh is None or self._parts == 1:
            return batch
        place = NamedSharding(self._mesh, PartitionSpec(*[None] * leading, _BATCH))

        def divide(array: Any) -> Any:
            size = array.shape[leading]
            missing = -size % self._parts
            if not missing:
                return jax.lax.with_sharding_constraint(array, place)
            widths = [(0, missing if axis == leading else 0) for axis in range(array.ndim)]
            padded = jax.lax.with_sharding_constraint(jnp.pad(array, widths), place)
            return jax.lax.slice_in_dim(padded, 0, size, axis=leading)

        return jax.tree.map(divide, batch)


def rules_of(placement: str | Mapping[str, Any]) -> Rule:
    """Returns the rules that a setting stands for."""
    if isinstance(placement, Mapping):
        return sharding.Rules(placement)
    names = [name.strip() for name in placement.split("+")]
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


def _modules(parts: Mapping[str, Any]) -> dict[str, Any]:
    return {name: part for name, part in parts.items() if next(modules_in(part), None) is not None}
