"""Structures: the nested tuples, lists and dicts in which data sets, examples and batches hold their arrays.

A structure is read in one of three ways, all here: leaf by leaf with each leaf's path, such as `batch[1]['label']`; as
a signature, which is equal for structures whose arrays can be stacked; and as a stack of several of them.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]


def map_leaves(function: Callable[[Any, str], Any], node: Any, path: str) -> Any:
    """Applies a function of (leaf, path) to each leaf and keeps tuples, named tuples, lists and dicts as they are."""
    if isinstance(node, dict):
        return {key: map_leaves(function, child, f"{path}[{key!r}]") for key, child in node.items()}
    if not isinstance(node, tuple | list):
        return function(node, path)
    children = [map_leaves(function, child, f"{path}[{index}]") for index, child in enumerate(node)]
    if isinstance(node, list):
        return children
    return type(node)(*children) if hasattr(node, "_fields") else tuple(children)


def leaves_of(structure: Any, root: str) -> list[tuple[str, Any]]:
    """Returns each leaf with its path, in the structure's order."""
    leaves: list[tuple[str, Any]] = []

    def collect(leaf: Any, path: str) -> None:
        leaves.append((path, leaf))

    map_leaves(collect, structure, root)
    return leaves


def signature(node: Any) -> Hashable:
    """Returns what a structure of arrays is without its values; that of two is equal if they can be stacked."""
    if isinstance(node, dict):
        return dict, tuple((key, signature(child)) for key, child in sorted(node.items(), key=lambda i: repr(i[0])))
    if isinstance(node, tuple | list):
        return type(node), tuple(signature(child) for child in node)
    return np.ndarray, node.shape, node.dtype


def stack(structures: Sequence[Any], root: str) -> Any:
    """Stacks structures of arrays along a new first axis; those that differ in kind are a `ValueError`."""
    first = signature(structures[0])
    for index, structure in enumerate(structures):
        if signature(structure) != first:
            raise ValueError(
                f"what is stacked must have the same containers, shapes and dtypes, but {root} 0 of it is "
                f"{outline(structures[0], root)} and {root} {index} is {outline(structure, root)}; map them to one form"
            )
    columns = [dict(leaves_of(structure, root)) for structure in structures]
    return map_leaves(lambda leaf, path: np.stack([column[path] for column in columns]), structures[0], root)


def outline(structure: Any, root: str) -> str:
    """Returns one line with each array's path, dtype and shape."""
    leaves = leaves_of(structure, root)
    return ", ".join(f"{path}: {array.dtype.name}{list(array.shape)}" for path, array in leaves) or "empty"


def shared_length(structure: Any, root: str) -> int:
    """Returns the length of the first axis of all arrays; if there is none, or it is 0, that is a `ValueError`."""
    leaves = leaves_of(structure, root)
    if not leaves:
        raise ValueError(f"{root} must hold at least one array, got an empty structure; pass at least one array")
    lengths = {len(array) for _, array in leaves}
    if len(lengths) > 1:
        found = ", ".join(f"{path} has {len(array)}" for path, array in leaves)
        raise ValueError(f"all arrays must have one number of examples (first axis), but {found}; cut or complete them")
    size = lengths.pop()
    if size == 0:
        path, array = leaves[0]
        raise ValueError(f"{root} must hold at least one example, got {path} of shape {array.shape}; pass more data")
    return size
