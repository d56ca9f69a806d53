"""Discovery: tracing a function until it is known which variables it reads, writes and makes.

Users list no variables. A transform traces with what it knows; where the trace met more, it is abandoned by raising
`Unsettled`, and repeated with the larger set. A layer's first call makes its variables in the first attempt, so that
the second settles. A function that makes new variables in every attempt never settles, and is told so.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import jax

from modulekit.core import finite, storage
from modulekit.core.arithmetic import Arithmetic, value_of
from modulekit.core.module import Module
from modulekit.core.overlay import Overlay, bakes_reads
from modulekit.core.overlay import Unsettled as Unsettled
from modulekit.core.provenance import Origin
from modulekit.core.variable import Variable
from modulekit.errors import UnsettledTraceError

T = TypeVar("T")
_ATTEMPTS = 12


@dataclass
class Footprint:
    """The variables that a function is known to use.

    Attributes:
      reads: those that it reads before it writes them, in the order of the first read.
      writes: those that it writes, in the order of the first write.
      born: those that it made.
      isolated: whether a plain JAX transform inside reads variables, so that JAX must not reuse what it traced.
      writers: the line that writes each of `writes`.
    """

    reads: dict[Variable, None] = field(default_factory=dict)
    writes: dict[Variable, None] = field(default_factory=dict)
    born: dict[Variable, None] = field(default_factory=dict)
    isolated: bool = False
    writers: dict[Variable, Origin] = field(default_factory=dict)

    def copy(self) -> "Footprint":
        """Returns a footprint that grows apart from this one."""
        return Footprint(dict(self.reads), dict(self.writes), dict(self.born), self.isolated, dict(self.writers))

    def by_name(self) -> "Footprint":
        """Returns the same with the variables in the order of their names, whether this trace has made them or not."""
        reads, writes = (dict.fromkeys(sorted(used, key=_numbered)) for used in (self.reads, self.writes))
        return Footprint(reads, writes, dict(self.born), self.isolated, dict(self.writers))

    def overlay(
        self, bindings: Mapping[Variable, Any], *, baked: bool = False, collects_reads: bool = False
    ) -> Overlay:
        """Returns the overlay of one attempt."""
        return Overlay(bindings, baked=baked, collects_reads=collects_reads, forgiven=self.born, isolated=self.isolated)

    def settle(self, attempt: Callable[[], T], transform: str) -> T:
        """Returns the result of the first attempt that meets nothing new.

        Raises:
          UnsettledTraceError: every attempt made new variables.
        """
        for _ in range(_ATTEMPTS):
            try:
                result = attempt()
                finite.finish(result)
                return result
            except Unsettled as met:
                self.reads.update(dict.fromkeys(met.args))
        last = list(self.born)[-3:]
        raise UnsettledTraceError(
            f"mk.{transform} cannot compile a function that makes new variables each time it runs: "
            + ", ".join(f"{v.name!r} (made at {v.origin})" for v in last)
            + ". Make the module once, outside the function, or its variables in a method under @mk.once"
        )

    def discover(self, function: Callable[..., Any], *args: Any) -> None:
        """Runs a function on shapes alone, and adds what it writes and makes.

        An attempt that is abandoned inside `jax.lax` costs memory that JAX never frees: the tracers and arrays that the
        loop or branch closed over. So those transforms ask first, by a trace that ends as it should.
        """
        if jax.config.jax_disable_jit:  # type: ignore[attr-defined]
            return  # nothing is traced then
        baked = bakes_reads()

        def pure(args: tuple[Any, ...]) -> Any:
            with self.overlay({}, baked=baked) as running:
                result = plain(function(*args))
            self.writes.update(dict.fromkeys(running.written))
            self.born.update(running.born)
            return result

        jax.eval_shape(pure, args)

    def check(self, seen: Overlay, *, reads: bool = False, births: bool = True) -> None:
        """Adds what an attempt met, and abandons it if that was new.

        Args:
          seen: the overlay of the attempt.
          reads: whether reads matter to the transform; where they do not, JAX closes over the values.
          births: whether a variable made in the attempt needs another one without.
        """
        new_writes = [v for v in seen.written if v not in self.writes]
        new_reads = [v for v in seen.touched if v not in self.reads] if reads else []
        new_births = list(seen.born) if births else []
        self.writes.update(dict.fromkeys(new_writes))
        self.reads.update(dict.fromkeys(new_reads))
        self.born.update(seen.born)
        self.writers.update(seen.written)
        if new_writes or new_reads or new_births:
            raise Unsettled

    def commit(self, variables: Sequence[Variable], values: Sequence[Any]) -> None:
        """Writes the new values that the settled attempt returned."""
        storage.commit(variables, values, self.writers)


def _numbered(variable: Variable) -> list[Any]:
    """Returns the name in parts that compare as people count: `linear_2` comes before `linear_10`."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", variable.name)]


def plain(tree: Any) -> Any:
    """Returns a structure with each variable in it replaced by its value."""
    return jax.tree.map(value_of, tree, is_leaf=lambda leaf: isinstance(leaf, Arithmetic))


def values_of(variables: Iterable[Variable]) -> list[jax.Array]:
    """Returns the current value of each variable, as the caller sees it."""
    return [variable.current() for variable in variables]


def listed(stacked: Sequence[Variable | Module]) -> list[Variable]:
    """Returns variables, and those of modules, each once."""
    found: dict[Variable, None] = {}
    for target in stacked:
        found.update(dict.fromkeys(target.paths().values() if isinstance(target, Module) else [target]))
    return list(found)
