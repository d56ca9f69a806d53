"""`jit`: a compiled function that reads and writes variables like an ordinary one."""

import functools
from collections.abc import Callable
from typing import Any, Generic, ParamSpec, TypeVar

import jax

from modulekit.core import finite, foreign, overlay
from modulekit.core.methods import in_scope
from modulekit.core.module import Module
from modulekit.transforms.arguments import split
from modulekit.transforms.build import trace_abstractly
from modulekit.transforms.eager import is_eager, run_eagerly
from modulekit.transforms.program import Program
from modulekit.transforms.retraces import Form, History
from modulekit.transforms.settle import Footprint, Unsettled

P = ParamSpec("P")
R = TypeVar("R")


class Jitted(Generic[P, R]):
    """A function compiled by `jit`: one program for each structure of arguments and each set of static values."""

    def __init__(
        self, function: Callable[P, R], donate: bool, known: Footprint | None = None, max_traces: int | None = None
    ) -> None:
        functools.update_wrapper(self, function)
        self._history = History(getattr(function, "__name__", type(function).__name__), max_traces)
        self._changed: list[str] = []
        self._function = function
        self._donate = donate
        self._known = known
        self._plain_programs: dict[tuple[Any, ...], Program] = {}
        self._tapped_programs: dict[tuple[Any, ...], Program] = {}  # those compiled in `find_nonfinite`

    def __set_name__(self, owner: type, name: str) -> None:
        if issubclass(owner, Module):
            self._function = in_scope(self._function)

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else functools.partial(self, instance)

    @property
    def traces(self) -> tuple[str, ...]:
        """One sentence for each time that the function was traced and compiled: when, and why again."""
        return tuple(self._history.texts)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Runs the compiled function; compiles it first where the arguments or the modules are new."""
        traced, key = split(args, kwargs)
        if is_eager():
            return run_eagerly(self._function, key, traced)
        program = self._programs.get(key)
        if program is not None and program.is_current():
            try:
                if overlay.active() is None and foreign.untraced():
                    return program.call(traced)
                return program.call_inside(traced)
            except Unsettled:
                return self._settled(key, traced, program.footprint)[1]
        self._changed = [] if program is None else program.changes()
        return self._settled(key, traced, self._start())[1]

    @property
    def _programs(self) -> dict[tuple[Any, ...], Program]:
        return self._tapped_programs if finite.is_on() else self._plain_programs

    def _start(self) -> Footprint:
        return Footprint() if self._known is None else self._known.copy()

    def _settled(self, key: tuple[Any, ...], traced: list[Any], footprint: Footprint) -> tuple[Program, Any]:
        def attempt() -> tuple[Program, Any]:
            if not footprint.reads and not footprint.writes:
                trace_abstractly(self._function, key, traced, footprint)
            program = Program(self._function, key, footprint, self._donate, self._note)
            if overlay.active() is None and foreign.untraced():
                program.prepare(traced)
                return program, program.call(traced)
            return program, program.call_inside(traced)

        program, result = footprint.settle(attempt, "jit")
        self._programs[key] = program
        return program, result

    def _note(self, form: Form) -> None:
        changed, self._changed = self._changed, []
        self._history.add(form, changed)

    def lower(self, *args: P.args, **kwargs: P.kwargs) -> jax.stages.Lowered:
        """Returns the lowered program for these arguments, with JAX's `as_text`, `compile`, `cost_analysis`.

        Variables that do not exist yet are made; nothing is computed and no variable changes.
        """
        traced, key = split(args, kwargs)
        footprint = Footprint()

        def attempt() -> jax.stages.Lowered:
            if not footprint.reads and not footprint.writes:
                trace_abstractly(self._function, key, traced, footprint)
            return Program(self._function, key, footprint, self._donate).lower(traced)

        return footprint.settle(attempt, "jit")


def jit(
    function: Callable[P, R], *, donate: bool = True, known: Footprint | None = None, max_traces: int | None = None
) -> Jitted[P, R]:
    """Compiles a function with XLA. It finds the variables by itself, and their new values are there on return.

    Arrays and numbers among the arguments are traced. Booleans, strings, None, functions and modules are static: each
    new one compiles another program. So does a change of an attribute of a module that ran, or of `trainable`.

    Args:
      function: any function of arrays that may read, write and make variables. Its Python side effects happen while
        it is traced, which may be more than once for the first call.
      donate: gives the old arrays of written variables to the program, so that no second copy is needed. An array
        that `.value` handed out stays valid in any case.
      known: what `mk.footprint` found out about the function, which saves a trace; found out here if None.
      max_traces: how many programs may be compiled; any number if None.

    Returns:
      The compiled function. If it raises, all variables are as before. Its `traces` tell when it was traced and why; the
      logger `modulekit` has the same, at level INFO.

    Raises:
      RetraceError: on the call, if it would be traced more than `max_traces` times.
      UnsettledTraceError: on the call, if the function makes new variables each time.

    >>> import modulekit as mk
    >>> count = mk.Variable(0, name="count")
    >>> @mk.jit
    ... def add(x):
    ...     count.assign_add(x)
    ...     return 2 * x
    >>> int(add(3)), int(count)
    (6, 3)
    """
    return Jitted(function, donate, known, max_traces)
