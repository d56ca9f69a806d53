"""The cells of the matrix: transforms, ways to hand over a module, and uses of its variables.

A row of `PLAIN` and `OURS` returns a transformed function and its arguments; the row of `EAGER` of the same name says in
plain Python what it means. All numbers are multiples of 1/4 and small, and all arithmetic is sums and products, so that
float32 rounds nothing, no order of operations matters, and a cell is compared bitwise.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from catalogue import variables_of
from jax.extend.core import jaxpr_as_fun

import modulekit as mk
from modulekit.core.randomness import default_stream

Function = Callable[..., Any]
Handed = tuple[mk.Module, ...]  # the module as an argument, or nothing where the function closes over it
Call = tuple[Function, tuple[Any, ...]]
LANES = 4
_random = np.random.default_rng(0)
X = jnp.asarray(_random.integers(-2, 3, [2, 3]), jnp.float32)
XS = jnp.asarray(_random.integers(-2, 3, [LANES, 2, 3]), jnp.float32)
COEFFICIENTS = jnp.asarray(_random.integers(1, 4, [2, 3]), jnp.float32)
YES = jnp.array(True)
ZEROS = jnp.zeros([2, 3])


# Uses. The line at which a plain transform has to stop is marked.


def quarters(shape: Sequence[int], dtype: Any) -> jax.Array:
    """Draws first weights that are multiples of 1/4."""
    return jnp.round(4 * mk.initializers.RandomNormal()(shape, dtype)) / 4


class Pair(mk.Module):
    """Reads weights: a layer and its transpose, tied."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = mk.Linear(2, w_init=quarters)
        self.decode = self.encode.transpose()

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.decode(self.encode(x))  # HERE


class Averaging(mk.Module):
    """Writes a counter and a moving average."""

    def __init__(self) -> None:
        super().__init__()
        self.pair = Pair()
        self.count = mk.Variable(0, trainable=False, name="count")
        self.average = mk.Variable(jnp.zeros([3]), trainable=False, name="average")

    def __call__(self, x: jax.Array) -> jax.Array:
        self.count.assign_add(1)  # HERE
        y = self.pair(x)
        self.average.assign(0.5 * self.average + 0.5 * y.mean(axis=0))
        return y - self.average


class Dropping(mk.Module):
    """Draws from the default stream."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = mk.Dropout(0.5)
        self.pair = Pair()

    def __call__(self, x: jax.Array) -> jax.Array:
        dropped = self.dropout(x + 4, is_training=True)  # HERE
        return self.pair(dropped)


class Noisy(mk.Module):
    """Draws from a stream of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stream = mk.RandomStream(3)
        self.pair = Pair()

    def __call__(self, x: jax.Array) -> jax.Array:
        key = self.stream.next_key()  # HERE
        return self.pair(x) + jax.random.randint(key, x.shape, -64, 64)


USES: dict[str, type[mk.Module]] = {
    "reads": Pair, "writes": Averaging, "first call": Pair, "draws": Dropping, "draws from its own stream": Noisy,
}  # fmt: skip
NAMED = {  # the variable that a refusal names, with its path
    "reads": r"variable 'pair/linear/w' \(path (en|de)code\.w in Pair\(\)\)",
    "writes": r"variable 'averaging/count' \(path count in Averaging\(\)\)",
    "first call": r"variable 'pair/linear/w' \(path encode\.w in Pair\(\)\)",
    "draws": r"variable 'random/(key|counter)' \(path (key|counter) in RandomStream\(.*\)\)",
    "draws from its own stream": r"variable 'noisy/random_stream/(key|counter)' \(path (stream\.)?(key|counter) in ",
}


def pair_of(module: Any) -> Pair:
    """Returns the tied pair of any use."""
    return module if isinstance(module, Pair) else module.pair


# Transforms. `f(*handed, x)` is the user's function.


def loss_of(f: Function) -> Function:
    """Returns a function with a scalar result."""
    return lambda *args: (COEFFICIENTS * f(*args)).sum()


def step_of(f: Function) -> Function:
    """Returns the step of a scan, which hands on what was handed over."""
    return lambda handed, x: (handed, f(*handed, x))


def body_of(f: Function) -> Function:
    """Returns the body of a loop over the lanes, which sums up the results."""
    return lambda loop: (loop[0], loop[1] + 1, loop[2] + f(*loop[0], XS[loop[1]]))


def unfinished(loop: Any) -> Any:
    return loop[1] < LANES


def zeros(*_: Any) -> jax.Array:
    return ZEROS


class Functionalized:
    """A function through `mk.functionalize` and `jax.make_jaxpr`: traced once, run on the current values each time."""

    def __init__(self, f: Function, module: Any, **options: Any) -> None:
        self.f, self.module, self.options = f, module, options
        self.traced: tuple[Any, Any, Any] | None = None

    def __call__(self, *args: Any) -> tuple[Any, Any]:
        """Returns the result's specification, and the result with the new values."""
        if self.traced is None:
            known = [*self.module.variables, *default_stream().variables]  # CALL
            pure, values = mk.functionalize(self.f, known)
            program = jax.make_jaxpr(pure, return_shape=True, **self.options)
            closed, (specification, _) = program(values, *args)  # CALL
            self.traced = pure, jaxpr_as_fun(closed), specification
        pure, run, specification = self.traced
        return specification, run(*pure.values(), args[-1])


PLAIN: dict[str, Callable[[Function, Handed], Call]] = {
    "jit": lambda f, m: (jax.jit(f), (*m, X)),
    "grad": lambda f, m: (jax.value_and_grad(loss_of(f)), (*m, X)),
    "vmap": lambda f, m: (jax.vmap(f), (*m, XS)),
    "scan": lambda f, m: (jax.lax.scan, (step_of(f), m, XS)),
    "cond": lambda f, m: (jax.lax.cond, (YES, f, zeros, *m, X)),
    "while_loop": lambda f, m: (jax.lax.while_loop, (unfinished, body_of(f), (m, 0, ZEROS))),
    "checkpoint": lambda f, m: (jax.checkpoint(f), (*m, X)),
    "eval_shape": lambda f, m: (jax.eval_shape, (f, *m, X)),
    "make_jaxpr": lambda f, m: (jax.make_jaxpr(f), (*m, X)),
}
OURS: dict[str, Callable[[Function, Handed, Any], Call]] = {
    "jit": lambda f, m, _: (mk.jit(f), (*m, X)),
    "grad": lambda f, m, module: (mk.value_and_grad(loss_of(f), module), (*m, X)),
    "vmap": lambda f, m, _: (mk.vmap(f, writes="mean"), (*m, XS)),
    "scan": lambda f, m, _: (mk.scan, (step_of(f), m, XS)),
    "cond": lambda f, m, _: (mk.cond, (YES, f, zeros, *m, X)),
    "while_loop": lambda f, m, _: (mk.while_loop, (unfinished, body_of(f), (m, 0, ZEROS))),
    "checkpoint": lambda f, m, _: (mk.remat(f), (*m, X)),
    "eval_shape": lambda f, m, _: (mk.eval_shape, (f, *m, X)),
    "make_jaxpr": lambda f, m, module: (Functionalized(f, module), (*m, X)),
}
# The module as an argument of which the transform is told that it is no array.
PLAIN_STATIC: dict[str, Callable[[Function, Handed], Call]] = {
    "jit": lambda f, m: (jax.jit(f, static_argnums=0), (*m, X)),
    "grad": lambda f, m: (jax.value_and_grad(loss_of(f), argnums=1), (*m, X)),
    "vmap": lambda f, m: (jax.vmap(f, in_axes=(None, 0)), (*m, XS)),
    "checkpoint": lambda f, m: (jax.checkpoint(f, static_argnums=0), (*m, X)),
    "make_jaxpr": lambda f, m: (jax.make_jaxpr(f, static_argnums=0), (*m, X)),
}
OURS_STATIC: dict[str, Callable[[Function, Handed, Any], Call]] = {
    "vmap": lambda f, m, _: (mk.vmap(f, in_axes=(None, 0), writes="mean"), (*m, XS)),
    "make_jaxpr": lambda f, m, module: (Functionalized(f, module, static_argnums=1), (*m, X)),
}
# A plain transform around one of ours.
PLAIN_OVER_OURS: dict[str, Callable[[Function, Handed, Any], Call]] = {
    "jit": lambda f, m, module: (jax.jit(mk.value_and_grad(loss_of(f), module)), (*m, X)),
    "vmap": lambda f, m, module: (jax.vmap(mk.value_and_grad(loss_of(f), module)), (*m, XS)),
}


def transformed(transform: str, side: str, handed: str, module: Any) -> Call:
    """Returns the transformed function of a cell, and its arguments."""

    def apply(module: Any, x: jax.Array) -> jax.Array:
        return module(x)

    def closure(x: jax.Array) -> jax.Array:
        return module(x)

    f, m = (closure, ()) if handed == "closure" else (apply, (module,))
    if side == "plain":
        return (PLAIN_STATIC if handed == "static argument" else PLAIN)[transform](f, m)
    if side == "plain over ours":
        return PLAIN_OVER_OURS[transform](f, m, module)
    return (OURS_STATIC if handed == "static argument" else OURS)[transform](f, m, module)


# What they mean, eagerly.


def values_of(module: Any) -> dict[mk.Variable, jax.Array]:
    """Returns the values of all variables that a call may change."""
    return {variable: variable.value for variable in variables_of(module)}


def put(values: dict[mk.Variable, jax.Array]) -> None:
    """Assigns values to variables."""
    for variable, value in values.items():
        variable.assign(value)


def slope(module: Any, x: Any, start: dict[mk.Variable, jax.Array], target: Any) -> jax.Array:
    """Returns the gradient of the loss by central differences.

    The loss is a polynomial, of the second degree in each weight and of the first in the others together, and no number
    is rounded: the differences are the gradient.

    Args:
      module: is called.
      x: the input.
      start: the values of the variables before the call.
      target: a variable, or the input where it is None.
    """

    def loss_at(change: np.ndarray) -> float:
        put(start)
        if target is not None:
            target.assign(start[target] + change)
        return float(loss_of(module)(x if target is not None else x + change))

    at = np.asarray(x if target is None else start[target])
    units = np.eye(at.size, dtype=np.float32).reshape(at.size, *at.shape)
    return jnp.asarray([(loss_at(unit) - loss_at(-unit)) / 2 for unit in units], at.dtype).reshape(at.shape)


def eager_gradient(module: Any, side: str) -> Any:
    loss, by_target = gradient_at(module, X, with_input=side == "plain")
    return loss, by_target[0] if side == "plain" else by_target


def gradient_at(module: Any, x: jax.Array, with_input: bool) -> tuple[jax.Array, list[jax.Array]]:
    """Returns the loss and its gradient with respect to the input, or else to the trainable variables."""
    before = values_of(module)
    loss = loss_of(module)(x)
    after = values_of(module)
    start = after | before  # those that the call made have their first values
    targets = [None] if with_input else module.trainable_variables
    gradients = [slope(module, x, start, target) for target in targets]
    put(after)
    return loss, gradients


def eager_lanes(module: Any, side: str) -> Any:
    """Each lane starts from the same values, with random keys of its own; what lanes write becomes their mean."""
    if side == "plain over ours":
        return jax.tree.map(lambda *lanes: jnp.stack(lanes), *(gradient_at(module, x, with_input=False) for x in XS))
    streams = [default_stream(), *(part for part in module.submodules if isinstance(part, mk.RandomStream))]
    start = values_of(module)
    results, ends = [], []
    for lane, x in enumerate(XS):
        put(start)
        for stream in streams:
            key = jax.random.fold_in(jax.random.wrap_key_data(start[stream.key]), lane)
            stream.key.assign(jax.random.key_data(key))
        results.append(module(x))
        ends.append(values_of(module))
    for variable, old in start.items():
        variable.assign(jnp.stack([end[variable] for end in ends]).mean(axis=0).astype(old.dtype))
    for stream in streams:
        stream.key.assign(start[stream.key])
        stream.counter.assign(ends[-1][stream.counter])
    return jnp.stack(results)


def eager_scan(module: Any, side: str) -> Any:
    return jnp.stack([module(x) for x in XS])


def eager_loop(module: Any, side: str) -> Any:
    total = ZEROS
    for x in XS:
        total = total + module(x)
    return jnp.int32(LANES), total


def eager_call(module: Any, side: str) -> Any:
    return module(X)


def eager_specification(module: Any, side: str) -> Any:
    """Changes nothing, but for variables that it makes."""
    before = values_of(module)
    y = module(X)
    put(before)
    return jax.ShapeDtypeStruct(y.shape, y.dtype)


def eager_program(module: Any, side: str) -> Any:
    """The specification, and what the program gives where it is run: the result and the new values."""
    before = values_of(module)
    y = module(X)
    new = [variable.value for variable in (*module.variables, *default_stream().variables)]
    put(before)
    return jax.ShapeDtypeStruct(y.shape, y.dtype), [y, *new]


EAGER: dict[str, Callable[[Any, str], Any]] = {
    "jit": eager_call,
    "grad": eager_gradient,
    "vmap": eager_lanes,
    "scan": eager_scan,
    "cond": eager_call,
    "while_loop": eager_loop,
    "checkpoint": eager_call,
    "eval_shape": eager_specification,
    "make_jaxpr": eager_program,
}
