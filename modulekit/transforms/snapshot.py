"""What a compiled program assumed of the modules that it ran.

A trace reads attributes as plain Python: a rate, an activation, the list of layers, `trainable`. The program is right
as long as they are the same. Assigning an attribute of a module that some program ran counts up `changes`, so that an
unchanged count needs no look; lists and dicts change without an assignment: their elements are compared by identity.
"""

import functools
import inspect
import operator
from collections.abc import Iterable, Iterator
from typing import Any

import jax

from modulekit.core import collect
from modulekit.core.module import Module, modules_in
from modulekit.core.variable import Variable, changes

_PLAIN = (bool, int, float, complex, str, bytes)


class Snapshot:
    """The attributes of some modules, and of all modules inside them, at one moment."""

    def __init__(self, modules: Iterable[Module]) -> None:
        self._modules: dict[int, Module] = {}
        for module in modules:
            self._modules.update((id(inner), inner) for inner in modules_in(module))
        self._attributes = {key: dict(vars(module)) for key, module in self._modules.items()}
        self._trainable = [(variable, variable.trainable) for variable in self._variables()]
        self._containers = [
            (container, tuple(_elements(container)))
            for module in self._modules.values()
            for container in collect.mutable_containers(module)
        ]
        for module in self._modules.values():
            module._hidden.watched = True
        self._count = changes.count

    @property
    def modules(self) -> Iterable[Module]:
        """The modules that are looked at."""
        return self._modules.values()

    def _variables(self) -> Iterable[Variable]:
        for module in self._modules.values():
            for value in vars(module).values():
                yield from (leaf for _, leaf in collect.leaves(value) if isinstance(leaf, Variable))

    def holds(self) -> bool:
        """Returns whether everything is as it was."""
        for container, elements in self._containers:
            if len(container) != len(elements) or not all(map(operator.is_, _elements(container), elements)):
                return False
        if self._count == changes.count:
            return True
        if not self._attributes_hold():
            return False
        self._count = changes.count
        return True

    def _attributes_hold(self) -> bool:
        for key, module in self._modules.items():
            now, then = vars(module), self._attributes[key]
            if now.keys() != then.keys() or not all(_same(now[name], then[name]) for name in then):
                return False
        return all(variable.trainable == flag for variable, flag in self._trainable)


def _elements(container: Any) -> Iterable[Any]:
    return container.values() if isinstance(container, dict) else container


def _same(now: Any, then: Any) -> bool:
    if now is then:
        return True
    if type(now) is not type(then):
        return False
    if isinstance(now, tuple):
        return len(now) == len(then) and all(map(_same, now, then))
    return isinstance(now, _PLAIN) and bool(now == then)


def modules_of(function: Any, arguments: Any) -> Iterator[Module]:
    """Yields the modules that a function can see: in its arguments, its closure and the globals that it names."""
    yield from (leaf for leaf in jax.tree.leaves(arguments) if isinstance(leaf, Module))
    while isinstance(function, functools.partial):
        yield from (leaf for leaf in jax.tree.leaves((function.args, function.keywords)) if isinstance(leaf, Module))
        function = function.func
    if isinstance(getattr(function, "__self__", None), Module):
        yield function.__self__
    if isinstance(function, Module):
        yield function
    function = inspect.unwrap(getattr(function, "__func__", function))
    if inspect.isfunction(function):
        seen = inspect.getclosurevars(function)
        yield from (value for value in (*seen.nonlocals.values(), *seen.globals.values()) if isinstance(value, Module))
