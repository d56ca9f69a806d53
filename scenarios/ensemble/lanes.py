"""Members side by side: those whose updates are the same program are run by one, over their stacked variables.

To stack the variables of all members and to take them apart again costs as much as a small update. So it is done once for
all updates of a compiled loop: inside the context `side_by_side` a stack of each variable stands for those of the members,
which have their new values when the context ends. No member's variable is ever replaced: before and after, each holds its
own array.
"""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from modulekit.core import pieces, storage
from modulekit.core.overlay import Overlay, bakes_reads, concrete
from modulekit.core.variable import Variable
from scenarios.ensemble.programs import Program

_RUNNING: ContextVar["tuple[Group, ...] | None"] = ContextVar("groups", default=None)


class Group:
    """Members whose updates are one program.

    Args:
      members: their numbers.
      programs: their programs, which are the same.

    Attributes:
      members: their numbers.
    """

    def __init__(self, members: Sequence[int], programs: Sequence[Program]) -> None:
        self.members = tuple(members)
        self._program = programs[0]
        self._numbers = [list(program.numbers.values()) for program in programs]
        self._columns = list(zip(*(program.variables for program in programs), strict=True))
        self._is_shared = [len(set(column)) == 1 for column in self._columns]
        with concrete():  # what stands for a column of variables; its value is given by `side_by_side`
            self._stacks = [
                column[0] if shared else Variable(jnp.zeros([], column[0].dtype), name=column[0].name.split("/")[-1])
                for column, shared in zip(self._columns, self._is_shared, strict=True)
            ]

    @property
    def is_constant(self) -> bool:
        """Whether nothing of the trace around has become part of the program."""
        return self._program.is_constant

    @property
    def variables(self) -> Iterator[Variable]:
        """Yields what the members use."""
        yield from itertools.chain(*self._columns)

    @property
    def stacked(self) -> Iterator[tuple[Variable, tuple[Variable, ...], bool]]:
        """Yields each stack, the variables that it stands for, and whether they change."""
        for place, (stack, column) in enumerate(zip(self._stacks, self._columns, strict=True)):
            if not self._is_shared[place]:
                yield stack, column, place in self._program.written

    def update(self, keys: Any, step: Any, active: Any, batch: Any, has_own_examples: bool) -> jax.Array:
        """Updates the members; returns their losses, `[members of the group]`.

        Args:
          keys: the data of each member's random key, `[members of the ensemble, ...]`.
          step: the number of updates before.
          active: which members are updated, `[members of the ensemble]`; None for all.
          batch: the examples.
          has_own_examples: whether they have an axis of members.
        """
        values = [stack.current() for stack in self._stacks]
        axes = [None if shared else 0 for shared in self._is_shared]
        numbers = [jnp.asarray(column, jnp.float32) for column in zip(*self._numbers, strict=True)]
        keys, active = self._own(keys), None if active is None else self._own(active)
        batch = jax.tree.map(self._own, batch) if has_own_examples else batch

        def lane(values: list[Any], numbers: list[Any], key: Any, active: Any, batch: Any) -> tuple[Any, list[Any]]:
            loss, new = self._program(values, numbers, key, step, batch)
            if active is not None:
                before = [values[place] for place in self._program.written]
                new = [jnp.where(active, after, old) for after, old in zip(new, before, strict=True)]
            return loss, new

        if len(self.members) == 1:
            examples = _first(batch) if has_own_examples else batch
            loss, new = lane(values, _first(numbers), _first(keys), _first(active), examples)
            losses = loss[None]
        else:
            batch_axis = 0 if has_own_examples else None
            losses, new = jax.vmap(lane, (axes, 0, 0, 0, batch_axis))(values, numbers, keys, active, batch)
        storage.commit([self._stacks[place] for place in self._program.written], new)
        return losses

    def _own(self, array: Any) -> Any:
        """Returns the rows of the group's members."""
        if self.members == tuple(range(array.shape[0])):
            return array
        return array[np.array(self.members)]


def _first(tree: Any) -> Any:
    return jax.tree.map(lambda array: array[0], tree)


def grouped(programs: Sequence[Program], vectorized: bool) -> tuple[Group, ...]:
    """Returns groups of members whose programs are the same, each member in one; where not `vectorized`, each alone."""
    groups: list[list[int]] = []
    for member, program in enumerate(programs):
        same = (group for group in groups if vectorized and program.is_same(programs[group[0]]))
        group = next(same, None)
        if group is None:
            groups.append([member])
        else:
            group.append(member)
    return tuple(Group(members, [programs[member] for member in members]) for members in groups)


@contextmanager
def side_by_side(groups: tuple[Group, ...]) -> Iterator[None]:
    """Context in which the members of each group are stacked; afterwards their variables have their new values."""
    columns = [entry for group in groups for entry in group.stacked]
    stacks = {stack: pieces.stack([v.current() for v in column]) for stack, column, _ in columns}
    token = _RUNNING.set(groups)
    try:
        with Overlay(stacks, baked=bakes_reads()) as running:
            yield
    finally:
        _RUNNING.reset(token)
    others = [written for written in running.written if written not in stacks]
    storage.commit(others, [running.values[written] for written in others])
    for stack, column, changes in columns:
        if changes:
            storage.commit(column, pieces.unstack(running.values[stack]))


def running_groups() -> tuple[Group, ...] | None:
    """Returns the groups around which `side_by_side` stands, None if there is none."""
    return _RUNNING.get()
