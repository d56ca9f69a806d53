"""The values of variables, by variable: what `functional.transform` takes out of a function and hands back to it.

JAX sorts the keys of a dict, and variables have no order. So the dict is a class of its own, which JAX's functions take
apart into a flat list of arrays, in the order in which its variables were first met, and a static tuple of variables.
"""

import itertools
import weakref
from collections.abc import Iterable, Mapping
from typing import Any

import jax

from modulekit.core.explain import summarize
from modulekit.core.variable import Variable

_numbers = itertools.count()
_order: weakref.WeakKeyDictionary[Variable, int] = weakref.WeakKeyDictionary()


class Values(dict[Variable, Any]):
    """A dict from variables to arrays that may go through `jax.jit`, `jax.grad`, `jax.tree.map` and their like.

    >>> import modulekit as mk
    >>> w, b = mk.Variable(2.0, name="w"), mk.Variable(1.0, name="b")
    >>> doubled = jax.tree.map(lambda value: 2 * value, Values({w: 3.0, b: 4.0}))
    >>> doubled[w], doubled[b]
    (6.0, 8.0)
    """

    def copy(self) -> "Values":
        """Returns another such dict of the same values."""
        return Values(self)

    def __or__(self, other: Mapping[Any, Any]) -> "Values":  # type: ignore[override]
        return Values({**self, **other})

    def __ror__(self, other: Mapping[Any, Any]) -> "Values":  # type: ignore[override]
        return Values({**other, **self})

    def __repr__(self) -> str:
        return "{" + ", ".join(f"{v!r}: {summarize(value)}" for v, value in self.items()) + "}"


def ordered(values: Iterable[Variable]) -> tuple[Variable, ...]:
    """Returns variables in the order in which JAX's functions find their values."""
    for variable in values:
        if variable not in _order:
            _order[variable] = next(_numbers)
    return tuple(sorted(values, key=_order.__getitem__))


def _flatten(values: Values) -> tuple[list[Any], tuple[Variable, ...]]:
    variables = ordered(values)
    return [values[v] for v in variables], variables


def _flatten_with_keys(values: Values) -> tuple[list[tuple[Any, Any]], tuple[Variable, ...]]:
    variables = ordered(values)
    return [(jax.tree_util.DictKey(v), values[v]) for v in variables], variables


def _unflatten(variables: tuple[Variable, ...], values: Iterable[Any]) -> Values:
    return Values(zip(variables, values, strict=True))


jax.tree_util.register_pytree_with_keys(Values, _flatten_with_keys, _unflatten, _flatten)
