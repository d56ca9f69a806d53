"""The modules that a function can see, and the names that it has for them."""

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import jax

from modulekit.core.module import Module


def modules_of(function: Callable[..., Any], arguments: Any) -> dict[str, Module]:
    """Returns the modules among a function's arguments, in its closure, and among the globals that it names.

    Args:
      function: a function, a method of a module, a module, or a `functools.partial` of one.
      arguments: any structure that may hold modules.
    """
    found = {f"argument {index}": m for index, m in enumerate(_modules(arguments))}
    while isinstance(function, functools.partial):
        bound = _modules((function.args, function.keywords))
        found.update((f"bound argument {index}", m) for index, m in enumerate(bound))
        function = function.func
    owner = function if isinstance(function, Module) else getattr(function, "__self__", None)
    if isinstance(owner, Module):
        found["self"] = owner
    function = inspect.unwrap(getattr(function, "__func__", function))
    if inspect.isfunction(function):
        seen = inspect.getclosurevars(function)
        found.update((n, v) for n, v in {**seen.globals, **seen.nonlocals}.items() if isinstance(v, Module))
    return found


def _modules(tree: Any) -> Iterator[Module]:
    return (leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, Module))
