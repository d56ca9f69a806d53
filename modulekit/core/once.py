"""`once`: a method that runs on its first call and never again.

What has run is remembered with the instance, under the method's qualified name. So it survives pickling, copying and
another process, and a child's method does not stand for its parent's. The body makes variables: it runs where arrays are
arrays under any trace (`births.py`). A body that raised has not run. Beside each name stand the
line of the call and the form of its arguments, for error messages and for drawing the variables anew.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from modulekit.core import births, draws, precision, provenance

_ATTRIBUTE = "_once_done"
_PLAIN = (bool, int, float, complex, str, type(None))


class Built(NamedTuple):
    """The call that ran a method under `once`.

    Attributes:
      origin: the user's line that called the module.
      arguments: `(args, kwargs)`, with a `jax.ShapeDtypeStruct` for each array; None where they hold anything else than
        arrays and plain values.
    """

    origin: provenance.Origin
    arguments: tuple[tuple[Any, ...], dict[str, Any]] | None


def _user_line(_: Any) -> provenance.Origin:
    return provenance.user_line()


class Once:
    """A function or method wrapped by `once`."""

    def __init__(
        self, function: Callable[..., Any], line_of_the_call: Callable[[Any], provenance.Origin] = _user_line
    ) -> None:
        functools.update_wrapper(self, function)
        self.function = function
        self._line_of_the_call = line_of_the_call
        self._has_run = False

    def __get__(self, instance: Any, owner: type | None = None) -> Callable[..., None]:
        return self if instance is None else functools.partial(self._call_on, instance)

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        """Runs the function, the first time."""
        if not self._has_run:
            _run(self.function, args, kwargs)
            self._has_run = True

    def _call_on(self, instance: Any, *args: Any, **kwargs: Any) -> None:
        done = getattr(instance, _ATTRIBUTE, None)
        if done is None:
            done = {}
            setattr(instance, _ATTRIBUTE, done)
        key = self.function.__qualname__
        if key not in done:
            _run(self.function, (instance, *args), kwargs)
            done[key] = Built(self._line_of_the_call(instance), _specified((args, kwargs)))


def _specified(arguments: Any) -> Any:
    """Returns arguments with a specification for each array, None if they cannot be written down so."""
    leaves, tree = jax.tree.flatten(arguments)
    if not all(isinstance(leaf, (*_PLAIN, jax.Array, np.ndarray, np.generic, jax.ShapeDtypeStruct)) for leaf in leaves):
        return None
    return jax.tree.unflatten(tree, [x if isinstance(x, _PLAIN) else _specification(x) for x in leaves])


def _specification(array: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype)


def _run(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    counts = draws.snapshot()
    try:
        (args, kwargs), precise = precision.at_full_precision((args, kwargs))
        with precise:
            result = births.run(function, args, kwargs)
    except BaseException:
        draws.restore(counts)
        raise
    if result is not None:
        raise ValueError(
            f"@once decorated functions cannot return values: {function.__qualname__} returned {result!r}. "
            "Store the value on the instance instead"
        )


def once(f: Callable[..., None]) -> Once:
    """Decorates a function or method that runs only on its first call, per instance.

    Args:
      f: a function that returns None.

    Returns:
      The decorated function. Later calls do nothing.

    Raises:
      ValueError: on the call, if `f` returned a value.

    Source: Sonnet 2, `snt.once`.

    >>> class Greeter:
    ...     @once
    ...     def greet(self):
    ...         print("hello")
    >>> greeter = Greeter()
    >>> greeter.greet()
    hello
    >>> greeter.greet()
    """
    return Once(f)
