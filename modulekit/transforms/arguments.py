"""The arguments of a compiled function: arrays are traced, everything else is part of the program."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from modulekit.core.arithmetic import Arithmetic
from modulekit.core.module import Module

# bool is left out on purpose: `is_training=True` chooses a program.
_TRACED = (jax.Array, np.ndarray, np.generic, int, float, complex, jax.ShapeDtypeStruct)
_kinds: dict[type, bool] = {bool: False, type(None): False, str: False}  # of leaves that have come before


@jax.tree_util.register_static
class Static:
    """A leaf that is part of the program, compared by value; modules, variables and functions by identity."""

    __slots__ = ("_key", "leaf")

    def __init__(self, leaf: Any) -> None:
        self.leaf = leaf
        by_identity = isinstance(leaf, Module | Arithmetic) or callable(leaf)
        self._key = id(leaf) if by_identity else leaf

    def __hash__(self) -> int:
        try:
            return hash(self._key)
        except TypeError:
            raise TypeError(
                f"argument of type {type(self.leaf).__name__} is neither an array nor hashable, so that no compiled "
                f"program can be chosen by it: {self.leaf!r}"
            ) from None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Static) and type(self.leaf) is type(other.leaf) and bool(self._key == other._key)


def is_traced(leaf: Any) -> bool:
    """Returns whether a leaf goes into the program as an array."""
    kind = type(leaf)
    known = _kinds.get(kind)
    if known is None:
        known = _kinds[kind] = isinstance(leaf, _TRACED)
    return known


def hold(tree: Any) -> Any:
    """Returns a structure with each module in it made part of the structure, so that JAX hands it through as it is."""
    return jax.tree.map(lambda leaf: Static(leaf) if isinstance(leaf, Module) else leaf, tree)


def release(tree: Any) -> Any:
    """Returns a structure with the modules of `hold` in their places again."""
    return jax.tree.map(
        lambda leaf: leaf.leaf if isinstance(leaf, Static) else leaf,
        tree,
        is_leaf=lambda leaf: isinstance(leaf, Static),
    )


def split(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[list[Any], tuple[Any, ...]]:
    """Returns the traced leaves, and a hashable key of everything else."""
    if not kwargs:
        for leaf in args:
            if not (_kinds.get(type(leaf)) or is_traced(leaf)):  # a type that is new here as well
                break
        else:  # the common case, a few arrays, needs no tree
            return list(args), (len(args),)
    leaves, tree = jax.tree.flatten((args, kwargs))
    for leaf in leaves:
        if not is_traced(leaf):
            break
    else:
        return leaves, (tree,)
    mask = tuple(None if is_traced(leaf) else Static(leaf) for leaf in leaves)
    return [leaf for leaf in leaves if is_traced(leaf)], (tree, mask)


def join(key: tuple[Any, ...], traced: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Returns `(args, kwargs)` from the key of `split` and as many traced leaves."""
    if isinstance(key[0], int):
        return tuple(traced), {}
    if len(key) == 1:
        return jax.tree.unflatten(key[0], traced)
    tree, mask = key
    remaining = iter(traced)
    return jax.tree.unflatten(tree, [next(remaining) if static is None else static.leaf for static in mask])
