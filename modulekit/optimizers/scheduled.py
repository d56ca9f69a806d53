"""Hyperparameters that follow a schedule: functions of the number of updates done."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from modulekit.core.explain import summarize
from modulekit.core.variable import Variable
from modulekit.optimizers.base import Optimizer, Update, Wrapped, hyperparameters

Schedule = Callable[[jax.Array], Any]


class Scheduled(Wrapped):
    """Sets hyperparameters of an optimizer before each update, from the updates done: `learning_rate <- schedule(count)`.

    Each of them becomes a scalar variable of the wrapped optimizer. So its value is computed inside the compiled program,
    which stays the same, and is saved with the run; `scheduled.learning_rate` is that of the last update. Each `apply` is
    an update: around `Accumulated` each batch, inside of it each step.

    Args:
      optimizer: whose hyperparameters they are; it may be a wrapper itself.
      name: the module's name.
      **schedules: by hyperparameter, functions from `count`, an int32 scalar `[]`, to a scalar, such as optax's.

    Attributes:
      count: a variable, the number of updates done.
      schedules: the functions.

    Raises:
      ValueError: the optimizer has no such hyperparameter, or it is on a schedule already; the message lists those it has.
      TypeError: a schedule is no function, or gives no scalar.

    Source: Optax, `optax.inject_hyperparams`.

    >>> import modulekit as mk, optax
    >>> w = mk.Variable(1.0, name="w")
    >>> sgd = Scheduled(mk.optimizers.SGD(0.5), learning_rate=optax.linear_schedule(0.5, 0.0, 2))
    >>> for _ in range(3):
    ...     sgd.apply([jnp.ones([])], [w])
    >>> float(w), int(sgd.count), float(sgd.learning_rate)
    (0.25, 3, 0.0)
    """

    def __init__(self, optimizer: Optimizer, name: str | None = None, **schedules: Schedule) -> None:
        super().__init__(optimizer, name=name)
        self.schedules = schedules
        self.count = Variable(jnp.zeros([], jnp.int32), trainable=False, name="count")
        known, taken = hyperparameters(optimizer), _scheduled(optimizer)
        for parameter, schedule in schedules.items():
            if parameter not in known:
                listed = ", ".join(known) or "none"
                raise ValueError(f"{optimizer!r} has no hyperparameter {parameter!r} for a schedule; it has: {listed}")
            if parameter in taken:
                raise ValueError(f"{parameter} of {optimizer!r} is on a schedule already: give it one schedule")
            first = _checked(parameter, schedule)
            if not isinstance(known[parameter], Variable):
                setattr(optimizer, parameter, Variable(first, trainable=False, name=parameter))

    def _apply(self, updates: list[Update], parameters: list[Variable], weight: Any) -> None:
        count = self.count.current()
        for parameter, schedule in self.schedules.items():
            variable = getattr(self.optimizer, parameter)
            if not isinstance(variable, Variable):
                raise ValueError(
                    f"{parameter} of {self.optimizer!r} is on a schedule, and was set to {variable!r}: make the optimizer "
                    "without Scheduled to set it by hand"
                )
            variable.assign(jnp.asarray(schedule(count)).astype(variable.dtype))
        self.count.assign_add(1)
        self._hand_on(updates, parameters, weight)


def _scheduled(optimizer: Optimizer) -> set[str]:
    """Returns what is on a schedule in an optimizer and those that it wraps."""
    own = set(optimizer.schedules) if isinstance(optimizer, Scheduled) else set()
    return own | _scheduled(optimizer.optimizer) if isinstance(optimizer, Wrapped) else own


def _checked(parameter: str, schedule: Any) -> jax.Array:
    """Returns the value for the first update."""
    if not callable(schedule):
        raise TypeError(
            f"{parameter}={schedule!r} is no schedule: expected a function from the number of updates done to a scalar; a "
            "constant is given to the optimizer itself"
        )
    first = jnp.asarray(schedule(jnp.zeros([], jnp.int32)))
    if first.shape != () or not jnp.issubdtype(first.dtype, jnp.number):
        raise TypeError(f"the schedule of {parameter} gave {summarize(first)} for 0 updates done: expected a scalar")
    return first.astype(jnp.promote_types(first.dtype, jnp.float32))
