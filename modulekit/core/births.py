"""Where new variables are made: usually as arrays, one operation after the other, on the device that JAX takes.

While a `placement` is open, what a method under `once` computes becomes one compiled program whose results lie where the
placement says, so that no device ever holds a variable of which it is to have a part.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from modulekit.core import overlay, trial

Body = Callable[..., Any]
Place = Callable[[Any], jax.sharding.Sharding]


class _Thread(threading.local):
    def __init__(self) -> None:
        self.place: Place | None = None
        self.made: list[Any] | None = None  # by the body that is being traced
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
    with overlay.concrete():
        arrays = _compiled(program, shardings)(program.consts)
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
