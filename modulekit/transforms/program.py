"""One compiled program: a function, the variables that it reads and writes, and how it is called.

Per call: one flat list of arrays in, one out; small variables go together in one (`arrangement.py`). The arrays of written
variables are donated, so that a step needs no second copy of the weights.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from modulekit.core import finite, overlay, storage, trial
from modulekit.core.counters import lendings
from modulekit.core.module import Module
from modulekit.core.packs import one_at_a_time
from modulekit.core.provenance import Tally
from modulekit.core.variable import Variable
from modulekit.transforms.arguments import join
from modulekit.transforms.arrangement import Arrangement
from modulekit.transforms.retraces import Form, form_of
from modulekit.transforms.settle import Footprint, plain
from modulekit.transforms.snapshot import Snapshot
from modulekit.transforms.staged import calls_python
from modulekit.transforms.visible import modules_of


class Program:
    """A function compiled for one structure of arguments.

    Args:
      function: the user's function.
      key: the structure and static part of its arguments.
      footprint: the variables that are known to be used; those written become donated inputs.
      donate: whether the arrays of written variables are given up to the program.
      on_trace: told the form of the arguments of each trace; it may raise, and nothing has happened then.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        key: tuple[Any, ...],
        footprint: Footprint,
        donate: bool,
        on_trace: Callable[[Form], None] = lambda _: None,
    ) -> None:
        self.writes = list(footprint.writes)
        self.reads = [v for v in footprint.reads if v not in footprint.writes]
        self._function = function
        self._key = key
        self.footprint = footprint
        self._shared: list[Variable] = []
        self._ran: dict[int, Module] = {}
        self._lendings = -1
        self._snapshot: Snapshot | None = None
        self._blocks = False
        self._tallies: dict[tuple[Any, ...], Tally] = {}  # by the shapes of the arguments; each trace may write others
        self._only_tally: Tally | None = None
        self._on_trace = on_trace
        self._forms: set[Form] = set()
        self._named: dict[str, Module] = {}
        self._donate = donate and not jax.config.jax_debug_nans  # type: ignore[attr-defined]
        self._inside = jax.jit(self._pure)
        self._arrangement: Any = None  # an `Arrangement`, from the first call outside of other transforms on

    def _arrange(self) -> None:
        """Decides where the variables go in and come out, as they lie now."""
        self._arrangement = Arrangement(self.writes, self.reads, packs=not finite.is_on())
        self._lendings = -1
        arranged = functools.partial(self._arranged, self._arrangement)
        self._undonated = jax.jit(arranged)
        self.compiled = jax.jit(arranged, donate_argnums=(0,)) if self._donate else self._undonated

    def _arranged(self, arrangement: Arrangement, given: list[Any], kept: list[Any], traced: list[Any]) -> Any:
        return arrangement.run(lambda written, read: self._pure(written, read, traced), given, kept)

    def _pure(self, written: list[Any], read: list[Any], traced: list[Any]) -> tuple[list[Any], Any]:
        args, kwargs = join(self._key, traced)
        self._named = modules_of(self._function, args, kwargs)
        self._ran.update((id(module), module) for module in self._named.values())
        bindings = dict(zip(self.writes, written, strict=True)) | dict(zip(self.reads, read, strict=True))
        with self.footprint.overlay(bindings, collects_reads=True) as running:
            result = plain(self._function(*args, **kwargs))
            self.footprint.check(running, reads=True, births=False)
        form = form_of(self._function, args, kwargs)
        if form not in self._forms:
            self._on_trace(form)
            self._forms.add(form)
        new = [running.values[v] for v in self.writes]
        self._shared = _sharing(self.writes, self.reads, new, read, result)
        self._ran.update(running.ran)
        self._tallies.setdefault(_shapes(traced), Tally()).writers = running.written
        self._only_tally = next(iter(self._tallies.values())) if len(self._tallies) == 1 else None
        return new, result

    def prepare(self, traced: list[Any]) -> None:
        """Traces the function, and gives up donation if the program talks to Python while it runs.

        Such a program may fail halfway, and the variables must be as before. So it is with all programs in `find_nonfinite`.
        """
        self._arrange()
        current = (self._arrangement.given(), self._arrangement.kept(), traced)
        self._blocks = calls_python(self.compiled.trace(*current).jaxpr) or finite.is_on()
        if self._blocks:
            self._donate = False
            self.compiled = self._undonated

    def lower(self, traced: list[Any]) -> jax.stages.Lowered:
        """Returns the lowered program; `traced` may hold `jax.ShapeDtypeStruct`s."""
        self._arrange()
        return self.compiled.lower(self._arrangement.given(), self._arrangement.kept(), traced)

    def compile(self, traced: list[Any]) -> None:
        """Traces and compiles the function; `traced` may hold `jax.ShapeDtypeStruct`s. A call is then ready to run."""
        with one_at_a_time:
            if self._arrangement is None:
                self.prepare(traced)
            if not self._arrangement.is_current():
                self._arrange()
            self.compiled.lower(self._arrangement.given(), self._arrangement.kept(), traced).compile()
        self._remember()

    def _remember(self) -> Snapshot:
        """Takes note of how the modules are that ran in the trace, if this has not been done; returns it."""
        if self._snapshot is None:
            self._snapshot = Snapshot(self._ran.values(), (*self.writes, *self.reads))
        return self._snapshot

    def is_current(self) -> bool:
        """Returns whether the modules that ran are as they were when the program was traced."""
        return self._snapshot is None or self._snapshot.holds()

    def changes(self) -> list[str]:
        """Returns what has changed in the modules that ran since the program was traced."""
        return [] if self._snapshot is None else self._snapshot.differences(self._named)

    def call(self, traced: list[Any]) -> Any:
        """Runs the program on the variables themselves and replaces the values of the written ones."""
        with one_at_a_time:
            if self._arrangement is None:  # so far, it has run inside other transforms
                self.prepare(traced)
            if not self._arrangement.is_current():
                self._arrange()
            if self.writes or self._blocks:
                result = self._call(traced)
            else:  # nothing to donate, nothing to store
                result = self.compiled([], self._arrangement.kept(), traced)[1]
        if self._snapshot is None:
            self._remember()
        for shared in self._shared:
            shared.stored()
        return result

    def _call(self, traced: list[Any]) -> Any:
        arrangement = self._arrangement
        if trial.running.trials:
            trial.note(self.writes)
        if self._donate and self._lendings != lendings.count:
            arrangement.own()
            self._lendings = lendings.count
        # `map` inside `extend` calls the program and keeps its result without returning to the interpreter, so that a
        # Ctrl-C finds either the old arrays or the new ones, and never a donated one.
        done: list[Any] = []
        arguments = ([arrangement.given()], [arrangement.kept()], [traced])
        try:
            done.extend(map(self.compiled, *arguments))
            if self._blocks:
                done = [jax.block_until_ready(done[0])]
                finite.finish(())
            arrangement.store(done[0][0])
        except BaseException:
            if done and not self._blocks:
                arrangement.store(done[0][0])
            raise
        tally = self._only_tally or self._tally_of(traced)
        if not tally.count:
            for written in tally.writers:
                written.count_writes_of(tally)
        tally.add()
        return done[0][1]

    def _tally_of(self, traced: list[Any]) -> Tally:
        return self._only_tally or self._tallies[_shapes(traced)]

    def call_inside(self, traced: list[Any]) -> Any:
        """Runs the program inside another transform, whose overlay answers and takes the values."""
        written = [v.current() for v in self.writes]
        new, result = self._inside(written, [v.current() for v in self.reads], traced)
        storage.commit(self.writes, new, self._tally_of(traced).writers)
        snapshot, running = self._remember(), overlay.active()
        if running is not None:
            running.ran.update((id(module), module) for module in snapshot.modules)
        return result


def _shapes(traced: list[Any]) -> tuple[Any, ...]:
    return tuple(map(jnp.shape, traced))


def _sharing(
    writes: list[Variable], reads: list[Variable], new: list[Any], read: list[Any], result: Any
) -> list[Variable]:
    """Returns the variables whose array JAX may also hand out elsewhere, as where a function returns a weight."""
    holders: dict[int, int] = {}
    for value in (*new, *read, *jax.tree.leaves(result)):
        holders[id(value)] = holders.get(id(value), 0) + 1
    pairs = (*zip(writes, new, strict=True), *zip(reads, read, strict=True))
    return [v for v, value in pairs if holders[id(value)] > 1]
