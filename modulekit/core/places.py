"""Places: the variables of a module or of named parts, each with all the paths that lead to it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from modulekit.core import collect
from modulekit.core.module import Module
from modulekit.core.variable import Variable

Parts = Module | Mapping[str, Module | Variable]


class Place(NamedTuple):
    """A variable, its path for messages, and all paths that lead to it, each as a sequence of keys.

    Attributes:
      variable: the variable.
      path: `model.layers[0].w`.
      ways: `("model", "layers", "0", "w")`, and so on.
      paths: the same as they are written, `path` first.
      is_in_list: whether it stands in a list of variables, where a position says little.
    """

    variable: Variable
    path: str
    ways: tuple[tuple[str, ...], ...]
    paths: tuple[str, ...]
    is_in_list: bool


def places(module: Parts) -> list[Place]:
    """Returns the places of the variables of a module, or of named parts, each variable once.

    Raises:
      TypeError: it is no module, and no mapping of names to modules and variables.
      ValueError: a part has no variables, most likely because it has not been built.
    """
    found: dict[Variable, list[collect.Path]] = {}
    for name, part in _named_parts(module).items():
        start: collect.Path = (("attribute", name),) if name else ()
        references = [(start, part)] if isinstance(part, Variable) else list(_references(part, start))
        if not references:
            raise ValueError(
                f"{part!r} has no variables yet, so that nothing of the checkpoint could find its place: build it first, as "
                "in mk.build(module, [batch, features]), or mk.build(step, x, y) for an optimizer's slots"
            )
        for path, variable in references:
            found.setdefault(variable, []).append(path)
    return [_place(variable, paths) for variable, paths in found.items()]


def _named_parts(module: Parts) -> dict[str, Module | Variable]:
    parts: dict[str, Module | Variable] = {"": module} if isinstance(module, Module) else {}
    if isinstance(module, Mapping):
        parts = dict(module)
    elif not parts:
        raise TypeError(f"{module!r} is no module: give a module, or the parts by name, as in {{'model': model}}")
    for name, part in parts.items():
        if not isinstance(part, Module | Variable):
            raise TypeError(f"part {name!r} is {part!r}: the parts are modules and variables")
    return parts


def _place(variable: Variable, paths: Sequence[collect.Path]) -> Place:
    how, last = paths[0][-1]
    ways = tuple(tuple(str(key) for _, key in path) for path in paths)
    written = tuple(collect.render(path) for path in paths)
    return Place(variable, written[0], ways, written, how == "item" and isinstance(last, int))


def _references(part: Module, start: collect.Path) -> Iterator[tuple[collect.Path, Variable]]:
    yield from collect.references(part, Variable, Module, start)
