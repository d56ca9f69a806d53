"""Routes from a module's variables to the tensors of a checkpoint, by attribute path or by name."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from modulekit.core.places import Place
from modulekit.sonnet.checkpoint import Checkpoint, SavedTensor


class Route(NamedTuple):
    """The tensor for a variable, None where there is none, or why it is not clear which one is meant."""

    tensor: SavedTensor | None
    problem: str = ""


class Rename:
    """What parts of a checkpoint are called in the module: beginnings of paths or names, up to a `/`.

    Args:
      names: from the checkpoint's to the module's.

    Raises:
      ValueError: two parts would get one name.
    """

    def __init__(self, names: Mapping[str, str]) -> None:
        repeated = [name for name, count in Counter(names.values()).items() if count > 1]
        if repeated:
            raise ValueError(f"rename leads twice to {repeated[0]!r}, so that it cannot be followed back")
        self._back = sorted(((new, old) for old, new in names.items()), key=lambda pair: -len(pair[0]))
        self._unused = {new for new, _ in self._back}

    def back(self, name: str) -> str:
        """Returns what a name or path of the module is in the checkpoint; the longest beginning counts."""
        for new, old in self._back:
            if not new or name == new or name.startswith(f"{new}/"):
                self._unused.discard(new)
                rest = name if not new else name[len(new) + 1 :]
                return "/".join(part for part in (old, rest) if part)
        return name

    def check_used(self) -> None:
        """Raises `ValueError` if a new name is the beginning of none in the module, which is a slip of the pen."""
        if self._unused:
            raise ValueError(f"rename to {sorted(self._unused)[0]!r} is of no use: nothing in the module begins so")


def by_name(checkpoint: Checkpoint, wanted: Sequence[Place], rename: Rename) -> list[Route]:
    """Returns a route for each place: the one saved variable of its variable's full name."""
    counts = Counter(place.variable.name for place in wanted)
    routes = []
    for place in wanted:
        name = place.variable.name
        found = checkpoint.named(rename.back(name))
        if found and counts[name] > 1:
            routes.append(Route(None, f"{counts[name]} variables are named {name!r}: give by='path'"))
        elif len(found) > 1:
            routes.append(Route(None, f"{len(found)} saved variables are named {found[0].name!r}: give by='path'"))
        else:
            routes.append(Route(found[0] if found else None))
    rename.check_used()
    return routes


def by_path(checkpoint: Checkpoint, wanted: Sequence[Place], rename: Rename) -> list[Route]:
    """Returns a route for each place: along its attributes through the objects of the checkpoint."""
    takers: dict[tuple[str, ...], str] = {}
    routes = []
    for place in wanted:
        ways = [way for way in (_followed(checkpoint, way, rename) for way in place.ways) if way is not None]
        if place.is_in_list and ways:
            ways = [_of_the_same_name(checkpoint, ways[0], place.variable.name) or ways[0]]
        tensors = {way: tensor for way in ways if (tensor := _tensor_at(checkpoint, way)) is not None}
        route = _only_one(place, list(tensors.values()))
        for way in tensors:
            other = takers.setdefault(way, place.path)
            if other != place.path:
                route = Route(route.tensor, f"{other} takes {'/'.join(way)} as well")
        routes.append(route)
    rename.check_used()
    return routes


def _only_one(place: Place, tensors: Sequence[SavedTensor]) -> Route:
    distinct = {tensor.path: tensor for tensor in tensors}
    if not distinct:
        return Route(None)
    tensor = tensors[0]
    if len(distinct) > 1:
        return Route(tensor, f"one variable here, and {' and '.join(distinct)} in the checkpoint")
    if place.is_in_list and tensor.name != place.variable.name:
        return Route(tensor, f"{tensor.name!r} at this position in the checkpoint, and here {place.variable.name!r}")
    return Route(tensor)


def _followed(checkpoint: Checkpoint, way: tuple[str, ...], rename: Rename) -> tuple[str, ...] | None:
    """Returns a way through the objects of the checkpoint, with the names that they have there; None if it ends."""
    node, followed = 0, []
    for key in rename.back("/".join(way)).split("/"):
        children = checkpoint.nodes[node].children
        if key not in children:
            alike = [child for child in children if child.lstrip("_") == key.lstrip("_")]
            if len(alike) != 1:
                return None
            key = alike[0]
        followed.append(key)
        node = children[key]
    return tuple(followed)


def _node_at(checkpoint: Checkpoint, way: Sequence[str]) -> int:
    node = 0
    for key in way:
        node = checkpoint.nodes[node].children[key]
    return node


def _tensor_at(checkpoint: Checkpoint, way: Sequence[str]) -> SavedTensor | None:
    return checkpoint.value_of(_node_at(checkpoint, way))


def _of_the_same_name(checkpoint: Checkpoint, way: tuple[str, ...], name: str) -> tuple[str, ...] | None:
    """Returns the way to the one variable of a name in the list in which a way ends; None if the end itself has it."""
    here = _tensor_at(checkpoint, way)
    if here is not None and here.name == name:
        return None
    siblings = checkpoint.nodes[_node_at(checkpoint, way[:-1])].children
    alike = [
        key
        for key, node in siblings.items()
        if (tensor := checkpoint.value_of(node)) is not None and tensor.name == name
    ]
    return (*way[:-1], alike[0]) if len(alike) == 1 else None
