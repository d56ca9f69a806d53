"""A metaclass whose classes tell JAX's error messages what to do.

JAX refuses objects that it does not know by printing their *type*. Variables and modules are such objects, so the
printed type carries the remedy: `jnp.sum(model.w)` fails with "... got <class 'modulekit.Variable' (pass its .value)>".
"""

import abc
import inspect
from collections.abc import Callable
from typing import Any

LONGEST = 200
_PLAIN = (bool, int, float, str, tuple)


class ExplainedType(abc.ABCMeta):
    """Prints the class with its `_jax_remedy` behind the name."""

    _jax_remedy: str

    def __repr__(cls) -> str:
        return f"<class '{cls.__module__}.{cls.__qualname__}' ({cls._jax_remedy})>"


def shown(value: Any, describe: Callable[[Any], str], longest: int = 80) -> str:
    """Returns a text for any value, cut to a length, also where its own repr raises: to explain must not raise."""
    try:
        text = describe(value)
    except Exception as error:
        return f"<{type(value).__name__}, which cannot be shown: {type(error).__name__}>"
    return text if len(text) <= longest else text[: longest - 3] + "..."


def summarize(value: Any) -> str:
    """Returns a short text for any argument: arrays as `float32[3,4]`, containers element by element.

    >>> import numpy as np
    >>> summarize((np.zeros([2, 3], np.float32), {"training": True}))
    "(float32[2,3], {'training': True})"
    """
    if isinstance(value, tuple | list) and type(value) in (tuple, list):
        inner = ", ".join(summarize(item) for item in value)
        if isinstance(value, list):
            return f"[{inner}]"
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        fields = zip(value._fields, value, strict=True)
        return f"{type(value).__name__}({', '.join(f'{name}={summarize(item)}' for name, item in fields)})"
    if type(value) is dict:
        return "{" + ", ".join(f"{key!r}: {summarize(item)}" for key, item in value.items()) + "}"
    is_array = hasattr(value, "shape") and hasattr(value, "dtype") and not callable(value)
    if is_array and not hasattr(value, "trainable"):
        return f"{value.dtype}[{','.join(str(size) for size in value.shape)}]"
    if hasattr(type(value), "_summary"):  # a repr that does more than to look
        return shortened(value._summary())
    if callable(value) and hasattr(value, "__name__") and not isinstance(value, type):
        return str(value.__name__)
    return shortened(repr(value))


def shortened(text: str) -> str:
    """Returns a text cut to 80 characters."""
    return text if len(text) <= 80 else text[:77] + "..."


def _is_default(value: Any, default: Any) -> bool:
    try:
        return isinstance(default, _PLAIN) and isinstance(value, _PLAIN) and bool(value == default)
    except ValueError:
        return False  # a tuple of arrays, which have no truth value


def constructor_text(cls: type, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """Returns `Linear(output_size=5)`: the arguments that differ from their defaults."""
    try:
        signature = inspect.signature(cls.__init__)  # type: ignore[misc]
        bound = signature.bind(None, *args, **kwargs)
    except (TypeError, ValueError):
        return f"{cls.__name__}(...)"
    parts: list[str] = []
    for index, (name, value) in enumerate(bound.arguments.items()):
        parameter = signature.parameters[name]
        if index == 0 or value is parameter.default:
            continue
        if parameter.kind is parameter.VAR_POSITIONAL:
            parts.extend(shown(item, summarize, LONGEST) for item in value)
        elif parameter.kind is parameter.VAR_KEYWORD:
            parts.extend(f"{key}={shown(item, summarize, LONGEST)}" for key, item in value.items())
        elif not _is_default(value, parameter.default):
            parts.append(f"{name}={shown(value, summarize, LONGEST)}")
    return f"{cls.__name__}({', '.join(parts)})"
