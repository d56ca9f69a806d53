"""Compositions of transforms, and what they mean in plain JAX.

Each transform is written twice: over functions that use variables, as a user writes it with modulekit; and over pure
functions `(values, *inputs) -> (output, values)`, with Python loops, Python branches and `jax.value_and_grad`. So any
composition of the first kind has a reference: the same composition of the second kind, run on arrays, without tracing.

A composed function has the inputs and the output of the function inside, so that compositions nest to any depth. The
steps, lanes and iterations of one transform get different inputs and different weights in the output, so that a mix-up
of any two of them is seen.
"""

import contextlib
import dataclasses
import gc
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from catalogue import Row, state, variables_of

import modulekit as mk
from modulekit.core.streams import stream_of

Function = Callable[..., Any]  # of arrays, over variables: output
Pure = Callable[..., tuple[Any, list[Any]]]  # of the variables' values and arrays: output, new values

RULES = ("mean", "sum", "last")
UNREVERSIBLE = "Reverse-mode differentiation does not work for lax.while_loop"


@dataclasses.dataclass(frozen=True)
class Setting:
    """What the transforms of one composition have in common.

    Attributes:
      row: says how the function inside calls the module.
      module: made by the row.
      output: the form of what a call returns.
      size: the number of steps, lanes and iterations.
      rule: how shared variables that the lanes write become one.
    """

    row: Row
    module: Any
    output: jax.ShapeDtypeStruct
    size: int = 2
    rule: str = "mean"

    @classmethod
    def fresh(cls, row: Row, is_built: bool, size: int = 2, rule: str = "mean") -> Self:
        """Starts all randomness anew, and makes a module: one with its first weights, or one that was never called."""
        row.fresh()
        other = row.make()  # so that the module's own first call is still to come
        output = mk.eval_shape(lambda *inputs: row.call(other, *inputs), *row.inputs)
        module = row.fresh()
        if is_built:
            mk.build(module, *row.inputs, **row.options)
        return cls(row, module, output, size, rule)

    def zeros(self) -> jax.Array:
        """Returns zeros in the form of the output."""
        return jnp.zeros(self.output.shape, self.output.dtype)

    def is_large(self, inputs: Sequence[Any]) -> Any:
        """Returns whether `cond` is to call the function: for the row's own inputs, not for those scaled down."""
        return sum(jnp.abs(x).sum() for x in inputs) > sum(0.9 * np.abs(x).sum() for x in self.row.inputs)

    def otherwise(self, inputs: Sequence[Any]) -> Any:
        """Returns what `cond` gives where it does not call the function."""
        return self.zeros() + sum(x.mean() for x in inputs)


def scaled(inputs: Sequence[Any], index: Any) -> tuple[Any, ...]:
    """Returns the inputs of the step, lane or iteration `index`."""
    return tuple(x * (1.0 - 0.25 * index) for x in inputs)


def stacked(inputs: Sequence[Any], size: int) -> tuple[Any, ...]:
    """Returns the inputs of all steps or lanes, along a new first axis."""
    return tuple(jnp.stack(xs) for xs in zip(*(scaled(inputs, index) for index in range(size)), strict=True))


def weighed(parts: Sequence[Any]) -> Any:
    """Returns a sum in which each part has a weight of its own."""
    return sum(part / (1.0 + index) for index, part in enumerate(parts))


def with_gradients(output: Any, gradients: Sequence[Any]) -> Any:
    """Returns an output that depends on each gradient."""
    return output + weighed([jnp.sin(gradient).mean() for gradient in gradients])


# The transforms over variables.


def jitted(function: Function, setting: Setting) -> Function:
    return mk.jit(function)


def rematerialized(function: Function, setting: Setting) -> Function:
    return mk.remat(function)


def differentiated(function: Function, setting: Setting) -> Function:
    def loss(*inputs: Any) -> tuple[Any, Any]:
        output = function(*inputs)
        return jnp.square(output).mean(), output

    def run(*inputs: Any) -> Any:
        (_, output), gradients = mk.value_and_grad(loss, setting.module, has_aux=True)(*inputs)
        return with_gradients(output, gradients)

    return run


def vmapped(function: Function, setting: Setting) -> Function:
    mapped = mk.vmap(function, writes=setting.rule)
    return lambda *inputs: weighed(list(mapped(*stacked(inputs, setting.size))))


def scanned(function: Function, setting: Setting) -> Function:
    def step(total: Any, inputs: Any) -> tuple[Any, Any]:
        output = function(*inputs)
        return 0.5 * total + output, output

    def run(*inputs: Any) -> Any:
        total, outputs = mk.scan(step, setting.zeros(), stacked(inputs, setting.size))
        return total - 0.5 * weighed(list(outputs))

    return run


def looped(function: Function, setting: Setting) -> Function:
    def run(*inputs: Any) -> Any:
        def body(loop: Any) -> Any:
            index, total = loop
            return index + 1, 0.5 * total + function(*scaled(inputs, index))

        return mk.while_loop(lambda loop: loop[0] < setting.size, body, (0, setting.zeros()))[1]

    return run


def conditional(function: Function, setting: Setting) -> Function:
    def run(*inputs: Any) -> Any:
        return mk.cond(setting.is_large(inputs), function, lambda *inputs: setting.otherwise(inputs), *inputs)

    return run


# The same over pure functions, in plain JAX and Python.


def itself(function: Pure, setting: Setting) -> Pure:
    return function


def differentiated_plainly(function: Pure, setting: Setting) -> Pure:
    variables = variables_of(setting.module)
    places = [place for place, variable in enumerate(variables) if variable.trainable]

    def run(values: list[Any], *inputs: Any) -> tuple[Any, list[Any]]:
        def loss(weights: list[Any]) -> tuple[Any, Any]:
            bound = dict(zip(places, weights, strict=True))
            output, new = function([bound.get(place, value) for place, value in enumerate(values)], *inputs)
            return jnp.square(output).mean(), (output, new)

        (_, (output, new)), gradients = jax.value_and_grad(loss, has_aux=True)([values[place] for place in places])
        return with_gradients(output, gradients), new

    return run


def vmapped_plainly(function: Pure, setting: Setting) -> Pure:
    variables = variables_of(setting.module)

    def run(values: list[Any], *inputs: Any) -> tuple[Any, list[Any]]:
        outputs, lanes = [], []
        for lane in range(setting.size):
            own = [_of_lane(v, value, lane) for v, value in zip(variables, values, strict=True)]
            output, new = function(own, *scaled(inputs, lane))
            outputs.append(output)
            lanes.append(new)
        new = [
            _become_one(v, old, jnp.stack(new), setting.rule)
            for v, old, new in zip(variables, values, zip(*lanes, strict=True), strict=True)
        ]
        return weighed(outputs), new

    return run


def _of_lane(variable: mk.Variable, value: Any, lane: int) -> Any:
    """A stream's key is another one in each lane, so that no two lanes draw the same numbers."""
    stream = stream_of(variable)
    if stream is None or variable is not stream.key:
        return value
    return jax.random.key_data(jax.random.fold_in(jax.random.wrap_key_data(value), lane))


def _become_one(variable: mk.Variable, old: Any, lanes: Any, rule: str) -> Any:
    stream = stream_of(variable)
    if stream is not None:  # past the draws of all lanes, those of the lane that drew most included
        return old if variable is stream.key else lanes.max(axis=0)
    if rule == "sum":
        return old + (lanes - old).sum(axis=0, dtype=old.dtype)
    return lanes.mean(axis=0).astype(old.dtype) if rule == "mean" else lanes[-1]


def scanned_plainly(function: Pure, setting: Setting) -> Pure:
    def run(values: list[Any], *inputs: Any) -> tuple[Any, list[Any]]:
        total, outputs = setting.zeros(), []
        for index in range(setting.size):
            output, values = function(values, *scaled(inputs, index))
            total = 0.5 * total + output
            outputs.append(output)
        return total - 0.5 * weighed(outputs), values

    return run


def looped_plainly(function: Pure, setting: Setting) -> Pure:
    def run(values: list[Any], *inputs: Any) -> tuple[Any, list[Any]]:
        total = setting.zeros()
        for index in range(setting.size):
            output, values = function(values, *scaled(inputs, index))
            total = 0.5 * total + output
        return total, values

    return run


def conditional_plainly(function: Pure, setting: Setting) -> Pure:
    def run(values: list[Any], *inputs: Any) -> tuple[Any, list[Any]]:
        return function(values, *inputs) if setting.is_large(inputs) else (setting.otherwise(inputs), values)

    return run


@dataclasses.dataclass(frozen=True)
class Transform:
    """A transform over variables, and the same in plain JAX."""

    name: str
    ours: Callable[[Function, Setting], Function]
    plain: Callable[[Pure, Setting], Pure]


TRANSFORMS = [
    Transform("jit", jitted, itself),
    Transform("grad", differentiated, differentiated_plainly),
    Transform("vmap", vmapped, vmapped_plainly),
    Transform("scan", scanned, scanned_plainly),
    Transform("cond", conditional, conditional_plainly),
    Transform("while_loop", looped, looped_plainly),
    Transform("remat", rematerialized, itself),
]


def called(setting: Setting) -> Function:
    """Returns the function that calls the module, and does nothing else."""
    return lambda *inputs: setting.row.call(setting.module, *inputs)


def composed(transforms: Sequence[Transform], setting: Setting, function: Function | None = None) -> Function:
    """Returns a function, the call of the module if None, under all transforms, the first one outermost."""
    function = called(setting) if function is None else function
    for transform in reversed(transforms):
        function = transform.ours(function, setting)
    return function


def composed_plainly(transforms: Sequence[Transform], setting: Setting) -> Pure:
    """Returns the reference: the same composition of a pure function of the values of `variables_of(module)`.

    The module must have been built.
    """
    pure: Pure = mk.functionalize(called(setting), variables_of(setting.module))[0]
    for transform in reversed(transforms):
        pure = transform.plain(pure, setting)
    return pure


def results(
    functions: Sequence[Pure], module: Any, steps: Sequence[Any]
) -> Iterator[tuple[Any, dict[str, np.ndarray]]]:
    """Yields the output of each reference, called on its own step after the others, and the module's state after it."""
    paths, values = list(state(module)), [v.value for v in variables_of(module)]
    for function, inputs in zip(functions, steps, strict=True):
        output, values = function(values, *inputs)
        yield output, dict(zip(paths, map(np.asarray, values), strict=True))


def is_reversible(transforms: Sequence[Transform]) -> bool:
    """Returns whether JAX has the gradients that are asked for: none passes through a loop of unknown length."""
    names = [transform.name for transform in transforms]
    return "grad" not in names or "while_loop" not in names[names.index("grad") :]


def identifier(transforms: Sequence[Transform]) -> str:
    """Returns `jit-scan-grad`, outermost first."""
    return "-".join(transform.name for transform in transforms)


@contextlib.contextmanager
def leaving_no_tracer() -> Iterator[None]:
    """Context after which no tracer is alive that was made inside: nobody holds one, and no memory is lost to them."""
    gc.freeze()  # what is there already need not be looked at
    try:
        yield
        gc.collect()
        left = [thing for thing in gc.get_objects() if issubclass(type(thing), jax.core.Tracer)]
    finally:
        gc.unfreeze()
    assert not left, f"{len(left)} tracers outlive the call, among them {left[0]}"
