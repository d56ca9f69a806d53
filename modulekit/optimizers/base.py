"""What every optimizer is: a module that applies updates to variables."""

import abc
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax.numpy as jnp

from modulekit.core.explain import summarize
from modulekit.core.module import Module
from modulekit.core.variable import Variable
from modulekit.transforms.gradients import value_and_grad
from modulekit.transforms.purified import Targets, targets_in

Update = Any
Pairs = Iterable[tuple[Update, Variable]]


class Optimizer(Module):
    """Abstract: `apply(updates, parameters)` is all that a new optimizer must define."""

    @abc.abstractmethod
    def apply(self, updates: Sequence[Update], parameters: Sequence[Variable]) -> None:
        """Changes each parameter by its update; where that is None, parameter and slots stay as they are."""

    def apply_gradients(self, pairs: Pairs) -> None:
        """Applies `(gradient, variable)` pairs, wherever the gradients were computed.

        Args:
          pairs: gradients as arrays (NumPy's too) of their variable's shape and dtype.
        """
        pairs = list(pairs)
        self.apply([gradient for gradient, _ in pairs], [variable for _, variable in pairs])

    def compute_gradients(self, loss: Callable[[], Any], variables: Targets) -> list[tuple[Any, Variable]]:
        """Returns `(gradient, variable)` pairs of a loss.

        Args:
          loss: a function without arguments that returns a scalar.
          variables: variables; modules stand for their trainable variables.
        """
        _, gradients = value_and_grad(loss, variables)()
        return list(zip(gradients, targets_in(variables), strict=True))

    def minimize(self, loss: Callable[[], Any], variables: Targets) -> Any:
        """Takes one step down the gradient of a loss, and returns the loss before the step.

        Args:
          loss: a function without arguments that returns a scalar.
          variables: variables; modules stand for their trainable variables.
        """
        value, gradients = value_and_grad(loss, variables)()
        self.apply(gradients, targets_in(variables))
        return value


def check_updates(updates: Sequence[Update], parameters: Sequence[Variable]) -> None:
    """Raises `ValueError` unless there is one update of the right shape and dtype, or None, for each parameter."""
    if len(updates) != len(parameters):
        raise ValueError(
            f"`updates` and `parameters` must be the same length. Received: {len(updates)} updates and "
            f"{len(parameters)} parameters"
        )
    if not parameters:
        raise ValueError("`parameters` cannot be empty.")
    if all(update is None for update in updates):
        raise ValueError("No updates provided for any parameter.")
    for update, parameter in zip(updates, parameters, strict=True):
        if update is None:
            continue
        if not isinstance(parameter, Variable):
            raise TypeError(f"parameters must be variables. Received: {summarize(parameter)}")
        if jnp.shape(update) != parameter.shape:
            raise ValueError(
                f"Shape of update {summarize(update)} is not equal to that of parameter {parameter.describe()}, "
                f"{list(parameter.shape)}"
            )
        if jnp.result_type(update) != parameter.dtype:
            raise ValueError(
                f"DType of update {summarize(update)} is not equal to that of parameter {parameter.describe()}, "
                f"{parameter.dtype}"
            )
