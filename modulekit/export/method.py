"""A method of a module as a pure function of its weights and inputs, which is what can leave this library."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.export
import jax.numpy as jnp

from modulekit.core import context
from modulekit.core.collect import render, walk
from modulekit.core.module import Module
from modulekit.core.streams import stream_of
from modulekit.core.variable import Variable
from modulekit.transforms.arguments import is_traced, join, split
from modulekit.transforms.build import shaped, trace_abstractly
from modulekit.transforms.functionalize import Pure
from modulekit.transforms.settle import Footprint
from modulekit.transforms.visible import leaves_by_place, named_arguments

BatchAxis = int | None | Sequence[int | None]
_BATCH = "batch"


class ExportedMethod:
    """A method of a module, looked at for the inputs that it is given: what it reads, and what it must not do.

    Attributes:
      owner: the module.
      name: of the method, such as `__call__`.
      variables: those that it reads, by their path in the module.
      example: the inputs that were given, in order.
      inputs: shape and dtype of each of them.
      input_names: what the inputs are called, such as `x` or `state[0]`.
      fixed: the arguments that are part of the program, by name.

    Args:
      method: a module, a method of one, or a `functools.partial` of either.
      args: the arguments: arrays, `jax.ShapeDtypeStruct`s, shapes such as `[32, 784]`; others are part of the program.
      kwargs: likewise.

    Raises:
      TypeError: it is no method of a module, or an input has no array dtype.
      ValueError: it makes or writes variables, draws random numbers, or reads a variable that is not the module's.
    """

    def __init__(self, method: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.owner, self.name = _owner_and_name(method)
        self._method = method
        args, kwargs = shaped((args, kwargs))
        self.example, self._key = split(args, kwargs)
        self.inputs = [_form(leaf) for leaf in self.example]
        places = list(leaves_by_place(named_arguments(method, args, kwargs)))
        self.input_names = [name for name, leaf in places if is_traced(leaf)]
        self.fixed = {name: repr(leaf) for name, leaf in places if not is_traced(leaf)}
        for name, form in zip(self.input_names, self.inputs, strict=True):
            if jnp.issubdtype(form.dtype, jax.dtypes.prng_key):
                raise TypeError(f"input {name} holds random keys: let the method take jax.random.key_data(key)")
        self.variables = self._read()
        self.result_structure: Any = None  # known when the program has been traced

    def __str__(self) -> str:
        return f"{self.name} of {self.owner!r}"

    def program(self, weights: Sequence[Any], inputs: Sequence[Any]) -> list[Any]:
        """Returns the arrays of the result, from those of the variables and of the inputs."""
        args, kwargs = join(self._key, inputs)
        with context.changed(portable=True):
            result, _ = Pure(self._method, list(self.variables.values()))(weights, *args, **kwargs)
        leaves, self.result_structure = jax.tree.flatten(result)
        return leaves

    def forms(self, batch_axis: BatchAxis) -> list[jax.ShapeDtypeStruct]:
        """Returns the inputs with a symbol for the batch size.

        Args:
          batch_axis: which axis of each input that has it; None for shapes as they are.

        Raises:
          ValueError: there is another number of axes than of inputs, or an input has no such axis.
        """
        given = [batch_axis] * len(self.inputs) if batch_axis is None or isinstance(batch_axis, int) else batch_axis
        if len(given) != len(self.inputs):
            raise ValueError(
                f"batch_axis={list(given)} for {len(self.inputs)} inputs, {', '.join(self.input_names) or 'none'}: give one "
                "axis, or one for each input, None where it has no batch"
            )
        (batch,) = jax.export.symbolic_shape(_BATCH)
        forms = []
        for name, form, axis in zip(self.input_names, self.inputs, given, strict=True):
            shape = list(form.shape)
            if axis is not None and not -len(shape) <= axis < len(shape):
                if axis is not batch_axis:
                    raise ValueError(f"input {name} has shape {shape}, and no axis {axis} for the batch")
            elif axis is not None:
                shape[axis] = batch
            forms.append(jax.ShapeDtypeStruct(tuple(shape), form.dtype))
        return forms

    def _read(self) -> dict[str, Variable]:
        """Returns the variables that the method reads, or refuses what it does to them."""
        footprint = Footprint()
        trace_abstractly(self._method, self._key, self.inputs, footprint)
        paths = {variable: render(path) for path, variable in walk(self.owner, Variable, Module)}
        self._refuse_writes(footprint, paths)
        strangers = [variable for variable in footprint.reads if variable not in paths]
        if strangers:
            raise ValueError(
                f"{self} reads {strangers[0].describe()}, which is not in the module: hold it, or the module that has it, "
                "as an attribute"
            )
        return {path: variable for variable, path in paths.items() if variable in footprint.reads}

    def _refuse_writes(self, footprint: Footprint, paths: Mapping[Variable, str]) -> None:
        drawn = [variable for variable in footprint.writes if stream_of(variable) is not None]
        if drawn:
            raise ValueError(
                f"{self} draws random numbers, from {stream_of(drawn[0])!r}, and a program that is exported would draw the "
                "same ones each time: export it with is_training=False, or a method that takes the key's data as an input"
            )
        if footprint.born:
            raise ValueError(
                f"{self} has just made {len(footprint.born)} variables, with their first values, so that there is "
                "nothing worth exporting: train it, or load weights (mk.weights.load), and export then"
            )
        if footprint.writes:
            written = next(iter(footprint.writes))
            path = paths.get(written, written.name)
            raise ValueError(
                f"{self} writes {path}, variable {written.name!r}, and a program that is exported keeps no state: export it "
                "with is_training=False, or a method that returns the new value"
            )


def _owner_and_name(method: Callable[..., Any]) -> tuple[Module, str]:
    function: Any = method
    while isinstance(function, functools.partial):
        function = function.func
    if isinstance(function, Module):
        return function, "__call__"
    owner = getattr(function, "__self__", None)
    if isinstance(owner, Module):
        return owner, str(getattr(function, "__name__", "method"))
    raise TypeError(
        f"{method!r} is no module and no method of one, whose variables would have paths: give model, model.method or "
        "functools.partial(model.method, ...)"
    )


def _form(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf))
