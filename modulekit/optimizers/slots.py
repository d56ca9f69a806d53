"""Optimizer slots: the variables that an optimizer keeps for each parameter.

Optax keeps one state for a list of parameters. Here each leaf of that state is a variable: those that stand in a list of
one for each parameter belong to the parameter (a *slot*), the others to the optimizer (a *counter*). So layers may come
and go, and the remaining parameters keep their moments.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax

from modulekit.core.variable import Variable

SHARED = -1
T = TypeVar("T")


class Leaf(NamedTuple):
    """One leaf of an optax state: the parameter that owns it, its field's name, its shape and dtype."""

    owner: int
    field: str
    spec: Any


class Layout:
    """Where slots and counters stand in the state of an optax transformation over a list of parameters."""

    def __init__(self, transformation: optax.GradientTransformation, parameters: Sequence[Any]) -> None:
        specs = [jax.ShapeDtypeStruct(jnp.shape(p), jnp.result_type(p)) for p in parameters]
        state = jax.eval_shape(transformation.init, specs)
        self._tree = jax.tree.structure(state)
        self.leaves = [Leaf(*_place(path, state), spec) for path, spec in jax.tree.leaves_with_path(state)]

    def of(self, owner: int) -> list[int]:
        """Returns the positions of a parameter's slots, or of the counters, among the leaves."""
        return [position for position, leaf in enumerate(self.leaves) if leaf.owner == owner]

    def arrange(self, slots: Sequence[Sequence[T]], counters: Sequence[T]) -> list[T]:
        """Returns what stands for all leaves, in their order."""
        sources = {index: iter(own) for index, own in enumerate(slots)} | {SHARED: iter(counters)}
        return [next(sources[leaf.owner]) for leaf in self.leaves]

    def state(self, arrays: Sequence[Any]) -> Any:
        """Returns the optax state that holds these arrays; random keys are kept as their data."""
        pairs = zip(arrays, self.leaves, strict=True)
        return jax.tree.unflatten(self._tree, [_key(a) if _is_key(leaf.spec) else a for a, leaf in pairs])


def plain_leaves(state: Any) -> list[Any]:
    """Returns the leaves of an optax state as arrays that a variable can hold."""
    return [jax.random.key_data(leaf) if _is_key(leaf) else jnp.asarray(leaf) for leaf in jax.tree.leaves(state)]


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key)


def _key(data: Any) -> Any:
    return jax.random.wrap_key_data(data)


def _place(path: tuple[Any, ...], state: Any) -> tuple[int, str]:
    """Returns the owner of a leaf, which is its index in the first list on its path, and the last named field."""
    owner, field, node = SHARED, "state", state
    for key in path:
        if type(node) is list and owner == SHARED:
            owner = key.idx
        if isinstance(key, jax.tree_util.GetAttrKey):
            field, node = key.name, getattr(node, key.name)
        elif isinstance(key, jax.tree_util.DictKey):
            field, node = str(key.key), node[key.key]
        elif isinstance(key, jax.tree_util.SequenceKey):
            node = node[key.idx]
        else:
            break
    return owner, field


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

    def owners(self) -> dict[Variable, Variable]:
        """Returns the parameter of each slot."""
        return {slot: owner for owner, sets in self._slots.items() for slots in sets for slot in slots}
