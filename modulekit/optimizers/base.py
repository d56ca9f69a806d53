"""What every optimizer is: a module that applies updates to variables."""

import abc
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from modulekit.core import matching, ties
from modulekit.core.arithmetic import value_of
from modulekit.core.explain import summarize
from modulekit.core.methods import no_name_scope
from modulekit.core.module import Module
from modulekit.core.variable import Variable
from modulekit.transforms.gradients import checked_loss, value_and_grad
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

    def apply_gradients(
        self, gradients: Pairs | Mapping[str, Any], module: Module | None = None, weight: Any = 1.0
    ) -> None:
        """Applies gradients, wherever they were computed: all of them or, where one does not fit, none.

        Args:
          gradients: pairs `(gradient, variable)`; or, with `module`, one gradient for the path of each of its trainable
            variables. Gradients are arrays (NumPy's too) of their variable's shape and dtype.
          module: whose paths they are.
          weight: how many examples the gradients are the mean of, as in `minimize`.

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
        apply_mean(self, [gradient for gradient, _ in pairs], [variable for _, variable in pairs], weight)

    def compute_gradients(self, loss: Callable[[], Any], variables: Targets) -> list[tuple[Any, Variable]]:
        """Returns `(gradient, variable)` pairs of a loss.

        Args:
          loss: a function without arguments that returns a scalar.
          variables: variables; modules stand for their trainable variables.
        """
        _, gradients = gradients_of(self, loss, variables)
        return list(zip(gradients, targets_in(variables), strict=True))

    def minimize(self, loss: Callable[[], Any], variables: Targets, weight: Any = 1.0, *, has_aux: bool = False) -> Any:
        """Takes one step down the gradient of a loss, and returns the loss before the step.

        Args:
          loss: a function without arguments that returns a scalar, or `(scalar, aux)` with `has_aux`.
          variables: variables; modules stand for their trainable variables.
          weight: how many examples the loss is the mean of, a number or a scalar array. It matters where the gradients of
            several batches make one step, as in `Accumulated`.
          has_aux: whether `loss` returns something beside the loss; then so does `minimize`, `(loss, aux)`.
        """
        value, gradients = gradients_of(self, loss, variables, has_aux)
        targets = targets_in(variables)
        if targets or not _holds_frozen(variables):
            apply_mean(self, gradients, targets, weight)
        return value


class Wrapped(Optimizer):
    """Abstract: an optimizer that changes updates, or hyperparameters, and hands them on to another optimizer.

    A wrapper defines `_apply(updates, parameters, weight)`, which calls `_hand_on` with as many. What the other optimizer's
    constructor takes as numbers, such as `learning_rate`, is read and set through the wrapper.

    Args:
      optimizer: the other one.
      name: the module's name.

    Raises:
      TypeError: the other one is no optimizer.

    Source: Optax, `optax.chain`, of which a wrapper is the first part.

    >>> class Ascent(Wrapped):
    ...     def _apply(self, updates, parameters, weight):
    ...         self._hand_on([None if u is None else -u for u in updates], parameters, weight)
    >>> import modulekit as mk
    >>> w, ascent = Variable(1.0, name="w"), Ascent(mk.optimizers.SGD(0.5))
    >>> ascent.learning_rate = 0.25
    >>> float(ascent.minimize(lambda: w**2, [w])), float(w)
    (1.0, 1.5)
    """

    def __init__(self, optimizer: Optimizer, name: str | None = None) -> None:
        super().__init__(name=name)
        if not isinstance(optimizer, Optimizer):
            raise TypeError(
                f"{type(self).__name__} wraps an optimizer, such as mk.optimizers.Adam(), not {optimizer!r}"
            )
        self.optimizer = optimizer

    def apply(self, updates: Sequence[Update], parameters: Sequence[Variable], weight: Any = 1.0) -> None:
        """Hands updates on, changed; where one is None, parameter and slots stay as they are.

        Args:
          updates: gradients `[...]`, or None, one for each parameter; of its shape and dtype.
          parameters: the variables.
          weight: how many examples the updates are the mean of.

        Raises:
          ValueError: lengths, shapes or dtypes differ, or there is nothing to apply. Nothing has changed then.
        """
        check_updates(updates, parameters)
        updates = [None if u is None else jnp.asarray(value_of(u)) for u in updates]
        self._apply(updates, list(parameters), weight)

    @abc.abstractmethod
    def _apply(self, updates: list[Update], parameters: list[Variable], weight: Any) -> None:
        """Changes updates, which are arrays or None and fit, and hands them on."""

    def _hand_on(self, updates: Sequence[Update], parameters: Sequence[Variable], weight: Any) -> None:
        apply_mean(self.optimizer, updates, parameters, weight)

    def __getattr__(self, name: str) -> Any:
        if self._is_handed_on(name):
            return getattr(self.optimizer, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        if self._is_handed_on(name):
            setattr(self.optimizer, name, value)
        else:
            super().__setattr__(name, value)

    @no_name_scope
    def _is_handed_on(self, name: str) -> bool:
        is_own = name in vars(self) or not self._modulekit.text  # which is there once the constructor has run
        return not is_own and name in hyperparameters(self.optimizer)


def thawed(updates: Sequence[Update], parameters: Sequence[Variable]) -> list[Update]:
    """Returns updates with None for the parameters that are frozen."""
    for parameter in parameters:
        if parameter.frozen:
            parameter.current()  # a compiled step notices the flags of variables that it reads, so the thaw as well
    return [None if p.frozen else u for u, p in zip(updates, parameters, strict=True)]


def gradients_of(
    optimizer: Optimizer, loss: Callable[[], Any], variables: Targets, has_aux: bool = False
) -> tuple[Any, list[Update]]:
    """Returns a loss and its gradients for an optimizer, which may ask for a scaled loss in between: see `LossScaled`."""
    scale = _loss_scale(optimizer)
    if scale is None:
        value, gradients = value_and_grad(loss, variables, has_aux)()
        return value, gradients

    def scaled() -> tuple[Any, Any]:
        told = loss()
        value = jnp.asarray(checked_loss(told[0] if has_aux else told))
        return value.astype(jnp.promote_types(value.dtype, scale.dtype)) * scale, told

    (_, told), gradients = value_and_grad(scaled, variables, has_aux=True)()
    return told, [None if g is None else (g / scale).astype(g.dtype) for g in gradients]


def _loss_scale(optimizer: Optimizer) -> Any:
    """Returns what the loss of an optimizer is to be multiplied by, None for nothing; wrappers hand the question on."""
    if hasattr(optimizer, "loss_scale"):
        return optimizer.loss_scale()
    return _loss_scale(optimizer.optimizer) if isinstance(optimizer, Wrapped) else None


def apply_mean(optimizer: Optimizer, updates: Sequence[Update], parameters: Sequence[Variable], weight: Any) -> None:
    """Applies updates that are the mean over `weight` examples: an optimizer that wraps no other takes any mean alike."""
    if isinstance(optimizer, Wrapped):
        optimizer.apply(updates, parameters, weight)
    else:
        optimizer.apply(updates, parameters)


def hyperparameters(optimizer: Optimizer) -> dict[str, Any]:
    """Returns the numbers among the arguments of an optimizer's constructor, and of those that it wraps, by name."""
    own = {name: vars(optimizer)[name] for name in _arguments(optimizer) if _is_number(vars(optimizer).get(name))}
    return {**hyperparameters(optimizer.optimizer), **own} if isinstance(optimizer, Wrapped) else own


def _arguments(optimizer: Optimizer) -> Iterable[str]:
    return inspect.signature(type(optimizer).__init__).parameters


def _is_number(value: Any) -> bool:
    kinds = (int, float, np.number, np.ndarray, jax.Array, Variable)
    return isinstance(value, kinds) and not isinstance(value, bool) and getattr(value, "shape", ()) == ()


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
