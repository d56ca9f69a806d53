"""Accumulation: the gradients of several batches make one step, each counted by its number of examples."""

from typing import Any

import jax
import jax.numpy as jnp

from modulekit.core import births, names
from modulekit.core.arithmetic import value_of
from modulekit.core.explain import summarize
from modulekit.core.variable import Variable
from modulekit.optimizers.base import Optimizer, Update, Wrapped, thawed
from modulekit.optimizers.slots import SlotTable
from modulekit.transforms.control import cond


class Accumulated(Wrapped):
    """Hands every `every`-th time the mean of all updates since the last to an optimizer: `g = sum_i w_i g_i / sum_i w_i`.

    `w_i` is the number of examples that the update `g_i` is the mean of, so that batches of 4, 4 and 2 make the step of
    the batch of 10. In between, parameters and the optimizer's variables stay as they are. A parameter that comes in later,
    or whose update is None now and then, counts with zero where it had none; one that has never had any is handed on as
    None. What was summed for a parameter that is frozen or gone when the mean is taken is dropped.

    Args:
      optimizer: takes the means `[...]`.
      every: how many updates make one step.
      name: the module's name.

    Attributes:
      count: a variable, the number of updates since the last step.
      weight: a variable, the examples in them.
      sums: the variables that hold `sum_i w_i g_i`, in float32 at least, one for each parameter.

    Raises:
      ValueError: `every` is below 1.
      TypeError: `every` is no integer.

    Sources: Optax, `optax.MultiSteps`, which counts all batches alike.

    >>> import modulekit as mk
    >>> w = mk.Variable(0.0, name="w")
    >>> sgd = Accumulated(mk.optimizers.SGD(1.0), every=2)
    >>> for mean, examples in ((1.0, 3), (5.0, 1)):
    ...     sgd.apply([jnp.array(mean)], [w], weight=examples)
    ...     float(w)
    0.0
    -2.0
    """

    def __init__(self, optimizer: Optimizer, every: int, name: str | None = None) -> None:
        super().__init__(optimizer, name=name)
        if isinstance(every, bool) or not isinstance(every, int):
            raise TypeError(f"every={every!r} is a {type(every).__name__}: expected an integer of at least 1")
        if every < 1:
            raise ValueError(f"every={every}: expected at least 1 update for a step")
        self.every = every
        self.count = Variable(jnp.zeros([], jnp.int32), trainable=False, name="count")
        self.weight = Variable(jnp.zeros([], jnp.float32), trainable=False, name="weight")
        self.sums: tuple[Variable, ...] = ()
        self._slots = SlotTable()

    def slot_owners(self) -> dict[Variable, Variable]:
        """Returns the parameter of each slot, which lies on a mesh as its parameter does."""
        return self._slots.owners()

    def _apply(self, updates: list[Update], parameters: list[Variable], weight: Any) -> None:
        weight = _checked(weight)
        if self.every == 1:
            self._hand_on(updates, parameters, weight)
            return
        updates = thawed(updates, parameters)
        self._make_missing({p for u, p in zip(updates, parameters, strict=True) if u is not None}, parameters)
        for update, total in zip(updates, self._sums_of(parameters), strict=True):
            if update is not None and total is not None:
                total.assign_add(weight.astype(total.dtype) * update.astype(total.dtype))
        self.weight.assign_add(weight)
        self.count.assign_add(1)
        is_complete = self.count.current() >= value_of(self.every)
        if isinstance(is_complete, jax.core.Tracer):
            cond(is_complete, lambda: self._step(parameters), lambda: None)
        elif is_complete:
            self._step(parameters)

    def _step(self, parameters: list[Variable]) -> None:
        """Hands the means on, and begins anew."""
        weight = self.weight.current()
        sums = zip(parameters, self._sums_of(parameters), strict=True)
        means = [None if total is None else _mean(total, weight).astype(p.dtype) for p, total in sums]
        if any(mean is not None for mean in means):
            self._hand_on(means, parameters, weight)
        for variable in (*self.sums, self.weight, self.count):
            variable.assign(jnp.zeros(variable.shape, variable.dtype))

    def _sums_of(self, parameters: list[Variable]) -> list[Variable | None]:
        return [None if slots is None else slots[0] for slots in self._slots.of(parameters)]

    def _make_missing(self, updated: set[Variable], parameters: list[Variable]) -> None:
        def make() -> None:
            for parameter, total in zip(parameters, self._sums_of(parameters), strict=True):
                if total is None and parameter in updated:
                    zeros = jnp.zeros_like(parameter.stored(), jnp.promote_types(parameter.dtype, jnp.float32))
                    made = Variable(zeros, trainable=False, name=f"sums/{parameter.name}")
                    self._slots.add(parameter, [made])
                    self.sums = (*self.sums, made)

        with names.absolute(self.scope_name):
            births.run_outside(make)


def _mean(total: Variable, weight: jax.Array) -> jax.Array:
    return total.current() / weight.astype(total.dtype)


def _checked(weight: Any) -> jax.Array:
    """Returns a weight as a float32 scalar."""
    weight = value_of(weight)
    if jnp.shape(weight) != ():
        raise ValueError(f"weight={summarize(weight)}: expected a scalar, the number of examples of the updates' mean")
    if isinstance(weight, int | float) and not weight >= 0:
        raise ValueError(f"weight={weight}: expected the number of examples that the updates are the mean of")
    return jnp.asarray(weight, jnp.float32)
