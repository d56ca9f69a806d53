"""What every optimizer is: a module that applies updates to variables."""

import abc
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from modulekit.core import matching, ties
from modulekit.core.arithmetic import value_of
from modulekit.core.explain import summarize
from modulekit.core.module import Module
from modulekit.core.variable import Variable
from modulekit.transforms.gradients import value_and_grad
from modulekit.transforms.purified import Targets, targets_in

Update = Any
Pairs = Iterable[tuple[Update, Variable]]


class Optimizer(Module):
    """Abstract: `apply(updates, parameters)` is all that a new optimizer must define.

    Source: Sonnet 2, `snt.Optimizer`. `apply_gradients`, `compute_gradients` and `minimize` are additions.

    >>> class SignDescent(Optimizer):
    ...     def apply(self, updates, parameters):
    ...         for update, parameter in zip(updates, parameters, strict=True):
    ...             parameter.assign_sub(0.25 * jnp.sign(update))
    >>> w = Variable(1.0, name="w")
    >>> float(SignDescent().minimize(lambda: w**2, [w])), float(w)
    (1.0, 0.75)
    """

    @abc.abstractmethod
    def apply(self, updates: Sequence[Update], parameters: Sequence[Variable]) -> None:
        """Changes each parameter by its update; where that is None, parameter and slots stay as they are.

        Args:
          updates: gradients `[...]`, or None, one for each parameter; of its shape and dtype.
          parameters: the variables.
        """

    def apply_gradients(self, gradients: Pairs | Mapping[str, Any], module: Module | None = None) -> None:
        """Applies gradients, wherever they were computed: all of them or, where one does not fit, none.

        Args:
          gradients: pairs `(gradient, variable)`; or, with `module`, one gradient for the path of each of its trainable
            variables. Gradients are arrays (NumPy's too) of their variable's shape and dtype.
          module: whose paths they are.

        Raises:
          ValueError: a path is missing or unexpected, the paths of a tied variable are given apart, a shape or dtype
            differs, or a gradient is not finite (as far as it is known while a transform traces). Nothing has changed.
        """
        if not isinstance(gradients, Mapping):
            pairs = list(gradients)
            for gradient, variable in pairs:
                _check_gradient(gradient, variable)
        elif module is None:
            raise TypeError(
                "gradients by path need the module whose paths they are: apply_gradients(gradients, module)"
            )
        else:
            paths = ties.all_paths(module, Module)
            trained = {variable: places for variable, places in paths.items() if variable.trainable}
            fitting = matching.matched(repr(module), trained, gradients, "gradient")
            pairs = [(fitting[variable], variable) for variable in trained]
            if not pairs and _holds_frozen(module):
                return
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
        targets = targets_in(variables)
        if targets or not _holds_frozen(variables):
            self.apply(gradients, targets)
        return value


def _holds_frozen(variables: Targets) -> bool:
    """Returns whether there is nothing to change because it is frozen, which is no mistake of the caller's."""
    listed = [variables] if isinstance(variables, Module) else variables
    return any(v.frozen for module in listed if isinstance(module, Module) for v in module.paths().values())


def _check_gradient(gradient: Update, variable: Variable) -> None:
    problems = [] if gradient is None else list(matching.misfits(variable, value_of(gradient), must_be_finite=True))
    if problems:
        raise ValueError(f"the gradient of {variable.describe()} {'; '.join(problems)}. Nothing has changed")


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
