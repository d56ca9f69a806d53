"""Walking over what a module holds: submodules, variables and their paths.

The order is Sonnet's: a module's own attributes by name, containers element by element (dicts by key), and then its
submodules one after the other in the same way. An object that is met twice counts where it is met first; cycles end.
"""

from collections.abc import Iterator
from typing import Any

Path = tuple[tuple[str, Any], ...]


def leaves(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Yields `(path, leaf)` of plain lists, tuples and dicts, nested to any depth; each container once."""
    yield from _leaves(value, path, set())


def _leaves(value: Any, path: Path, open_containers: set[int]) -> Iterator[tuple[Path, Any]]:
    if not isinstance(value, list | tuple | dict):
        yield path, value
        return
    if id(value) in open_containers:
        return
    open_containers.add(id(value))
    items = _dict_items(value) if isinstance(value, dict) else enumerate(value)
    for key, item in items:
        yield from _leaves(item, (*path, ("item", key)), open_containers)
    open_containers.discard(id(value))


def _dict_items(mapping: dict[Any, Any]) -> list[tuple[Any, Any]]:
    try:
        return sorted(mapping.items(), key=lambda item: item[0])
    except TypeError:
        return list(mapping.items())


def walk(root: Any, kind: type, module_type: type, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Yields `(path, leaf)` for every leaf of type `kind` that `root` holds, each leaf once.

    Args:
      root: a module, or a plain container of modules and variables.
      kind: the type of the leaves to yield.
      module_type: the type of object whose attributes are entered.
      path: the path of `root` itself.
    """
    yield from _walk(root, kind, module_type, path, {id(root)})


def _walk(root: Any, kind: type, module_type: type, path: Path, seen: set[int]) -> Iterator[tuple[Path, Any]]:
    inner: list[tuple[Path, Any]] = []
    for leaf_path, leaf in _attribute_leaves(root, path, module_type):
        if id(leaf) in seen or not isinstance(leaf, kind | module_type):
            continue
        seen.add(id(leaf))
        if isinstance(leaf, kind):
            yield leaf_path, leaf
        if isinstance(leaf, module_type):
            inner.append((leaf_path, leaf))
    for leaf_path, leaf in inner:
        yield from _walk(leaf, kind, module_type, leaf_path, seen)


def _attribute_leaves(root: Any, path: Path, module_type: type) -> Iterator[tuple[Path, Any]]:
    if not isinstance(root, module_type):
        yield from leaves(root, path)
        return
    attributes = vars(root)
    for name in sorted(attributes):
        yield from leaves(attributes[name], (*path, ("attribute", name)))


def render(path: Path) -> str:
    """Returns a path as it would be written in Python: `layers[0].w`, `table['a'].b`."""
    text = ""
    for how, key in path:
        text += f"[{key!r}]" if how == "item" else f".{key}" if text else str(key)
    return text


def mutable_containers(module: Any) -> Iterator[Any]:
    """Yields the lists and dicts that a module's attributes hold, nested ones as well."""
    pending = list(vars(module).values())
    seen: set[int] = set()
    while pending:
        value = pending.pop()
        if isinstance(value, list | tuple | dict) and id(value) not in seen:
            seen.add(id(value))
            if not isinstance(value, tuple):
                yield value
            pending.extend(value.values() if isinstance(value, dict) else value)
