"""Where new variables are made: usually as arrays, one operation after the other, on the device that JAX takes.

While a `placement` is open, what a method under `once` computes becomes one compiled program whose results lie where the
placement says, so that no device ever holds a variable of which it is to have a part.

Inside `without_values` nothing is computed: a new variable holds a `jax.ShapeDtypeStruct` in place of an array, and has its
shape, its dtype and its sharding, but no value. Functions that use it can be traced and compiled, and not called.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun  # type: ignore[attr-defined]

from modulekit.core import overlay, trial

Body = Callable[..., Any]
Place = Callable[[Any], jax.sharding.Sharding | None]


class _Thread(threading.local):
    def __init__(self) -> None:
        self.place: Place | None = None
        self.made: list[Any] | None = None  # by the body that is being traced
        self.has_values = True
        self.programs: dict[Any, Any] = {}


_thread = _Thread()


@contextlib.contextmanager
def placement(place: Place) -> Iterator[None]:
    """Context in which variables made under `once` are computed where they are to lie.

    Args:
      place: takes a variable and returns its sharding. Its module has it as an attribute by then.
    """
    before = _thread.place, _thread.programs
    _thread.place, _thread.programs = place, {}
    try:
        yield
    finally:
        _thread.place, _thread.programs = before


@contextlib.contextmanager
def without_values() -> Iterator[None]:
    """Context in which variables are made of shapes alone, and those that are moved lose their values."""
    before, _thread.has_values = _thread.has_values, False
    try:
        yield
    finally:
        _thread.has_values = before


def have_values() -> bool:
    """Returns whether new variables have values."""
    return _thread.has_values


def is_traced() -> bool:
    """Returns whether the caller runs in a body whose arrays are traced, and variables may be made of tracers."""
    return _thread.made is not None


def note(variable: Any) -> None:
    """Takes note of a new variable."""
    if _thread.made is None:
        trial.note([variable])
    else:
        _thread.made.append(variable)


def run(body: Body, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Runs a body that makes variables, and returns what it returns."""
    if is_traced():  # a part of the body around
        return body(*args, **kwargs)
    if _thread.place is None:
        with overlay.concrete():
            return body(*args, **kwargs)
    return _run_placed(body, args, kwargs, _thread.place)


def run_outside(body: Callable[[], Any]) -> Any:
    """Runs a body that makes variables outside of `once`, such as slots, which a `placement` says nothing of."""
    if _thread.has_values or is_traced():
        with computing():
            return body()
    return _run_placed(body, (), {}, lambda _: None)


def computing() -> AbstractContextManager[Any]:
    """Returns the context in which first values are computed: as arrays under any trace, but in a body that is traced."""
    return contextlib.nullcontext() if is_traced() else overlay.concrete()


def _run_placed(body: Body, args: Sequence[Any], kwargs: Mapping[str, Any], place: Place) -> Any:
    made: list[Any] = []
    returned: list[Any] = []

    def traced() -> list[Any]:
        _thread.made = made
        try:
            returned.append(body(*args, **kwargs))
        finally:
            _thread.made = None
        return [variable._held for variable in made]

    with overlay.staged():
        program = jax.make_jaxpr(traced)()
    shardings = [place(variable) for variable in made]
    if _thread.has_values:
        with overlay.concrete():
            arrays = _compiled(program, shardings)(program.consts)
    else:
        pairs = zip(program.out_avals, shardings, strict=True)
        arrays = [jax.ShapeDtypeStruct(form.shape, form.dtype, sharding=lies) for form, lies in pairs]
    for variable, array in zip(made, arrays, strict=True):
        variable._held = array
    trial.note(made)
    return returned[0]


def _compiled(program: Any, shardings: Sequence[Any]) -> Any:
    """Returns the compiled function from a program's constants to its results: one for all layers that are alike."""
    key = str(program.jaxpr), tuple((c.shape, c.dtype) for c in program.consts), tuple(shardings)
    if key not in _thread.programs:

        def compute(consts: list[Any]) -> list[Any]:
            found: list[Any] = jaxpr_as_fun(ClosedJaxpr(program.jaxpr, consts))()
            return found

        _thread.programs[key] = jax.jit(compute, out_shardings=list(shardings))
    return _thread.programs[key]
