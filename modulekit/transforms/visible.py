"""What a function can see, and the names that it has for it: its arguments, and the modules among them and around it."""

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from types import CodeType, FunctionType
from typing import Any

import jax

from modulekit.core.module import Module


def named_arguments(function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Returns the arguments of a call by the names of the function's parameters, as far as it tells them."""
    try:
        return dict(inspect.signature(function).bind(*args, **kwargs).arguments)
    except (TypeError, ValueError):
        return {**{f"args[{index}]": arg for index, arg in enumerate(args)}, **kwargs}


def leaves_by_place(named: dict[str, Any], is_leaf: Callable[[Any], bool] | None = None) -> Iterator[tuple[str, Any]]:
    """Yields the leaves of what `named_arguments` returned, each with its place, such as `batch['image'][0]`."""
    for name, argument in named.items():
        for path, leaf in jax.tree_util.tree_leaves_with_path(argument, is_leaf=is_leaf):
            yield name + jax.tree_util.keystr(path), leaf


def modules_of(function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Module]:
    """Returns the modules among a function's arguments, in its closure, and among the globals that it names.

    Args:
      function: a function, a method of a module, a module, or a `functools.partial` of one.
      args: its arguments, any structure that may hold modules.
      kwargs: its keyword arguments, likewise.
    """
    while isinstance(function, functools.partial):
        args, kwargs = (*function.args, *args), {**function.keywords, **kwargs}
        function = function.func
    leaves = leaves_by_place(named_arguments(function, args, kwargs))
    found = {place: leaf for place, leaf in leaves if isinstance(leaf, Module)}
    owner = function if isinstance(function, Module) else getattr(function, "__self__", None)
    if isinstance(owner, Module):
        found["self"] = owner
    function = inspect.unwrap(getattr(function, "__func__", function))
    if inspect.isfunction(function):
        found.update((name, value) for name, value in _free(function) if isinstance(value, Module))
    return found


def _free(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """Yields the names in a function's body that its globals and its closure have a value for, with the value."""
    known = function.__globals__
    yield from ((name, known[name]) for name in _names_in(function.__code__) if name in known)
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield name, cell.cell_contents
        except ValueError:
            continue  # a name of the function around that has no value yet


def _names_in(code: CodeType) -> Iterator[str]:
    """Yields the global names in a piece of code and in the functions that it defines."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names_in(constant)
