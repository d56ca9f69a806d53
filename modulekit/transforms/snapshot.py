"""What a compiled program assumed of the modules that it ran.

A trace reads attributes as plain Python: a rate, an activation, the list of layers, `trainable`. The program is right
as long as they are the same. Assigning an attribute of a module that some program ran counts up `changes`, so that an
unchanged count needs no look; lists and dicts change without an assignment: their elements are compared by identity.
"""

import operator
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from modulekit.core import collect
from modulekit.core.chain import text_of
from modulekit.core.counters import changes
from modulekit.core.module import Module, modules_in
from modulekit.core.variable import Variable
from modulekit.transforms.retraces import changed_text

_PLAIN = (bool, int, float, complex, str, bytes)
_ABSENT = object()


class Snapshot:
    """The attributes of some modules and of all modules inside them, and the flags of variables, at one moment.

    Args:
      modules: those that a program ran.
      variables: those that it used.
    """

    def __init__(self, modules: Iterable[Module], variables: Iterable[Variable]) -> None:
        self._modules: dict[int, Module] = {}
        for module in modules:
            self._modules.update((id(inner), inner) for inner in modules_in(module))
        self._attributes = {key: module._choices() for key, module in self._modules.items()}
        seen = dict.fromkeys((*variables, *self._variables()))
        self._flags = [(variable, _flags(variable)) for variable in seen]
        self._containers = [
            (module, path, container, _elements(container))
            for module in self._modules.values()
            for path, container in collect.mutable_containers(module)
        ]
        for module in self._modules.values():
            module._modulekit.watched = True
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
        for _, _, container, elements in self._containers:
            now = container if type(container) is list else _elements(container)
            if len(now) != len(elements):
                return False
            if not all(map(operator.is_, now, elements)) and not all(map(_same, now, elements)):
                return False
        if self._count == changes.count:
            return True
        if next(self._changed_attributes(), None) or next(self._changed_flags(), None):
            return False
        self._count = changes.count
        return True

    def _changed_attributes(self) -> Iterator[tuple[Module, str, Any, Any]]:
        for key, module in self._modules.items():
            now, then = module._choices(), self._attributes[key]
            for name in {**then, **now}:
                before, after = then.get(name, _ABSENT), now.get(name, _ABSENT)
                if not _same(after, before):
                    yield module, name, before, after

    def _changed_flags(self) -> Iterator[tuple[Variable, str]]:
        for variable, then in self._flags:
            now = _flags(variable)
            if now != then:
                flag = "trainable" if now["frozen"] == then["frozen"] else "frozen"
                yield variable, f"{flag} changed {then[flag]} → {now[flag]}"

    def differences(self, roots: Mapping[str, Module]) -> list[str]:
        """Returns what has changed since, such as `encoder.layers[1].activation changed relu → tanh`.

        Args:
          roots: the modules that the compiled function names, under these names.
        """
        changed = [
            f"{_place(module, roots)}.{name} {_change(before, after)}"
            for module, name, before, after in self._changed_attributes()
        ]
        for module, path, container, elements in self._containers:
            place = f"{_place(module, roots)}.{path}"
            changed += [f"{place}{change}" for change in _container_changes(container, elements)]
        return changed + [f"{_place(variable, roots)}.{change}" for variable, change in self._changed_flags()]


def _flags(variable: Variable) -> dict[str, bool]:
    return {"trainable": variable.trainable, "frozen": variable.frozen}


def _elements(container: Any) -> tuple[Any, ...]:
    """Returns what a list holds; of a dict the keys, and then the values."""
    return (*container, *container.values()) if isinstance(container, dict) else tuple(container)


def _same(now: Any, then: Any) -> bool:
    if now is then:
        return True
    if type(now) is not type(then):
        return False
    if isinstance(now, tuple):
        return len(now) == len(then) and all(map(_same, now, then))
    return isinstance(now, _PLAIN) and bool(now == then)


def _place(part: Module | Variable, roots: Mapping[str, Module]) -> str:
    """Returns where a module or variable stands, in the names that the compiled function uses."""
    for name, root in roots.items():
        path = "" if part is root else root.path_of(part)
        if path is not None:
            return f"{name}.{path}" if path else name
    return repr(part)


def _change(before: Any, after: Any) -> str:
    if before is _ABSENT:
        return f"is new, {text_of(after)}"
    return "is gone" if after is _ABSENT else f"changed {changed_text(text_of(before), text_of(after))}"


def _container_changes(container: Any, elements: tuple[Any, ...]) -> Iterator[str]:
    now, then = _items(container, _elements(container)), _items(container, elements)
    if isinstance(container, list) and len(now) != len(then):
        yield f" changed from {len(then)} to {len(now)} elements"
        return
    changed = [key for key in {**then, **now} if not _same(now.get(key, _ABSENT), then.get(key, _ABSENT))]
    yield from (f"[{text_of(key)}] {_change(then.get(key, _ABSENT), now.get(key, _ABSENT))}" for key in changed)
    if not changed and list(now) != list(then):
        yield " has its keys in another order"


def _items(container: Any, elements: tuple[Any, ...]) -> dict[Any, Any]:
    """Returns elements by index or key."""
    half = len(elements) // 2
    return dict(
        zip(elements[:half], elements[half:], strict=True) if isinstance(container, dict) else enumerate(elements)
    )
