"""`Sequential`: layers one after the other."""

from collections.abc import Callable, Iterable
from typing import Any

from modulekit.core.module import Module


class Sequential(Module):
    """Calls layers in order, each with the output of the one before: `y = layer_n(... layer_2(layer_1(x)))`.

    Args:
      layers: modules or functions of one argument; without any, `y = x`.
      name: the module's name.

    Raises:
      TypeError: one of the layers cannot be called.

    Source: Sonnet 2, `snt.Sequential`.

    >>> import jax, modulekit as mk, jax.numpy as jnp
    >>> net = mk.Sequential([mk.Linear(30), jax.nn.relu, mk.Linear(10)])
    >>> net(jnp.ones([2, 5])).shape
    (2, 10)
    """

    def __init__(self, layers: Iterable[Callable[..., Any]] | None = None, name: str | None = None) -> None:
        super().__init__(name=name)
        self.layers: list[Callable[..., Any]] = list(layers) if layers is not None else []
        for index, layer in enumerate(self.layers):
            if not callable(layer):
                raise TypeError(f"layers[{index}] of Sequential is {layer!r}: expected a module or a function")

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Returns the last layer's output for `inputs`; further `args` and `kwargs` go to the first layer."""
        outputs = inputs
        for index, layer in enumerate(self.layers):
            outputs = layer(outputs, *args, **kwargs) if index == 0 else layer(outputs)
        return outputs
