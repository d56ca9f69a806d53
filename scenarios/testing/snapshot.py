"""What an object holds beside variables, path by path, to see whether something has changed it."""

import functools
import itertools
import random
import types
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import Any

import jax
import numpy as np

import modulekit as mk
from scenarios.base.scenario import Scenario
from scenarios.base.settings import Settings

Snapshot = dict[str, Any]

_DEPTH = 8
_OPAQUE = (type, types.ModuleType, types.FunctionType, types.MethodType, types.BuiltinFunctionType, Settings)
_NOWHERE = "nothing"


def of_parts(parts: Mapping[str, Any]) -> Snapshot:
    """Returns the public attributes of the modules among parts, and of modules in them; variables are known by identity."""
    found: Snapshot = {}
    for name, part in parts.items():
        found.update(_walk(part, name, False, ()))
    return found


def of_scenario(scenario: Scenario) -> Snapshot:
    """Returns all that a scenario could keep from one update to the next.

    That is its attributes, those of its classes, and the values that its methods find in their modules or around their
    definitions.
    """
    found: Snapshot = {}
    for name, value in vars(scenario).items():
        found.update(_walk(value, f"self.{name}", True, ()))
    for kind in type(scenario).__mro__:
        if kind is Scenario:
            break
        for name, value in vars(kind).items():
            if isinstance(value, types.FunctionType):
                for outer, held in _surroundings(value):
                    found.update(_walk(held, f"{outer} of {kind.__module__}", True, ()))
            elif not name.startswith("__") and not isinstance(value, property | classmethod | staticmethod):
                found.update(_walk(value, f"{kind.__name__}.{name}", True, ()))
    return found


def change(before: Snapshot, after: Snapshot) -> str | None:
    """Returns what has changed first, None if nothing has.

    >>> change({"self.count": "0"}, {"self.count": "8"})
    'self.count was 0, and is 8'
    """
    for path in {**before, **after}:
        was, now = before.get(path, _NOWHERE), after.get(path, _NOWHERE)
        if was != now:
            return f"{path} was {_shown(was)}, and is {_shown(now)}"
    return None


def _shown(value: Any) -> str:
    text = f"another {value[0]}" if isinstance(value, tuple) else str(value)
    return text if len(text) <= 80 else f"{text[:80]}…"


def _walk(value: Any, path: str, with_values: bool, above: tuple[int, ...]) -> Iterator[tuple[str, Any]]:
    """Yields `(path, what is compared)` of everything in a value; `with_values` reads variables and private attributes."""
    below = functools.partial(_walk, with_values=with_values, above=(*above, id(value)))
    if id(value) in above or len(above) > _DEPTH:
        return
    if isinstance(value, mk.Variable):
        yield path, _of_array(value.numpy()) if with_values else ("variable", id(value))
    elif isinstance(value, np.ndarray | jax.Array):
        yield path, _of_array(np.asarray(value))
    elif isinstance(value, np.random.Generator):
        yield path, str(value.bit_generator.state)
    elif isinstance(value, random.Random | np.random.RandomState):
        yield path, str(value.getstate() if isinstance(value, random.Random) else value.get_state())
    elif isinstance(value, Mapping):
        yield from _each(below, ((f"{path}[{_key(key)}]", item) for key, item in value.items()))
    elif isinstance(value, list | tuple):
        yield from _each(below, ((f"{path}[{index}]", item) for index, item in enumerate(value)))
    elif isinstance(value, AbstractSet):
        yield path, sorted(map(repr, value))
    elif isinstance(value, _OPAQUE) or _is_compiled(value):
        yield path, (type(value).__name__, id(value))
    elif hasattr(value, "__dict__"):
        yield path, (type(value).__name__, id(value))
        held = vars(value).items()
        public = ((f"{path}.{name}", item) for name, item in held if with_values or not name.startswith("_"))
        yield from _each(below, public)
    else:
        yield path, repr(value)


def _each(below: Any, items: Iterator[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    return itertools.chain.from_iterable(below(item, path) for path, item in items)


def _of_array(array: np.ndarray[Any, Any]) -> Any:
    return str(array) if array.size == 1 else ("array", array.dtype, array.shape, array.tobytes())


def _key(key: Any) -> str:
    return key.name if isinstance(key, mk.Variable) else repr(key)


def _is_compiled(value: Any) -> bool:
    """Returns whether it is a function that a library has wrapped, such as `jax.jit`'s."""
    return (
        callable(value) and not isinstance(value, mk.Module) and type(value).__module__.startswith(("jax", "modulekit"))
    )


def _surroundings(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """Yields what a function finds outside of itself by name: globals and variables of the functions around it."""
    for name in sorted(_names(function.__code__)):
        value = function.__globals__.get(name)
        if value is not None and not (callable(value) and not isinstance(value, mk.Module)):
            yield f"the global {name}", value
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        if name == "__class__":
            continue
        try:
            yield f"the outer {name}", cell.cell_contents
        except ValueError:  # not assigned yet
            continue


def _names(code: types.CodeType) -> set[str]:
    inner = (constant for constant in code.co_consts if isinstance(constant, types.CodeType))
    return set(code.co_names).union(*map(_names, inner))
