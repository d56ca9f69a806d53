"""`stack`: many layers of one kind, run as a loop over their stacked weights."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from modulekit.core.explain import summarize
from modulekit.core.module import Module
from modulekit.core.once import once
from modulekit.core.streams import stream_of
from modulekit.core.variable import Variable
from modulekit.layers.inputs import location
from modulekit.transforms.build import eval_shape
from modulekit.transforms.loops import scan


class Stack(Module):
    """`layer_n(... layer_2(layer_1(x)))` as one loop, so that compiling a hundred layers takes as long as compiling one.

    Args:
      layer: a module that has not been called yet, or a function that makes one. It returns what it takes: the same shape
        and dtype.
      n: the number of layers.
      unroll: how many layers the compiled loop's body holds.
      name: the module's name.

    Attributes:
      layer: after the first call, one layer whose variables hold those of all layers, stacked: `[n, ...]`.

    Raises:
      ValueError: `n` is below 1, or the layer has been called before, so that all would have the same weights.
    """

    def __init__(
        self, layer: Module | Callable[[], Module], n: int, unroll: int | bool = 1, name: str | None = None
    ) -> None:
        super().__init__(name=name)
        if n < 1:
            raise ValueError(f"a stack of n={n} layers: give at least 1")
        if isinstance(layer, Module) and _has_run(layer):
            raise ValueError(
                f"{layer!r} has been called and has its weights, and each layer of a stack has its own: give a fresh one"
            )
        self.layer: Any = layer
        self.n = n
        self.unroll = unroll

    @once
    def _initialize(self, x: Any, *args: Any, **kwargs: Any) -> None:
        x, args, kwargs = jax.tree.map(_specification, (x, args, kwargs))
        layers: list[Any] = [
            copy.deepcopy(self.layer) if isinstance(self.layer, Module) else self.layer() for _ in range(self.n)
        ]
        for layer in layers:
            if _has_run(layer):
                raise ValueError(
                    f"{location(self)} got {layer!r} from the function that makes its layers, and it has its weights "
                    "already: let the function return a fresh one each time"
                )
            given = eval_shape(layer, x, *args, **kwargs)
            if summarize(given) != summarize(x):
                raise ValueError(
                    f"{location(self)} needs a layer that returns what it takes, and {layer!r} takes {summarize(x)} and "
                    f"returns {summarize(given)}"
                )
        self.layer = _stacked(layers)

    def __call__(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """Returns the last layer's output, of the shape and dtype of `x`; the other arguments go to each layer."""
        self._initialize(x, *args, **kwargs)
        return scan(
            lambda h, _: (self.layer(h, *args, **kwargs), None),
            x,
            length=self.n,
            unroll=self.unroll,
            stacked=[self.layer],
        )[0]

    def unstacked(self) -> list[Any]:
        """Returns the layers one by one, as modules of their own with copies of the current weights."""
        return [_copy(self.layer, {v: v.value[index] for v in self.layer.paths().values()}) for index in range(self.n)]


def stack(layer: Module | Callable[[], Module], n: int, unroll: int | bool = 1, name: str | None = None) -> Stack:
    """Returns a module that runs `n` layers like `layer` one after the other: `y = layer_n(... layer_2(layer_1(x)))`.

    Each has weights of its own, and the loop over them is compiled once. Dropout differs from layer to layer, and each
    keeps its own statistics.

    Args:
      layer: a module that has not been called yet, or a function that makes one; it returns the shape that it takes.
      n: the number of layers.
      unroll: how many layers the compiled loop's body holds; True for all.
      name: the module's name.

    Returns:
      A module from `[batch, ...]` to the same shape, whose `layer` has variables `[n, ...]`, those of all layers.

    Raises:
      ValueError: `n` is below 1, or the layer has been called before; on the first call, a layer that returns another
        shape than it takes.

    Source: Haiku, `hk.layer_stack`. Not in Sonnet.

    >>> import modulekit as mk
    >>> tower = mk.stack(mk.Linear(4), 3)
    >>> tower(jnp.ones([2, 4])).shape, tower.layer.w.shape
    ((2, 4), (3, 4, 4))
    """
    return Stack(layer, n, unroll, name)


def _has_run(layer: Module) -> bool:
    return any(module._once_done for module in (layer, *layer.submodules))


def _specification(value: Any) -> Any:
    is_array = hasattr(value, "shape") and hasattr(value, "dtype")
    return jax.ShapeDtypeStruct(value.shape, value.dtype) if is_array else value


def _stacked(layers: list[Any]) -> Any:
    """Returns one layer whose variables hold those of all layers. A random stream starts differently in each."""
    columns = zip(*(layer.paths().values() for layer in layers), strict=True)
    values = {column[0]: jnp.stack(list(_first_values(column))) for column in columns}
    return _copy(layers[0], values)


def _first_values(column: tuple[Variable, ...]) -> Iterator[jax.Array]:
    for index, variable in enumerate(column):
        stream = stream_of(variable)
        if stream is not None and variable is stream.key:
            key = jax.random.fold_in(jax.random.wrap_key_data(variable.stored()), index)
            yield jax.random.key_data(key)
        else:
            yield variable.stored()


def _copy(layer: Any, values: dict[Variable, Any]) -> Any:
    """Returns a copy of a layer with other values, of any shape, in its variables."""
    memo: dict[int, Any] = {id(variable): variable.like(value) for variable, value in values.items()}
    return copy.deepcopy(layer, memo)
