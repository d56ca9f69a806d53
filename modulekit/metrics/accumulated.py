"""Variables that accumulate values of one shape: how they begin, how they grow, and what is said before there is one."""

from typing import Any

import jax.numpy as jnp

from modulekit.core.arithmetic import array_of, value_of
from modulekit.core.explain import summarize
from modulekit.core.module import Module
from modulekit.core.variable import Variable


def zeros_like(value: Any, name: str) -> Variable:
    """Returns a variable of zeros, of the shape and dtype of a value."""
    shape, dtype = jnp.shape(value_of(value)), jnp.result_type(value_of(value))
    return Variable(jnp.zeros(shape, dtype), trainable=False, name=name)


def add(metric: Module, total: Variable | None, value: Any) -> None:
    """Adds a value of the shape of the total, where an assignment would also take one that broadcasts to it."""
    total, array = made(metric, total), array_of(value)
    if array.shape != total.shape:
        raise ValueError(
            f"{metric!r} accumulates values of shape {list(total.shape)}, that of the first one, got {summarize(array)}: "
            "use another metric for another shape"
        )
    total.assign_add(array)


def made(metric: Module, variable: Variable | None) -> Variable:
    """Returns the variable, or raises `ValueError` if there was no value yet."""
    if variable is None:
        raise ValueError(f"{metric!r} has no value yet: call it, or its update, first")
    return variable
