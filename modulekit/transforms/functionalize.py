"""`functionalize`: a pure function and its arrays, for any plain JAX transform."""

from collections.abc import Callable, Sequence
from typing import Any

import jax

from modulekit.core import storage
from modulekit.core.module import Module
from modulekit.core.overlay import Overlay, bakes_reads
from modulekit.core.variable import Variable
from modulekit.transforms.settle import plain, values_of


class Pure:
    """A pure function made by `functionalize`: `result, new_values = pure(values, *args)`.

    Attributes:
      variables: the variables whose values it takes and returns, in order.
    """

    def __init__(self, function: Callable[..., Any], variables: Sequence[Variable]) -> None:
        self._function = function
        self.variables = tuple(variables)

    def __call__(self, values: Sequence[Any], *args: Any, **kwargs: Any) -> tuple[Any, list[Any]]:
        """Returns the function's result and the new values. The variables themselves do not change."""
        bindings = dict(zip(self.variables, values, strict=True))
        # What JAX keeps of a compiled function inside holds the tracers of this trace, and must not serve another one.
        traced = any(isinstance(value, jax.core.Tracer) for value in values)
        with Overlay(bindings, baked=bakes_reads(), isolated=traced) as running:
            result = plain(self._function(*args, **kwargs))
        for written in running.written:
            if written not in bindings:
                raise ValueError(
                    f"{written.describe()} is written by a functionalized function that does not know it: "
                    "add it to the variables given to mk.functionalize"
                )
        return result, [running.values[v] for v in self.variables]

    def values(self) -> list[jax.Array]:
        """Returns the current arrays of the variables."""
        return values_of(self.variables)

    def commit(self, new_values: Sequence[Any]) -> None:
        """Assigns new values to the variables, all of them or, on a wrong shape or dtype, none."""
        checked = [v.conforming(value) for v, value in zip(self.variables, new_values, strict=True)]
        storage.commit(self.variables, checked)


def functionalize(function: Callable[..., Any], variables: Module | Sequence[Variable]) -> tuple[Pure, list[jax.Array]]:
    """Returns a pure function of arrays, and the arrays, from a function that uses variables.

    Args:
      function: any function that reads and writes variables.
      variables: those that it uses, or a module (then: all of its variables). Others may be read as constants by a
        transform that does not compile; writing another one is an error. A backward rule of `jax.custom_vjp` inside takes
        the values that it needs from its residuals: JAX runs it when the function has long returned.

    Returns:
      `(pure, values)`: `pure(values, *args)` returns `(result, new_values)` and may be handed to any JAX transform;
      `pure.commit(new_values)` takes new values back.

    >>> import jax, modulekit as mk
    >>> w = mk.Variable(3.0, name="w")
    >>> pure, values = mk.functionalize(lambda x: x * w, [w])
    >>> jax.vmap(pure, in_axes=(None, 0), out_axes=(0, None))(values, jax.numpy.arange(3.0))[0].tolist()
    [0.0, 3.0, 6.0]
    """
    listed = variables.variables if isinstance(variables, Module) else variables
    pure = Pure(function, listed)
    return pure, pure.values()
