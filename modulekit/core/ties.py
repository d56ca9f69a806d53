"""Ties: variables that stand in more than one place.

A tied variable is one array, one gradient, one optimizer slot and one entry in a checkpoint, whatever the number of
paths that lead to it. A place may see it transformed: the weight of a transposed layer is the same variable, used
transposed.
"""

import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

from modulekit.core import collect
from modulekit.core.variable import Variable
from modulekit.errors import TieWarning

_VIEWS = "_views"  # the class attribute in which a module says how it uses a variable of another one


class Tie(NamedTuple):
    """One variable and the paths that lead to it.

    Attributes:
      variable: the variable.
      paths: its paths; the first is the one under which it is listed and saved.
      views: for some of them, how the variable is used there, such as `transposed`.
    """

    variable: Variable
    paths: tuple[str, ...]
    views: dict[str, str]

    def __str__(self) -> str:
        return " = ".join(path + (f" ({self.views[path]})" if path in self.views else "") for path in self.paths)


def all_paths(root: Any, module_type: type) -> dict[Variable, list[str]]:
    """Returns every path of each variable in `root`, a module or a container of modules; the first path comes first."""
    found: dict[Variable, list[str]] = {}
    for path, variable in collect.references(root, Variable, module_type):
        found.setdefault(variable, []).append(collect.render(path))
    return found


def ties_in(root: Any, module_type: type) -> tuple[Tie, ...]:
    """Returns the ties among the variables in `root`."""
    views = {
        f"{collect.render(path)}.{attribute}".lstrip("."): how
        for path, module in (((), root), *collect.references(root, module_type, module_type))
        for attribute, how in getattr(type(module), _VIEWS, {}).items()
    }
    return tuple(_tied(all_paths(root, module_type), views))


def _tied(paths: dict[Variable, list[str]], views: dict[str, str]) -> Iterator[Tie]:
    for variable, places in paths.items():
        if len(places) > 1:
            yield Tie(variable, tuple(places), {place: views[place] for place in places if place in views})


def warn_if_untied(owner: Any, name: str, old: Any, new: Any, module_type: type) -> None:
    """Warns that an attribute which is about to be replaced takes a tied variable away.

    Args:
      owner: the module whose attribute it is.
      name: of the attribute.
      old: what stands there now: a variable or a module.
      new: what will.
      module_type: the type of modules.
    """
    if isinstance(old, Variable) and all(holder is not owner for holder, _ in old.holders()):
        return
    inside = {id(module) for _, module in collect.walk([old], module_type, module_type, around=[owner])}
    kept = {variable for _, variable in collect.walk([new], Variable, module_type)}
    remaining = _places_in(owner, name, module_type)
    for _, variable in collect.walk([old], Variable, module_type, around=[owner]):
        outside = [(h, place) for h, place in variable.holders() if id(h) not in inside and h is not owner]
        places = outside + ([(owner, remaining[variable])] if variable in remaining else [])
        if places and variable not in kept:
            holder, place = places[0]
            warnings.warn(
                f"{variable.describe()} is tied: it is also {place!r} of {holder!r}. Replacing {name!r} of {owner!r} unties "
                "them. To give both a new value, assign it to the variable; to untie them on purpose without this warning, "
                "delete the attribute first",
                TieWarning,
                stacklevel=3,  # the line of the assignment
            )
            return


def _places_in(owner: Any, without: str, module_type: type) -> dict[Variable, str]:
    """Returns the variables that a module would still hold without one of its attributes, by first path."""
    others = {name: value for name, value in vars(owner).items() if name != without}
    found = collect.walk(others, Variable, module_type, around=[owner])
    return {variable: collect.render((("attribute", path[0][1]), *path[1:])) for path, variable in found}
