"""Optimizers whose arithmetic is an optax transformation."""

import abc
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from modulekit.core import births, names, storage
from modulekit.core.arithmetic import value_of
from modulekit.core.pieces import Grouping
from modulekit.core.variable import Variable
from modulekit.optimizers.base import Optimizer, Update, check_updates, thawed
from modulekit.optimizers.slots import SHARED, Layout, SlotTable, plain_leaves

Hyperparameter = float | jax.Array | Variable


class Transformed(Optimizer):
    """Abstract: keeps the state of an optax transformation in variables, slot by slot.

    `_slot_names` maps optax's field names to `(attribute, scope)`: under which attribute the slots are listed, and what
    stands before the parameter's name in theirs. `_counter_names` maps the fields that are not per parameter to the
    attributes of the variables that the constructor has made for them. `_is_elementwise` says whether each number of a
    parameter changes by its own gradient and slots alone, so that parameters may be laid together.
    """

    _slot_names: dict[str, tuple[str, str]] = {}
    _counter_names: dict[str, str] = {}
    _is_elementwise = False

    def __init__(self, name: str | None = None) -> None:
        super().__init__(name=name)
        self._slots = SlotTable()
        self._counters: tuple[str, ...] | None = None  # the attributes that hold them

    @abc.abstractmethod
    def _transformation(self) -> optax.GradientTransformation:
        """Returns the transformation for the current hyperparameters."""

    def apply(self, updates: Sequence[Update], parameters: Sequence[Variable]) -> None:
        """Changes each parameter by its update; where that is None or the parameter is frozen, it and its slots stay.

        Args:
          updates: gradients `[...]`, or None, one for each parameter; of its shape and dtype.
          parameters: the variables.

        Raises:
          ValueError: lengths, shapes or dtypes differ, or there is nothing to apply. Nothing has changed then.
        """
        check_updates(updates, parameters)
        updates = thawed(updates, parameters)
        if all(update is None for update in updates):
            return
        given = [p for u, p in zip(updates, parameters, strict=True) if u is not None]
        transformation = self._transformation()
        self._make_missing(transformation, parameters)
        # A parameter given twice has a set of slots for each place, so the places are looked up before None is dropped.
        places = self._slots.of(parameters)
        used = [slots or [] for u, slots in zip(updates, places, strict=True) if u is not None]
        gradients = [jnp.asarray(value_of(u)) for u in updates if u is not None]
        can_join = self._is_elementwise and len(set(given)) == len(given)
        together = Grouping(storage.forms_of(given) if can_join else [])
        if together.groups:
            self._apply_together(transformation, together, given, used, gradients)
            return
        layout = Layout(transformation, given)
        variables = layout.arrange(used, [getattr(self, name) for name in self._counters or ()])
        state = layout.state([v.current() for v in variables])
        steps, state = transformation.update(gradients, state, [p.current() for p in given])
        for variable, new in zip(variables, plain_leaves(state), strict=True):
            variable.assign(new.astype(variable.dtype))
        for parameter, step in zip(given, steps, strict=True):
            parameter.assign_add(step.astype(parameter.dtype))

    def _apply_together(
        self,
        transformation: optax.GradientTransformation,
        together: Grouping,
        given: list[Variable],
        slots: list[list[Variable]],
        gradients: list[Any],
    ) -> None:
        """Changes small parameters as if they were one: the arithmetic on each number is the same, and done at once."""
        values = together.joined([p.current() for p in given])
        layout = Layout(transformation, values)
        counters = [getattr(self, name) for name in self._counters or ()]
        kinds = [together.joined([v.current() for v in kind]) for kind in zip(*slots, strict=True)]
        state = layout.state(layout.arrange(list(zip(*kinds, strict=True)), [v.current() for v in counters]))
        steps, state = transformation.update(together.joined(gradients), state, values)
        leaves = plain_leaves(state)
        for counter, place in zip(counters, layout.of(SHARED), strict=True):
            counter.assign(leaves[place].astype(counter.dtype))
        new = [value + step.astype(value.dtype) for value, step in zip(values, steps, strict=True)]
        kinds = [
            list(kind) for kind in zip(*[[leaves[i] for i in layout.of(o)] for o in range(len(values))], strict=True)
        ]
        for variables, arrays in zip([given, *zip(*slots, strict=True)], [new, *kinds], strict=True):
            for variable, value in zip(variables, together.split(arrays), strict=True):
                variable.assign(value.astype(variable.dtype))

    def _make_missing(self, transformation: optax.GradientTransformation, parameters: Sequence[Variable]) -> None:
        owned = self._slots.of(parameters)
        if self._counters is not None and None not in owned:
            return
        layout = Layout(transformation, parameters)

        def make() -> None:
            first = plain_leaves(transformation.init([p.current() for p in parameters]))
            if self._counters is None:
                self._counters = tuple(self._make_counter(layout, first, place) for place in layout.of(SHARED))
            for index, (parameter, slots) in enumerate(zip(parameters, owned, strict=True)):
                if slots is None:
                    made = [self._make_slot(parameter, layout.leaves[i].field, first[i]) for i in layout.of(index)]
                    self._slots.add(parameter, made)

        with names.absolute(self.scope_name):
            births.run_outside(make)

    def slot_owners(self) -> dict[Variable, Variable]:
        """Returns the parameter of each slot, which lies on a mesh as its parameter does."""
        return self._slots.owners()

    def _make_counter(self, layout: Layout, first: Sequence[Any], place: int) -> str:
        """Makes a variable for a leaf that belongs to no parameter; returns the attribute that holds it."""
        field = layout.leaves[place].field
        if field in self._counter_names:
            return self._counter_names[field]  # the constructor has made it
        attribute, count = field, 1
        while hasattr(self, attribute):
            count += 1
            attribute = f"{field}_{count}"
        setattr(self, attribute, Variable(first[place], trainable=False, name=attribute))
        return attribute

    def _make_slot(self, parameter: Variable, field: str, value: Any) -> Variable:
        attribute, scope = self._slot_names.get(field, (field, field))
        made = Variable(value, trainable=False, name=f"{scope}/{parameter.name}")
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
