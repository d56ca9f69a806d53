"""A metaclass whose classes tell JAX's error messages what to do.

JAX refuses objects that it does not know by printing their *type*. Variables and modules are such objects, so the
printed type carries the remedy: `jnp.sum(model.w)` fails with "... got <class 'modulekit.Variable' (pass its .value)>".
"""

import abc
import inspect
from typing import Any


class ExplainedType(abc.ABCMeta):
    """Prints the class with its `_jax_remedy` behind the name."""

    _jax_remedy: str

    def __repr__(cls) -> str:
        return f"<class '{cls.__module__}.{cls.__qualname__}' ({cls._jax_remedy})>"


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
    if type(value) is dict:
        return "{" + ", ".join(f"{key!r}: {summarize(item)}" for key, item in value.items()) + "}"
    if hasattr(value, "shape") and hasattr(value, "dtype") and not hasattr(value, "trainable"):
        return f"{value.dtype}[{','.join(str(size) for size in value.shape)}]"
    if callable(value) and hasattr(value, "__name__") and not isinstance(value, type):
        return str(value.__name__)
    return shortened(repr(value))


def shortened(text: str) -> str:
    """Returns a text cut to 80 characters."""
    return text if len(text) <= 80 else text[:77] + "..."


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
            parts.extend(summarize(item) for item in value)
        elif parameter.kind is parameter.VAR_KEYWORD:
            parts.extend(f"{key}={summarize(item)}" for key, item in value.items())
        elif isinstance(parameter.default, bool | int | float | str | tuple) and value == parameter.default:
            continue
        else:
            parts.append(f"{name}={summarize(value)}")
    return f"{cls.__name__}({', '.join(parts)})"
