"""Custom getters: what a read of a variable gives, while a context lasts.

A getter is asked at each read, `self.w` in a layer's equation, for the variables of the modules that it is meant for. It
is given the variable itself, whose value it sees as it is, and what it returns stands for the value.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax.numpy as jnp

from modulekit.core import collect, context, names
from modulekit.core.arithmetic import Arithmetic


class Getter:
    """One getter, and the modules whose variables it is meant for.

    Two of them are equal where they do the same, so that a compiled function knows its program again.

    Args:
      function: from a variable to what stands for its value.
      classes: of modules; None for any.
      instances: modules; None for any.
    """

    def __init__(
        self,
        function: Callable[[Any], Any],
        classes: Iterable[type] | None = None,
        instances: Iterable[Any] | None = None,
    ) -> None:
        self.function = function
        self._classes = None if classes is None else tuple(classes)
        self._instances = None if instances is None else tuple(instances)
        self._key = (function, self._classes, None if self._instances is None else tuple(map(id, self._instances)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Getter) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def is_meant_for(self, variable: Any) -> bool:
        """Returns whether a variable belongs to one of the modules."""
        if self._classes is None and self._instances is None:
            return True
        return any(
            (self._classes is None or isinstance(owner, self._classes))
            and (self._instances is None or any(owner is instance for instance in self._instances))
            for owner in _owners(variable)
        )


def _owners(variable: Any) -> list[Any]:
    """Returns the modules whose variable is being read: the one that runs, if it holds it; else all that do."""
    running = [frame.module for frame in names.frames() if frame.module is not None]
    for module in reversed(running[-1:]):
        if any(leaf is variable for _, leaf in collect.own_leaves(module, type(module))):
            return [module]
    return [module for module, _ in variable.holders()]


def as_seen(variable: Any) -> Any:
    """Returns the value of a variable under the getters and the cast that are switched on."""
    around = context.now()
    value = variable
    context.thread.around = around._replace(getters=(), compute_dtype=None)  # a getter sees variables as they are
    try:
        for getter in around.getters:
            if isinstance(value, Arithmetic) and getter.is_meant_for(value):
                value = getter.function(value)
        value = value.current() if isinstance(value, Arithmetic) else value
    finally:
        context.thread.around = around
    if around.compute_dtype is not None and jnp.issubdtype(jnp.result_type(value), jnp.floating):
        return jnp.asarray(value).astype(around.compute_dtype)
    return value


@contextlib.contextmanager
def custom_variable_getter(
    getter: Callable[[Any], Any],
    classes: Iterable[type] | None = None,
    instances: Iterable[Any] | None = None,
) -> Iterator[None]:
    """Context in which reading a variable of some modules gives what `getter` makes of it.

    `.value` and all arithmetic give `getter(variable)`; inside of the getter the variable is as it is. Writes, optimizers,
    statistics that a module accumulates and saving are not touched. Gradients pass through the getter. Where contexts are
    nested, the outer getter comes first, and the next one only if that returned the variable itself. A compiled function
    compiles once for each getter: give the same function object again where it is to be known again.

    Args:
      getter: from a variable to an array, or to the variable itself, which leaves its value.
      classes: of modules, whose variables are meant; those of `instances` if None, and any if both are None.
      instances: modules whose own variables are meant, those of submodules excluded; all of `classes` if None.

    Source: `snt.custom_variable_getter`, which replaces `__getattribute__` of the classes for all threads.

    >>> import jax, modulekit as mk, jax.numpy as jnp
    >>> layer = mk.Linear(2, w_init=mk.initializers.Ones())
    >>> y = layer(jnp.ones([1, 3]))
    >>> def loss():
    ...     return layer(jnp.ones([1, 3])).sum()
    >>> with custom_variable_getter(lambda w: jax.lax.stop_gradient(w.value), instances=[layer]):
    ...     mk.value_and_grad(loss, [layer.w])()[1][0].tolist()
    [[0.0, 0.0], [0.0, 0.0], [0.0, 0.0]]
    """
    around = (*context.now().getters, Getter(getter, classes, instances))
    with context.changed(getters=around):
        yield
