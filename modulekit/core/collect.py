"""Walking over what a module holds: submodules, variables and their paths.

The order is Sonnet's: a module's own attributes by name, containers element by element (dicts by key), and then its
submodules one after the other in the same way. An object that is met twice counts where it is met first; cycles end.
"""

from collections.abc import Iterable, Iterator
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


def walk(
    root: Any, kind: type, module_type: type, path: Path = (), around: Iterable[Any] = ()
) -> Iterator[tuple[Path, Any]]:
    """Yields `(path, leaf)` for every leaf of type `kind` that `root` holds, each leaf once.

    Args:
      root: a module, or a plain container of modules and variables.
      kind: the type of the leaves to yield.
      module_type: the type of object whose attributes are entered.
      path: the path of `root` itself.
      around: modules that are not entered.
    """
    first = {id(module): path for module in (*around, root)}
    for leaf_path, leaf, is_first in _met(root, kind, module_type, path, first):
        if is_first and isinstance(leaf, kind):
            yield leaf_path, leaf


def references(root: Any, kind: type, module_type: type, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Yields `(path, leaf)` for every reference to a leaf of type `kind`, the first one of each as `walk` does.

    What a shared module holds comes once under each path of that module. A reference back to a module around is none.
    """
    first = {id(root): path}
    met = list(_met(root, kind, module_type, path, first))
    yield from ((leaf_path, leaf) for leaf_path, leaf, _ in met if isinstance(leaf, kind))
    modules = {first[id(module)]: module for _, module, is_first in met if is_first and isinstance(module, module_type)}
    modules[path] = root
    for alias, module, is_first in met:
        around = [modules[alias[:end]] for end in range(len(path), len(alias)) if alias[:end] in modules]
        if is_first or not isinstance(module, module_type) or any(module is outer for outer in around):
            continue
        met_there = _met(module, kind, module_type, alias, {id(known): alias for known in (*around, module)})
        yield from ((leaf_path, leaf) for leaf_path, leaf, _ in met_there if isinstance(leaf, kind))


def _met(
    root: Any, kind: type, module_type: type, path: Path, first: dict[int, Path]
) -> Iterator[tuple[Path, Any, bool]]:
    """Yields `(path, leaf, is_first)` for each reference to a leaf or module, entering each module once."""
    inner: list[tuple[Path, Any]] = []
    for leaf_path, leaf in _attribute_leaves(root, path, module_type):
        if not isinstance(leaf, kind | module_type):
            continue
        is_first = id(leaf) not in first
        if is_first:
            first[id(leaf)] = leaf_path
        yield leaf_path, leaf, is_first
        if is_first and isinstance(leaf, module_type):
            inner.append((leaf_path, leaf))
    for leaf_path, leaf in inner:
        yield from _met(leaf, kind, module_type, leaf_path, first)


def own_leaves(root: Any, module_type: type) -> Iterator[tuple[Path, Any]]:
    """Yields `(path, leaf)` of a module's own attributes, containers element by element."""
    yield from _attribute_leaves(root, (), module_type)


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


def mutable_containers(module: Any) -> Iterator[tuple[str, Any]]:
    """Yields `(path, container)` of the lists and dicts that a module's attributes hold, nested ones as well."""
    pending: list[tuple[Path, Any]] = [((("attribute", name),), value) for name, value in vars(module).items()]
    seen: set[int] = set()
    while pending:
        path, value = pending.pop()
        if isinstance(value, list | tuple | dict) and id(value) not in seen:
            seen.add(id(value))
            if not isinstance(value, tuple):
                yield render(path), value
            items = value.items() if isinstance(value, dict) else enumerate(value)
            pending.extend(((*path, ("item", key)), item) for key, item in items)
