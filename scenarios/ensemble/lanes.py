"""Members side by side: those whose updates are the same program are run by one, over their stacked variables.

To stack the variables of all members and to take them apart again costs as much as a small update. So it is done once for
all updates of a compiled loop: inside the context `side_by_side` a stack of each variable stands for those of the members,
which have their new values when the context ends. No member's variable is ever replaced: before and after, each holds its
own array.

On a mesh that divides the members, each device has the rows of its own ones while they are side by side, and computes what
becomes of them; it tells the others their losses after each update, and their variables when the context ends.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from modulekit.core import pieces, storage
from modulekit.core.overlay import Overlay, bakes_reads, concrete
from modulekit.core.processes import put
from modulekit.core.variable import Variable
from scenarios.base.devices import Devices
from scenarios.ensemble.programs import Program

Form = Literal["vmap", "scan", "separate"]  # all at once, in turn by one program, or each by instructions of its own

_RUNNING: ContextVar["tuple[Group, ...] | None"] = ContextVar("groups", default=None)


@dataclass(frozen=True, eq=False)
class Stack:
    """What stands for variables of several members while they are side by side.

    Attributes:
      variable: that has their values, `[members, ...]`.
      rows: of each member: one variable, or those that lie together.
    """

    variable: Variable
    rows: tuple[tuple[Variable, ...], ...]

    @classmethod
    def of(cls, columns: Iterable[Sequence[Variable]], devices: Devices) -> "Stack":
        """Returns a stack for columns of variables, one of each member."""
        rows = tuple(zip(*columns, strict=True))
        first = rows[0][0]
        with concrete():  # its value is given by `side_by_side`; where it lies says that loops lay it with no other
            start = put(jnp.zeros([len(rows)], first.dtype), devices.rows)
            return cls(Variable(start, name=first.name.split("/")[-1]), rows)

    def value(self, devices: Devices) -> Any:
        """Returns the values of the variables, one row for each member, where each device has those of its own."""
        values = devices.told([v.current() for row in self.rows for v in row])
        is_flat = len(self.rows[0]) > 1
        return devices.own(pieces.join(values).reshape(len(self.rows), -1) if is_flat else pieces.stack(values))

    def commit(self, value: Any) -> None:
        """Gives the variables the values of their rows."""
        variables = [v for row in self.rows for v in row]
        is_flat = len(self.rows[0]) > 1
        new = pieces.split(value.reshape(-1), [v.shape for v in variables]) if is_flat else pieces.unstack(value)
        storage.commit(variables, new)


class Group:
    """Members whose updates are one program.

    Args:
      members: their numbers.
      programs: their programs, which are the same.
      devices: which the members may be divided among.
      form: "vmap" or "scan": whether they are updated at once or in turn.

    Attributes:
      members: their numbers.
      devices: as given.
      changing: stacks of the variables that change, small ones together.
      kept: stacks of the others; a variable itself where all members share it.

    Raises:
      ValueError: they are to be divided among the devices, and cannot be evenly, or not in this form.
    """

    def __init__(
        self, members: Sequence[int], programs: Sequence[Program], devices: Devices, form: Form = "vmap"
    ) -> None:
        if form != "vmap" and devices.rows is not None:
            raise ValueError(
                f"form={form!r} takes members in turn; among devices they are divided by form='vmap' alone"
            )
        devices.check_divisible(members)
        self.members, self.devices = tuple(members), devices
        self._program = program = programs[0]
        self._programs, self._form = programs, form
        self._numbers = [list(program.numbers.values()) for program in programs]
        written = list(zip(*(program.writes for program in programs), strict=True))
        places = [*program.layout.groups, *([place] for place in program.layout.alone)]
        self.changing = [Stack.of([written[place] for place in group], devices) for group in places]
        self.kept = [
            column[0] if len(set(column)) == 1 else Stack.of([column], devices)
            for column in zip(*(program.reads for program in programs), strict=True)
        ]

    @property
    def is_constant(self) -> bool:
        """Whether nothing of the trace around has become part of the program."""
        return self._program.is_constant

    @property
    def flops(self) -> float:
        """The floating-point operations of an update of all of them, as `Program.flops`."""
        return len(self.members) * self._program.flops

    @property
    def variables(self) -> Iterator[Variable]:
        """Yields what the members use."""
        for program in self._programs:
            yield from program.variables

    @property
    def stacks(self) -> list[Stack]:
        """All stacks."""
        return [*self.changing, *(kept for kept in self.kept if isinstance(kept, Stack))]

    def update(self, keys: Any, step: Any, active: Any, batch: Any, has_own_examples: bool) -> jax.Array:
        """Updates the members; returns their losses, `[members of the group]`.

        Args:
          keys: the data of each member's random key, `[members of the ensemble, ...]`.
          step: the number of updates before.
          active: which members are updated, `[members of the ensemble]`; None for all.
          batch: the examples.
          has_own_examples: whether they have an axis of members.
        """
        changing = [stack.variable.current() for stack in self.changing]
        kept = [(one.variable if isinstance(one, Stack) else one).current() for one in self.kept]
        numbers = [jnp.asarray(column, jnp.float32) for column in zip(*self._numbers, strict=True)]
        keys, active = self._own(keys), None if active is None else self._own(active)
        changing, numbers, keys, active = self.devices.own((changing, numbers, keys, active))
        examples = None
        if has_own_examples:
            examples = self.devices.own(jax.tree.map(self._own, batch), rest=PartitionSpec.UNCONSTRAINED)
        kept_rows = [value if isinstance(one, Stack) else None for one, value in zip(self.kept, kept, strict=True)]
        rows = changing, kept_rows, numbers, keys, active, examples

        def lane(row: Any) -> tuple[Any, list[Any]]:
            changing, kept_row, numbers, key, active, examples = row
            reads = [whole if own is None else own for own, whole in zip(kept_row, kept, strict=True)]
            loss, new = self._program(changing, reads, numbers, key, step, batch if examples is None else examples)
            if active is not None:
                new = [jnp.where(active, after, before) for after, before in zip(new, changing, strict=True)]
            return loss, new

        if len(self.members) == 1:
            losses, new = jax.tree.map(lambda array: array[None], lane(jax.tree.map(lambda array: array[0], rows)))
        elif self._form == "scan":
            losses, new = jax.lax.map(lane, rows)
        else:
            losses, new = jax.vmap(lane, spmd_axis_name=self.devices.members_axis)(rows)
        storage.commit([stack.variable for stack in self.changing], self.devices.own(new))
        return self.devices.told(losses)

    def _own(self, array: Any) -> Any:
        """Returns the rows of the group's members."""
        if self.members == tuple(range(array.shape[0])):
            return array
        return array[np.array(self.members)]


def grouped(programs: Sequence[Program], form: Form = "vmap", devices: Devices | None = None) -> tuple[Group, ...]:
    """Returns groups of members whose programs are the same, each member in one; for "separate", each alone."""
    devices = devices or Devices(None, "data_parallel")
    groups: list[list[int]] = []
    for member, program in enumerate(programs):
        same = (group for group in groups if form != "separate" and program.is_same(programs[group[0]]))
        group = next(same, None)
        if group is None:
            groups.append([member])
        else:
            group.append(member)
    return tuple(Group(members, [programs[member] for member in members], devices, form) for members in groups)


@contextmanager
def side_by_side(groups: tuple[Group, ...]) -> Iterator[None]:
    """Context in which the members of each group are stacked; afterwards their variables have their new values."""
    values = {stack.variable: stack.value(group.devices) for group in groups for stack in group.stacks}
    token = _RUNNING.set(groups)
    try:
        with Overlay(values, baked=bakes_reads()) as running:
            yield
    finally:
        _RUNNING.reset(token)
    others = [written for written in running.written if written not in values]
    storage.commit(others, [running.values[written] for written in others])
    for group in groups:
        for stack in group.changing:
            stack.commit(group.devices.told(running.values[stack.variable]))


def running_groups() -> tuple[Group, ...] | None:
    """Returns the groups around which `side_by_side` stands, None if there is none."""
    return _RUNNING.get()
