"""Optimizer slots: the variables that an optimizer keeps for each parameter.

Optax keeps one state for a list of parameters. Here each leaf of that state is a variable: those shaped like a parameter
belong to the parameter (a *slot*), the others to the optimizer (a *counter*). So layers may come and go, and the
remaining parameters keep their moments.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from modulekit.core.variable import Variable


class Layout:
    """Where slots and counters stand in the state of an optax transformation over `n` parameters."""

    def __init__(self, transformation: optax.GradientTransformation, parameters: Sequence[Any]) -> None:
        specs = [jax.ShapeDtypeStruct(jnp.shape(p), jnp.result_type(p)) for p in parameters]
        state = jax.eval_shape(transformation.init, specs)
        owners = optax.tree.map_params(
            transformation,
            lambda _, index: index,
            state,
            list(range(len(specs))),
            transform_non_params=lambda _: -1,
        )
        self.tree = jax.tree.structure(state)
        self._owners: list[int] = jax.tree.leaves(owners)
        self._leaves = jax.tree.leaves_with_path(state)

    def names(self, owner: int) -> list[str]:
        """Returns the field names of parameter `owner`'s slots, or of the counters if -1."""
        return [_field(path) for (path, _), own in zip(self._leaves, self._owners, strict=True) if own == owner]

    def specs(self, owner: int) -> list[jax.ShapeDtypeStruct]:
        """Returns shape and dtype of each slot of parameter `owner`, or of the counters if -1."""
        return [leaf for (_, leaf), own in zip(self._leaves, self._owners, strict=True) if own == owner]

    def arrange(self, slots: Sequence[Sequence[Variable]], counters: Sequence[Variable]) -> list[Variable]:
        """Returns all state variables in the order of the state's leaves."""
        sources = {index: iter(own) for index, own in enumerate(slots)} | {-1: iter(counters)}
        return [next(sources[owner]) for owner in self._owners]


def _field(path: tuple[Any, ...]) -> str:
    names = [str(key.name) for key in path if hasattr(key, "name")]
    return names[-1] if names else "state"


class SlotTable:
    """Which slots belong to which parameter. A parameter given twice in one call has two sets, as in Sonnet."""

    def __init__(self) -> None:
        self._slots: dict[Variable, list[list[Variable]]] = {}

    def of(self, parameters: Sequence[Variable]) -> list[list[Variable] | None]:
        """Returns the slots of each parameter, None for one that has none yet."""
        seen: Counter[Variable] = Counter()
        found: list[list[Variable] | None] = []
        for parameter in parameters:
            sets = self._slots.get(parameter, [])
            found.append(sets[seen[parameter]] if seen[parameter] < len(sets) else None)
            seen[parameter] += 1
        return found

    def add(self, parameter: Variable, slots: list[Variable]) -> None:
        """Gives a parameter one more set of slots."""
        self._slots.setdefault(parameter, []).append(slots)
