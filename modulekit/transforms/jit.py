"""`jit`: a compiled function that reads and writes variables like an ordinary one."""

import functools
from collections.abc import Callable, Hashable
from typing import Any, Generic, ParamSpec, Self, TypeVar, cast

import jax

from modulekit.core import context, finite, foreign, overlay
from modulekit.core.methods import in_scope
from modulekit.core.module import Module
from modulekit.transforms.arguments import split
from modulekit.transforms.build import trace_abstractly
from modulekit.transforms.eager import is_eager, run_eagerly
from modulekit.transforms.program import Program
from modulekit.transforms.retraces import History
from modulekit.transforms.settle import Footprint, Unsettled

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
_MORE_VARIABLES = ["a later call has used more variables"]
_OTHER_CONTEXT = "variable getters or the mixed-precision mode around the call changed"


class Jitted(Generic[P, R]):
    """A function compiled by `jit`: one program for each structure of arguments and each set of static values."""

    def __init__(
        self, function: Callable[P, R], donate: bool, known: Footprint | None = None, max_traces: int | None = None
    ) -> None:
        functools.update_wrapper(self, function)
        name = _name_of(function)
        self._history = History(name, max_traces)
        self._tapped_history = History(f"{name}, in find_nonfinite,", None)
        self._function = function
        self._donate = donate
        self._known = known
        self._plain_programs: dict[tuple[Any, ...], Program] = {}
        self._other_programs: dict[Hashable, dict[tuple[Any, ...], Program]] = {}  # by what was switched on

    def __set_name__(self, owner: type, name: str) -> None:
        if issubclass(owner, Module):
            self._function = in_scope(self._function)

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else _Bound(self, instance)

    @property
    def traces(self) -> tuple[str, ...]:
        """One sentence for each time that the function was traced and compiled, and why again; not in `find_nonfinite`."""
        return tuple(self._history.texts)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Runs the compiled function; compiles it first where the arguments or the modules are new."""
        traced, key = split(args, kwargs)
        # The common case, which each step pays for: as flat as can be.
        program = self._plain_programs.get(key)
        if (
            program is not None
            and context.key() is None
            and overlay.active() is None
            and foreign.untraced()
            and not is_eager()
            and program.is_current()
        ):
            try:
                return program.call(traced)
            except Unsettled:
                return self._settled(key, traced, program.footprint, [], _MORE_VARIABLES, _call)
        if is_eager():
            return run_eagerly(self._function, key, traced)
        return self._used(key, traced, _call)

    def _used(self, key: tuple[Any, ...], traced: list[Any], use: Callable[[Program, list[Any]], T]) -> T:
        """Uses the program for these arguments, which is made first where the arguments or the modules are new."""
        around = context.key()
        program = (self._plain_programs if around is None else self._programs(around)).get(key)
        if program is not None and program.is_current():
            try:
                return use(program, traced)
            except Unsettled:
                return self._settled(key, traced, program.footprint, [], _MORE_VARIABLES, use)
        changed = self._other_context(key) if program is None else program.changes()
        return self._settled(key, traced, self._start(), changed, changed, use)

    def _programs(self, around: Hashable) -> dict[tuple[Any, ...], Program]:
        return self._plain_programs if around is None else self._other_programs.setdefault(around, {})

    def _other_context(self, key: tuple[Any, ...]) -> list[str]:
        """Returns why a call with arguments that another program knows is traced again: what is switched on around it."""
        known = [programs for programs in (self._plain_programs, *self._other_programs.values()) if key in programs]
        return [_OTHER_CONTEXT] if known and not finite.is_on() else []

    def _start(self) -> Footprint:
        return Footprint() if self._known is None else self._known.copy()

    def _settled(
        self,
        key: tuple[Any, ...],
        traced: list[Any],
        footprint: Footprint,
        changed: list[str],
        changed_for_others: list[str],
        use: Callable[[Program, list[Any]], T],
    ) -> T:
        history = self._tapped_history if finite.is_on() else self._history
        note = history.of_a_program(changed, changed_for_others)

        def attempt() -> tuple[Program, T]:
            if not footprint.reads and not footprint.writes:
                trace_abstractly(self._function, key, traced, footprint)
            program = Program(self._function, key, footprint, self._donate, note)
            return program, use(program, traced)

        program, result = footprint.settle(attempt, "jit")
        self._programs(context.key())[key] = program
        return result

    def compile(self, *args: Any, **kwargs: Any) -> Self:
        """Compiles the function for arguments like these before its first call, and returns it.

        Variables that do not exist yet are made; nothing is computed and no variable changes.

        Args:
          *args: arrays, or `jax.ShapeDtypeStruct`s in their place; static arguments as in a call.
          **kwargs: the same, by name.

        Raises:
          RuntimeError: it was called inside a transform, which compiles what is called in it.

        >>> import modulekit as mk
        >>> double = mk.jit(lambda x: 2 * x).compile(jax.ShapeDtypeStruct([3], "float32"))
        >>> len(double.traces), double(jax.numpy.ones(3)).tolist(), len(double.traces)
        (1, [2.0, 2.0, 2.0], 1)
        """
        if overlay.active() is not None or not foreign.untraced():
            name = _name_of(self._function)
            raise RuntimeError(
                f"{name} was to be compiled inside a transform, which compiles it by itself: do it outside"
            )
        traced, key = split(args, kwargs)
        if not is_eager():
            self._used(key, traced, Program.compile)
        return self

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


def _call(program: Program, traced: list[Any]) -> Any:
    if overlay.active() is None and foreign.untraced():
        return program.call(traced)
    return program.call_inside(traced)


class _Bound(functools.partial[Any]):
    """A compiled method of one object."""

    @property
    def traces(self) -> tuple[str, ...]:
        """Those of the method, for all objects."""
        return tuple(cast(Any, self.func).traces)

    def compile(self, *args: Any, **kwargs: Any) -> Self:
        """Compiles the method before its first call, as `Jitted.compile` does."""
        cast(Any, self.func).compile(*self.args, *args, **kwargs)
        return self

    def lower(self, *args: Any, **kwargs: Any) -> jax.stages.Lowered:
        """Returns the lowered program, as `Jitted.lower` does."""
        return cast(Any, self.func).lower(*self.args, *args, **kwargs)


def _name_of(function: Any) -> str:
    while isinstance(function, functools.partial):
        function = function.func
    return str(getattr(function, "__name__", type(function).__name__))


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
      max_traces: how many programs may be compiled; any number if None. Those for `mk.find_nonfinite` do not count.

    Returns:
      The compiled function. If it raises, all variables are as before. Its `traces` tell when it was traced and why; the
      logger `modulekit` has the same, at level INFO.

    Raises:
      RetraceError: on the call, if it would be traced more than `max_traces` times.
      UnsettledTraceError: on the call, if the function makes new variables each time.

    Source: JAX, `jax.jit`, over variables.

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
