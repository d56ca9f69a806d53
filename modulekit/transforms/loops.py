"""Compiled loops over variables: the written ones are carried from step to step, the others are closed over."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from modulekit.core import storage
from modulekit.core.module import Module
from modulekit.core.overlay import Overlay, bakes_reads
from modulekit.core.pieces import Grouping
from modulekit.core.variable import Variable
from modulekit.transforms.arguments import hold, release
from modulekit.transforms.settle import Footprint, listed, plain, values_of


def scan(
    f: Callable[[Any, Any], tuple[Any, Any]],
    init: Any,
    xs: Any = None,
    length: int | None = None,
    reverse: bool = False,
    unroll: int | bool = 1,
    *,
    stacked: Sequence[Variable | Module] = (),
) -> tuple[Any, Any]:
    """Runs `carry, y = f(carry, x)` over the leading axis of `xs`, in one compiled loop.

    Args:
      f: the step. What it writes to variables is seen by the next step and kept at the end; random draws differ
        from step to step.
      init: the first carry, any structure of arrays.
      xs: arrays of shape `[length, ...]`, or None.
      length: the number of steps, where `xs` is None.
      reverse: whether to go from the last element to the first.
      unroll: how many steps the compiled loop's body holds.
      stacked: variables, or modules for all of theirs, that hold one value for each step along their first axis. Inside,
        they have the shape of one step; what a step writes stays in its place.

    Returns:
      `(carry, ys)`: the last carry, and the outputs stacked along a new leading axis, `[length, ...]`.

    Raises:
      UnsettledTraceError: each step makes new variables.

    Source: JAX, `jax.lax.scan`, over variables. `stacked` is an addition.

    >>> import modulekit as mk
    >>> total = mk.Variable(0.0, name="total")
    >>> def step(carry, x):
    ...     total.assign_add(x)
    ...     return carry, total * 2
    >>> _, ys = mk.scan(step, None, jnp.arange(3.0))
    >>> ys.tolist(), float(total)
    ([0.0, 2.0, 6.0], 3.0)
    """
    footprint = Footprint()
    own, start, elements = listed(stacked), hold(plain(init)), hold(plain(xs))

    def step(carry: Any, x: Any) -> Any:
        return hold(plain(f(*release((carry, x)))))

    if not own:  # else their variables have other shapes inside
        footprint.discover(step, start, jax.tree.map(_element, elements))

    def attempt() -> tuple[Any, Any]:
        carried, baked = [v for v in footprint.writes if v not in own], bakes_reads()
        kept = [v for v in own if v in footprint.writes]

        def body(state: tuple[list[Any], Any], elements: Any) -> tuple[tuple[list[Any], Any], Any]:
            (values, carry), (x, slices) = state, elements
            bindings = dict(zip((*carried, *own), (*values, *slices), strict=True))
            with footprint.overlay(bindings, baked=baked) as running:
                carry, y = step(carry, x)
                footprint.check(running)
            return ([running.values[v] for v in carried], carry), (y, [running.values[v] for v in kept])

        is_empty = 0 in (length, *(size for x in jax.tree.leaves(xs) for size in jnp.shape(x)[:1]))
        with jax.disable_jit(False) if is_empty else contextlib.nullcontext():  # JAX has no empty loop step by step
            (new, carry), (ys, rows) = jax.lax.scan(
                body, (values_of(carried), start), (elements, values_of(own)), length, reverse, unroll
            )
        footprint.commit([*carried, *kept], [*new, *rows])
        return release((carry, ys))

    return footprint.settle(attempt, "scan")


def while_loop(
    cond_fun: Callable[[Any], Any], body_fun: Callable[[Any], Any], init_val: Any, known: Footprint | None = None
) -> Any:
    """Runs `value = body_fun(value)` while `cond_fun(value)`, in one compiled loop.

    Args:
      cond_fun: returns a boolean scalar. It may read variables and must not write any.
      body_fun: the step. What it writes to variables is seen by the next step and kept at the end.
      init_val: the first value, any structure of arrays.
      known: what `mk.footprint` found out about the step, which saves a trace; found out here if None.

    Returns:
      The last value.

    Raises:
      UnsettledTraceError: each step makes new variables.

    Source: JAX, `jax.lax.while_loop`, over variables.

    >>> import modulekit as mk
    >>> x = mk.Variable(1.0, name="x")
    >>> int(mk.while_loop(lambda n: x < 100, lambda n: (x.assign(x * 3), n + 1)[1], 0)), float(x)
    (5, 243.0)
    """
    footprint, start = known or Footprint(), hold(plain(init_val))

    def step(value: Any) -> Any:
        return hold(plain(body_fun(release(value))))

    if known is None:
        footprint.discover(step, start)

    def attempt() -> Any:
        carried, baked = list(footprint.writes), bakes_reads()
        together = Grouping(storage.forms_of(carried))  # small ones go around in one array

        def bound(arrays: list[Any]) -> Overlay:
            return footprint.overlay(dict(zip(carried, together.split(arrays), strict=True)), baked=baked)

        def condition(state: tuple[list[Any], Any]) -> Any:
            with bound(state[0]) as running:
                result = plain(cond_fun(release(state[1])))
            if running.written:
                raise ValueError(f"the condition of mk.while_loop writes {next(iter(running.written)).describe()}")
            return result

        def body(state: tuple[list[Any], Any]) -> tuple[list[Any], Any]:
            with bound(state[0]) as running:
                value = step(state[1])
                footprint.check(running)
            return together.joined([running.values[v] for v in carried]), value

        new, value = jax.lax.while_loop(condition, body, (together.joined(values_of(carried)), start))
        footprint.commit(carried, together.split(new))
        return release(value)

    return footprint.settle(attempt, "while_loop")


def fori_loop(lower: Any, upper: Any, body_fun: Callable[[Any, Any], Any], init_val: Any) -> Any:
    """Runs `value = body_fun(i, value)` for `i` from `lower` to `upper - 1`, in one compiled loop.

    Args:
      lower: the first index, an integer or an integer scalar.
      upper: the index after the last one; it may be traced. A gradient passes through the loop if both are integers.
      body_fun: the step; it may read and write variables.
      init_val: the first value, any structure of arrays.

    Returns:
      The last value.

    Source: JAX, `jax.lax.fori_loop`, over variables.

    >>> import modulekit as mk
    >>> int(mk.fori_loop(0, 5, lambda i, total: total + i, 0))
    10
    """
    if isinstance(lower, int) and isinstance(upper, int):  # as a scan, which has a gradient
        indices = jnp.arange(lower, max(lower, upper))
        return scan(lambda value, index: (body_fun(index, value), None), init_val, indices)[0]

    def body(state: tuple[Any, Any]) -> tuple[Any, Any]:
        index, value = state
        return index + 1, body_fun(index, value)

    return while_loop(lambda state: state[0] < upper, body, (lower, init_val))[1]


def _element(x: Any) -> Any:
    form = jax.typeof(x)
    return jax.ShapeDtypeStruct(form.shape[1:], form.dtype, weak_type=form.weak_type)
