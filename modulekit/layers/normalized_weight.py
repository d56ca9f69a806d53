"""`NormalizedWeight`: a layer that computes with a normalized weight."""

from collections.abc import Callable
from typing import Any, cast

import jax

from modulekit.core.arithmetic import array_of
from modulekit.core.getters import custom_variable_getter
from modulekit.core.module import Module
from modulekit.core.once import once
from modulekit.core.variable import Variable
from modulekit.layers.inputs import location
from modulekit.transforms.build import build


class NormalizedWeight(Module):
    """`y = layer(x)`, computed with `norm(w)` in the place of the layer's weight `w`.

    The layer keeps its variables, names and shapes; who else reads the weight, such as a tied transpose, sees it as it is.

    Args:
      layer: a layer with a weight, such as `Linear` or `Conv2D`.
      norm: from the weight, `[*window, inputs, outputs]`, to an array of its shape: `SpectralNorm()`, `WeightNorm()`, or a
        function.
      weight: the layer's attribute that holds the weight.
      name: the module's name.

    Source: Salimans and Kingma, Weight normalization, 2016; Miyato et al., Spectral normalization for generative adversarial
    networks, 2018.

    >>> import modulekit as mk, jax.numpy as jnp
    >>> critic = mk.NormalizedWeight(mk.Linear(4), mk.SpectralNorm(n_steps=20))
    >>> critic(jnp.ones([2, 3]), is_training=True).shape
    (2, 4)
    >>> [path for path in critic.paths()]
    ['layer.b', 'layer.w', 'norm.sigma', 'norm.u']
    """

    def __init__(self, layer: Module, norm: Callable[..., Any], weight: str = "w", name: str | None = None) -> None:
        super().__init__(name=name)
        self.layer = layer
        self.norm = norm
        self.weight = weight

    @once
    def _initialize(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        build(cast(Any, self.layer), *map(_specification, args), **kwargs)

    def __call__(self, *args: Any, is_training: bool | None = None, **kwargs: Any) -> Any:
        """Returns what the layer returns.

        Args:
          *args: those of the layer, `[batch, ..., inputs]`.
          is_training: handed to `norm`; None where it takes none.
          **kwargs: those of the layer.

        Raises:
          ValueError: the layer holds no variable of that name.
        """
        self._initialize(args, kwargs)
        weight = getattr(self.layer, self.weight, None)
        if not isinstance(weight, Variable):
            raise ValueError(
                f"{location(self)} expects {self.layer!r} to hold a variable {self.weight!r}, got {weight!r}: say by "
                "`weight` which of its attributes is meant"
            )
        normalized = self.norm(weight) if is_training is None else self.norm(weight, is_training=is_training)
        with custom_variable_getter(lambda read: normalized if read is weight else read, instances=[self.layer]):
            return cast(Any, self.layer)(*args, **kwargs)


def _specification(value: Any) -> Any:
    if not hasattr(value, "shape"):
        return value
    array = array_of(value)
    return jax.ShapeDtypeStruct(array.shape, array.dtype)
