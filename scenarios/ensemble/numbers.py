"""Hyperparameters of optimizers that a compiled update takes as inputs: numbers that differ from member to member, or from
step to step.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from modulekit.optimizers import Optimizer, Wrapped
from modulekit.optimizers.base import hyperparameters


def real_numbers(optimizer: Optimizer) -> dict[str, float]:
    """Returns the hyperparameters that are real numbers and no variables, by name.

    >>> import modulekit as mk
    >>> real_numbers(mk.optimizers.Accumulated(mk.optimizers.SGD(0.5), every=3))
    {'learning_rate': 0.5}
    """
    return {name: float(value) for name, value in hyperparameters(optimizer).items() if _is_real(value)}


def differing(optimizers: Sequence[Optimizer]) -> list[dict[str, float]]:
    """Returns, for each optimizer, those of its real hyperparameters that are not the same in all that have them.

    >>> import modulekit as mk
    >>> differing([mk.optimizers.Momentum(0.1, 0.9), mk.optimizers.Momentum(0.2, 0.9), mk.optimizers.SGD(0.1)])
    [{'learning_rate': 0.1}, {'learning_rate': 0.2}, {'learning_rate': 0.1}]
    """
    found = [real_numbers(optimizer) for optimizer in optimizers]
    values: dict[str, set[float]] = {}
    for own in found:
        for name, value in own.items():
            values.setdefault(name, set()).add(value)
    return [{name: value for name, value in own.items() if len(values[name]) > 1} for own in found]


@contextmanager
def replaced(optimizer: Optimizer, numbers: Mapping[str, Any]) -> Iterator[None]:
    """Context in which hyperparameters are other numbers, which may be traced.

    The optimizer is the same object with the same slots. Its attributes are as before when the context ends, so that what
    a compiled program assumed of them still holds; therefore none of this counts as a change.

    Args:
      optimizer: whose hyperparameters they are, or those of one that it wraps.
      numbers: the values, by name.

    >>> import modulekit as mk
    >>> sgd = mk.optimizers.SGD(0.5)
    >>> with replaced(sgd, {"learning_rate": 0.25}):
    ...     sgd.learning_rate
    0.25
    >>> sgd.learning_rate
    0.5
    """
    owners = {name: _owner(optimizer, name) for name in numbers}
    before = {name: vars(owner)[name] for name, owner in owners.items()}
    try:
        for name, owner in owners.items():
            vars(owner)[name] = numbers[name]
        yield
    finally:
        for name, owner in owners.items():
            vars(owner)[name] = before[name]


def _owner(optimizer: Optimizer, name: str) -> Optimizer:
    """Returns the optimizer, among this one and those that it wraps, whose hyperparameter it is."""
    while isinstance(optimizer, Wrapped) and name not in vars(optimizer):
        optimizer = optimizer.optimizer
    return optimizer


def _is_real(value: Any) -> bool:
    if isinstance(value, float | np.floating):
        return True
    return isinstance(value, jax.Array | np.ndarray) and bool(jnp.issubdtype(value.dtype, jnp.floating))
