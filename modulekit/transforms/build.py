"""`build`: makes the variables of a module from the shapes of its inputs, without computing anything."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from modulekit.core.overlay import Unsettled
from modulekit.transforms.arguments import join, split
from modulekit.transforms.settle import Footprint, plain


def trace_abstractly(
    function: Callable[..., Any], key: tuple[Any, ...], traced: list[Any], footprint: Footprint
) -> Any:
    """Runs a function on shapes alone, and adds the variables that it used to the footprint.

    Returns:
      The result, with a `jax.ShapeDtypeStruct` for each array.
    """

    def pure(leaves: list[Any]) -> Any:
        args, kwargs = join(key, leaves)
        with footprint.overlay({}, collects_reads=True) as running:
            result = plain(function(*args, **kwargs))
        footprint.reads.update(running.touched)
        footprint.writes.update(running.written)
        footprint.born.update(running.born)
        return result

    try:
        return jax.eval_shape(pure, traced)
    except Unsettled:  # a plain JAX transform inside reads variables
        footprint.isolated = True
        return jax.eval_shape(pure, traced)


def build(f: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Makes the variables of the modules that a function calls, without computing anything else.

    Args:
      f: a module or function.
      *args: its inputs: arrays, `jax.ShapeDtypeStruct`s, or shapes such as `[32, 784]`, which stand for float32 arrays.
      **kwargs: likewise; booleans and strings are passed as they are.

    Returns:
      What `f` would return, with a `jax.ShapeDtypeStruct` for each array. Existing variables do not change.

    Source: Sonnet 2, `snt.build`.

    >>> import modulekit as mk
    >>> layer = mk.Linear(10)
    >>> mk.build(layer, [32, 784]).shape
    (32, 10)
    >>> layer.w.shape
    (784, 10)
    """
    args, kwargs = shaped((args, kwargs))
    traced, key = split(args, kwargs)
    return trace_abstractly(f, key, traced, Footprint())


def eval_shape(f: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Returns what `f` would return, with a `jax.ShapeDtypeStruct` for each array; as `jax.eval_shape`, over variables.

    Args:
      f: a module or function; variables that do not exist yet are made, and no variable changes.
      *args: its inputs: arrays or `jax.ShapeDtypeStruct`s.
      **kwargs: likewise; booleans and strings are passed as they are.

    Source: JAX, `jax.eval_shape`, over variables.

    >>> import modulekit as mk, jax.numpy as jnp
    >>> mk.eval_shape(mk.Linear(10), jnp.ones([32, 784])).shape
    (32, 10)
    """
    traced, key = split(args, kwargs)
    return trace_abstractly(f, key, traced, Footprint())


def footprint(f: Callable[..., Any], *args: Any, **kwargs: Any) -> Footprint:
    """Returns which variables a function reads, writes and makes, from shapes alone. Nothing is computed or changed.

    Args:
      f: a module or function.
      *args: as for `build`.
      **kwargs: as for `build`.

    >>> import modulekit as mk
    >>> layer = mk.Linear(10)
    >>> [variable.name for variable in mk.footprint(layer, [32, 784]).reads]
    ['linear/w', 'linear/b']
    """
    args, kwargs = shaped((args, kwargs))
    traced, key = split(args, kwargs)
    found = Footprint()
    trace_abstractly(f, key, traced, found)
    return found


def shaped(arguments: Any) -> Any:
    """Returns a structure of arguments with a `jax.ShapeDtypeStruct` for each shape in it, such as `[32, 784]`."""
    return jax.tree.map(_specification, arguments, is_leaf=_is_shape)


def _is_shape(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(size, int) and not isinstance(size, bool) for size in value)


def _specification(value: Any) -> Any:
    return jax.ShapeDtypeStruct(value, jnp.float32) if _is_shape(value) else value
