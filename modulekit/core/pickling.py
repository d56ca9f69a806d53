"""Pickling of the functions that modules hold: an activation such as `jax.nn.relu` is written down by its name.

Python pickles a function by name. JAX wraps many of its functions (`jax.jit`, `jax.custom_jvp`), and the wrapper would
be pickled with what is inside, which fails: the name inside stands for the wrapper. `copyreg` is Python's registry for
such types; a wrapper that no name leads to is pickled as before.
"""

import copyreg
import operator
import sys
from typing import Any

import jax
import jax.numpy as jnp


def _reduced(function: Any) -> Any:
    """Returns the name of a function that its module holds under that name, else what Python would do."""
    name = getattr(function, "__qualname__", "") or getattr(function, "__name__", "")
    try:
        held = operator.attrgetter(name)(sys.modules[function.__module__])
    except (AttributeError, KeyError):
        held = None
    return name if held is function else object.__reduce_ex__(function, 4)


def register() -> None:
    """Tells Python how to pickle the types of JAX's wrapped functions."""
    for kind in (type(jax.jit(_reduced)), jax.custom_jvp, jax.custom_vjp, jnp.ufunc):
        copyreg.pickle(kind, _reduced)
