"""Drawing the first values of some variables anew.

A variable is made by its module, in a method under `once` or in the constructor. What made it runs again on a copy of the
module, under another seed, and only the values are taken over: the variables stay the same objects, with their ties and
their optimizer slots.
"""

import copy
import warnings
from collections.abc import Iterator
from typing import Any, cast

import jax
import jax.numpy as jnp

from modulekit.core import collect, draws, freezing, names, overlay, provenance
from modulekit.core.once import Once
from modulekit.core.streams import stream_of
from modulekit.core.variable import Variable
from modulekit.errors import TieWarning


def reinitialize(module: Any, pattern: str, seed: int, module_type: type) -> tuple[str, ...]:
    """Gives variables of a module new first values, as `Module.reinitialize` says; returns their paths."""
    if overlay.active() is not None:
        raise RuntimeError("reinitialize was called inside a transform: call it between two steps")
    wanted = freezing.chosen(module, pattern, module_type)
    wanted = {path: v for path, v in wanted.items() if stream_of(v) is None}
    chosen = set(wanted.values())
    makers = [module, *(inner for _, inner in collect.walk(module, module_type, module_type))]
    # Modules of one name count their draws together, so that those which are not wanted have to draw as well.
    scopes = {maker.scope_name for maker in makers if any(v in chosen for _, v in _held(maker, module_type))}
    values: dict[Variable, jax.Array] = {}
    with draws.seeded(seed):
        for maker in makers:
            places = {path: v for path, v in _held(maker, module_type) if v not in values}
            if places and maker.scope_name in scopes:
                values.update(_drawn(maker, places, module_type))
    missing = [path for path, v in wanted.items() if v not in values]
    if missing:
        raise ValueError(
            f"{', '.join(missing)} of {module!r} cannot be drawn anew: a variable can be if its module makes it in a method "
            "under @mk.once, called with arrays and plain values, or in the constructor of a module that was not copied "
            "since. Nothing has changed; assign the others by hand"
        )
    writer = provenance.user_line()
    for variable in chosen:
        variable.replace(values[variable], writer)
    return tuple(wanted)


def _held(module: Any, module_type: type) -> Iterator[tuple[collect.Path, Variable]]:
    """Yields the variables among a module's own attributes, with their paths in it."""
    for path, leaf in collect.own_leaves(module, module_type):
        if isinstance(leaf, Variable):
            yield path, leaf


def _drawn(maker: Any, places: dict[collect.Path, Variable], module_type: type) -> dict[Variable, jax.Array]:
    """Returns the new values of the variables at `places` that the module itself makes."""
    before = draws.snapshot()
    fresh = dict(_held(_built_again(maker), module_type))
    if any(fresh.get(path) is v for path, v in places.items()) and maker._construction is not None:
        draws.restore(before)  # the constructor comes first
        scope = maker.scope_name.rpartition("/")[0]
        args, kwargs = maker._construction
        with names.absolute(scope):
            constructed = dict(_held(type(maker)(*args, **kwargs), module_type))
        again = dict(_held(_built_again(maker), module_type))
        fresh = constructed | {path: v for path, v in again.items() if v is not places.get(path)}
    made = {v: fresh[path] for path, v in places.items() if path in fresh and _is_redrawn(v, fresh[path])}
    return {v: new.stored() for v, new in made.items() if v not in dict.fromkeys(fresh.values())}


def _is_redrawn(variable: Variable, new: Variable) -> bool:
    return new is not variable and (new.shape, new.dtype) == (variable.shape, variable.dtype)


def _built_again(module: Any) -> Any:
    """Returns a copy of a module, with the same parts, on which all that ran under `once` has run again."""
    again = cast(Any, type(module)).__new__(type(module))
    attributes, hidden = module.__getstate__()
    parts = {id(leaf): leaf for _, leaf in collect.leaves(attributes)}
    vars(again).update(copy.deepcopy(attributes, parts))  # its own lists and dicts, of the same parts
    object.__setattr__(again, "_modulekit", hidden.fresh())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TieWarning)  # the copy is thrown away
        for key, built in module._once_done.items():
            if built.arguments is not None:
                args, kwargs = jax.tree.map(_zeros, built.arguments)
                _once_of(type(module), key).__get__(again)(*args, **kwargs)
    return again


def _zeros(spec: Any) -> Any:
    return jnp.zeros(spec.shape, spec.dtype) if isinstance(spec, jax.ShapeDtypeStruct) else spec


def _once_of(cls: type, key: str) -> Once:
    found = (value for base in cls.__mro__ for value in vars(base).values() if isinstance(value, Once))
    return next(once for once in found if once.function.__qualname__ == key)
