"""Which members of a run are trained side by side, found out once and not in each trace."""

from collections.abc import Callable, Iterable
from typing import Any

import jax

from modulekit.core import context
from modulekit.core.module import Module
from modulekit.core.overlay import active
from modulekit.core.pieces import is_apart
from modulekit.transforms.snapshot import Snapshot
from scenarios.ensemble.lanes import Form, Group

Groups = tuple[Group, ...]


class Plans:
    """The groups of a run, by the structure of a batch and the form of the update.

    They hold as long as no attribute of a model or optimizer has changed, like a compiled program; whatever traces with them
    depends on these modules as if it had run them. A copy in another process finds them out anew.
    """

    def __init__(self) -> None:
        self._known: dict[Any, tuple[Snapshot, Groups]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return Plans, ()

    def groups(self, batch: Any, form: Form, modules: Iterable[Module], find_out: Callable[[], Groups]) -> Groups:
        """Returns the groups for batches of a structure.

        Args:
          batch: `jax.ShapeDtypeStruct`s or arrays.
          form: of the update.
          modules: the models and optimizers of the members.
          find_out: returns the groups, by tracing the members' updates.
        """
        leaves, tree = jax.tree.flatten(batch)
        key = (tree, tuple((leaf.shape, str(leaf.dtype)) for leaf in leaves), form, is_apart())
        known = self._known.get(key) if context.key() is None else None
        if known is None or not known[0].holds():
            groups = find_out()
            if context.key() is not None or not all(group.is_constant for group in groups):
                return groups  # they depend on what is around them
            known = Snapshot(modules, [v for group in groups for v in group.variables]), groups
            self._known[key] = known
        running = active()
        if running is not None:
            running.ran.update((id(module), module) for module in known[0].modules)
        return known[1]
