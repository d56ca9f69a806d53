"""The overlay: what answers reads and takes writes while a transform traces.

Variables never hold a tracer. A transform pushes an `Overlay` that binds the variables it manages to the tracers of its
trace; reads are answered from there, or else from the overlay around it and at last from the variable itself; writes
stay in the overlay until the transform has returned and its caller commits them. An exception pops the overlay, and
every variable is as it was.

A read answered from outside is recorded by every overlay on the way, because each of those transforms depends on it.
"""

import contextlib
import threading
from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, Protocol, Self

import jax

from modulekit.core import foreign, provenance


class Box(Protocol):
    """What an overlay needs of a variable."""

    def stored(self) -> jax.Array:
        """Returns the array that the variable itself holds, and counts it as handed out."""
        ...

    def describe(self) -> str:
        """Returns the variable's name and path, for messages."""
        ...


class Unsettled(Exception):
    """The running attempt at a trace is abandoned: it met variables that it did not know. `args` may name one of them."""


class _Unbound(Exception):
    """A plain JAX transform was about to keep the value of a variable, where the trace around does not know it yet."""


class _Active(threading.local):
    def __init__(self) -> None:
        self.overlay: Overlay | None = None
        self.concrete = 0


_active = _Active()


class Overlay:
    """One transform's view of the variables, while it traces.

    Args:
      values: the variables that it binds, with the tracers that stand for them.
      baked: whether the values outside would be baked into a program that is not ours (`bakes_reads`).
      collects_reads: whether every read becomes an input of the program in the end, as in `jit`.
      forgiven: variables made by an earlier, abandoned attempt at this trace; `get_variable` may define them again.
      past: variables whose values inside a transform that has ended would be needed, and are not known any more.
      isolated: whether nothing that JAX keeps of this trace is used by another one (`foreign.caches_apart`).

    Attributes:
      values: the current value of each bound or written variable.
      touched: the variables that were read and not bound, in the order of the first read.
      written: the variables that were written, in the order of the first write, with the line of the last one.
      born: the variables that were made.
      inner: the variables that transforms inside bound or wrote.
      ran: the modules of which a method ran, by id (a dataclass module may have no hash).
    """

    def __init__(
        self,
        values: Mapping[Any, Any] | None = None,
        *,
        baked: bool = False,
        collects_reads: bool = False,
        forgiven: Iterable[Any] = (),
        isolated: bool = False,
        past: Iterable[Any] = (),
    ) -> None:
        self.values: dict[Any, Any] = dict(values or {})
        self.touched: dict[Any, None] = {}
        self.written: dict[Any, provenance.Origin] = {}
        self.born: dict[Any, None] = {}
        self.inner: set[Any] = set()
        self.ran: dict[int, Any] = {}
        self.outer: Overlay | None = _active.overlay
        self.forgiven: set[Any] = set(forgiven) | (self.outer.forgiven if self.outer else set())
        self._past = set(past)
        self._collects_reads = collects_reads
        self._isolates = isolated
        self._isolated: bool = isolated or (self.outer is not None and self.outer._isolated)
        self._reads_are_safe: bool = collects_reads or (self.outer is not None and self.outer._reads_are_safe)
        self._outside_is_baked = baked and not self._reads_are_safe
        self._state: Any = None

    def is_home(self) -> bool:
        """Returns whether the caller runs in this overlay's own trace, and in no plain transform inside it."""
        return bool(foreign.trace_state() == self._state)

    def __enter__(self) -> Self:
        self._apart = foreign.caches_apart(object()) if self._isolates else contextlib.nullcontext()
        self._apart.__enter__()
        self._state = foreign.trace_state()
        _active.overlay = self
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._apart.__exit__(kind, error, tb)
        _active.overlay = self.outer
        if self.outer is not None:
            self.outer.ran.update(self.ran)
            self.outer.born.update(self.born)
            self.outer.inner.update(self.inner, () if self._collects_reads else self.values)
        if isinstance(error, _Unbound) and self._collects_reads:
            raise Unsettled(*error.args) from None

    def read(self, box: Box) -> Any:
        """Returns the value of `box` at this point of the trace."""
        value = self._answer(box)
        if isinstance(value, jax.core.Tracer) or not self._is_inside_a_plain_transform():
            return value
        if not self._reads_are_safe:
            raise foreign.refuse_read(box.describe())
        if not self._isolated:  # JAX would serve the value again to the next trace, which then would miss the read
            raise _Unbound(box)
        return value

    def _answer(self, box: Box) -> Any:
        """Answers a read of this transform's function, or of an overlay inside it: that one looked at what lies between."""
        if _active.concrete and not self._has_written(box):
            return box.stored()
        if box in self._past:
            raise foreign.refuse_past_read(box.describe())
        if box in self.values:
            return self.values[box]
        self.touched[box] = None
        value = box.stored() if self.outer is None else self.outer._answer(box)
        if self._outside_is_baked and not isinstance(value, jax.core.Tracer):
            raise foreign.refuse_read(box.describe())
        return value

    def form(self, box: Box, stored: Any) -> Any:
        """Returns the value that gives the shape of `box`, which is not a read."""
        if box in self.values:
            return self.values[box]
        return stored if self.outer is None else self.outer.form(box, stored)

    def _is_inside_a_plain_transform(self) -> bool:
        return not _active.concrete and not self.is_home() and foreign.stages()

    def _has_written(self, box: Box) -> bool:
        return box in self.written or (self.outer is not None and self.outer._has_written(box))

    def write(self, box: Box, value: Any, writer: provenance.Origin | None = None) -> None:
        """Replaces the value of `box` for the rest of the trace; `writer` is the line that did, the caller's if None."""
        self.values[box] = value
        self.written[box] = writer or provenance.user_line()


def active() -> Overlay | None:
    """Returns the innermost overlay of this thread."""
    return _active.overlay


def is_isolated() -> bool:
    """Returns whether nothing that JAX keeps of the running trace is used by another one."""
    return _active.overlay is not None and _active.overlay._isolated


def bakes_reads() -> bool:
    """Returns whether a plain JAX transform stands between the caller and the innermost overlay, and would compile.

    A transform of ours asks this before it hands over to JAX: what its function reads from outside would be baked in.
    """
    running = _active.overlay
    at_home = foreign.untraced() if running is None else running.is_home()
    return not at_home and not _active.concrete and foreign.stages()


class concrete:  # noqa: N801 (a context manager that reads as a word)
    """Context in which array operations give arrays, under any trace: where variables are made.

    Reads are answered with the variables' own arrays, unless the running trace has written them.
    """

    def __enter__(self) -> None:
        self._jax = jax.ensure_compile_time_eval()
        self._jax.__enter__()
        _active.concrete += 1

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        _active.concrete -= 1
        self._jax.__exit__(kind, error, tb)


@contextlib.contextmanager
def staged() -> Iterator[None]:
    """Context in which variables are made of what is being traced; reads are answered as in a `concrete` one."""
    _active.concrete += 1
    try:
        yield
    finally:
        _active.concrete -= 1


def is_concrete() -> bool:
    """Returns whether the caller stands in a `concrete` context."""
    return _active.concrete > 0
