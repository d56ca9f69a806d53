"""Optimizers whose arithmetic is an optax transformation."""

import abc
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from modulekit.core import names
from modulekit.core.arithmetic import value_of
from modulekit.core.overlay import concrete
from modulekit.core.variable import Variable
from modulekit.optimizers.base import Optimizer, Update, check_updates
from modulekit.optimizers.slots import Layout, SlotTable

Hyperparameter = float | jax.Array | Variable


class Transformed(Optimizer):
    """Abstract: keeps the state of an optax transformation in variables, slot by slot.

    `_slot_names` maps optax's field names to `(attribute, scope)`: under which attribute the slots are listed, and what
    stands before the parameter's name in theirs. `_counter_names` does the same for what is not per parameter.
    """

    _slot_names: dict[str, tuple[str, str]] = {}
    _counter_names: dict[str, tuple[str, str]] = {}

    def __init__(self, name: str | None = None) -> None:
        super().__init__(name=name)
        self._slots = SlotTable()
        self._counters: tuple[Variable, ...] | None = None

    @abc.abstractmethod
    def _transformation(self) -> optax.GradientTransformation:
        """Returns the transformation for the current hyperparameters."""

    def apply(self, updates: Sequence[Update], parameters: Sequence[Variable]) -> None:
        """Changes each parameter by its update; where that is None, parameter and slots stay as they are.

        Args:
          updates: gradients, or None, one for each parameter; of its shape and dtype.
          parameters: the variables.

        Raises:
          ValueError: lengths, shapes or dtypes differ, or there is nothing to apply. Nothing has changed then.
        """
        check_updates(updates, parameters)
        given = [p for u, p in zip(updates, parameters, strict=True) if u is not None]
        transformation = self._transformation()
        layout = Layout(transformation, parameters)
        self._make_missing(layout, parameters)
        if len(given) < len(parameters):
            layout = Layout(transformation, given)
        # A parameter given twice has a set of slots for each place, so the places are looked up before None is dropped.
        places = self._slots.of(parameters)
        used = [slots or [] for u, slots in zip(updates, places, strict=True) if u is not None]
        variables = layout.arrange(used, self._counters or ())
        state = jax.tree.unflatten(layout.tree, [v.value for v in variables])
        steps, state = transformation.update(
            [jnp.asarray(value_of(u)) for u in updates if u is not None], state, [p.value for p in given]
        )
        for variable, new in zip(variables, jax.tree.leaves(state), strict=True):
            variable.assign(jnp.asarray(new).astype(variable.dtype))
        for parameter, step in zip(given, steps, strict=True):
            parameter.assign_add(step.astype(parameter.dtype))

    def _make_missing(self, layout: Layout, parameters: Sequence[Variable]) -> None:
        if self._counters is None:
            self._counters = tuple(self._make_counter(*item) for item in self._fields(layout, -1, self._counter_names))
        for index, (parameter, slots) in enumerate(zip(parameters, self._slots.of(parameters), strict=True)):
            if slots is None:
                fields = self._fields(layout, index, self._slot_names)
                self._slots.add(parameter, [self._make_slot(parameter, *item) for item in fields])

    def _fields(self, layout: Layout, owner: int, table: dict[str, tuple[str, str]]) -> Any:
        for field, spec in zip(layout.names(owner), layout.specs(owner), strict=True):
            yield (*table.get(field, (field, field)), spec)

    def _make_counter(self, attribute: str, name: str, spec: jax.ShapeDtypeStruct) -> Variable:
        if isinstance(getattr(self, attribute, None), Variable):
            existing: Variable = getattr(self, attribute)
            return existing
        with names.absolute(self.scope_name), concrete():
            made = Variable(jnp.zeros(spec.shape, spec.dtype), trainable=False, name=name)
        setattr(self, attribute, made)
        return made

    def _make_slot(self, parameter: Variable, attribute: str, scope: str, spec: jax.ShapeDtypeStruct) -> Variable:
        with names.absolute(self.scope_name), concrete():
            made = Variable(jnp.zeros(spec.shape, spec.dtype), trainable=False, name=f"{scope}/{parameter.name}")
        setattr(self, attribute, (*getattr(self, attribute, ()), made))
        return made


def scaled(learning_rate: Hyperparameter) -> optax.GradientTransformation:
    """Returns the transformation that multiplies updates by a learning rate, in their own dtype."""
    rate = value_of(learning_rate)

    def update(updates: Any, params: Any) -> Any:
        return jax.tree.map(lambda g: g * jnp.asarray(rate, g.dtype), updates)

    return optax.stateless(update)


def descent(learning_rate: Hyperparameter) -> optax.GradientTransformation:
    """Returns the transformation that multiplies updates by `-learning_rate`, in their own dtype."""
    return scaled(-value_of(learning_rate))
