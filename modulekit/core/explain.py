"""A metaclass whose classes tell JAX's error messages what to do.

JAX refuses objects that it does not know by printing their *type*. Variables and modules are such objects, so the
printed type carries the remedy: `jnp.sum(model.w)` fails with "... got <class 'modulekit.Variable' (pass its .value)>".
"""

import abc
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
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
