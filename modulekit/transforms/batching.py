"""`vmap`: a function over many lanes at once, with variables shared by the lanes or one for each."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from modulekit.core.module import Module
from modulekit.core.overlay import bakes_reads
from modulekit.core.streams import stream_of
from modulekit.core.variable import Variable
from modulekit.transforms.arguments import hold, release
from modulekit.transforms.settle import Footprint, listed, plain, values_of

Rule = Literal["mean", "sum", "last"]
RULES: dict[str, Callable[[Any, Any], Any]] = {
    "mean": lambda old, lanes: lanes.mean(axis=0).astype(old.dtype),
    "sum": lambda old, lanes: old + (lanes - old).sum(axis=0, dtype=old.dtype),
    "last": lambda old, lanes: lanes[-1],
}


def vmap(
    fn: Callable[..., Any],
    in_axes: Any = 0,
    out_axes: Any = 0,
    axis_size: int | None = None,
    *,
    stacked: Sequence[Variable | Module] = (),
    writes: Rule | Mapping[Variable, Rule] | None = None,
) -> Callable[..., Any]:
    """Returns a function that runs `fn` once for each lane, all lanes in one program.

    Random streams give each lane keys of its own.

    Args:
      fn: a function of arrays that may read and write variables.
      in_axes: the axis of each positional argument along which the lanes lie, None for an argument that they share.
      out_axes: the axis of the results along which they will lie.
      axis_size: the number of lanes, where no argument tells.
      stacked: variables, or modules for all of theirs, that hold one value for each lane along their first axis. Inside,
        they have the shape of one lane; what a lane writes stays in its place.
      writes: how the lanes' values of a shared variable become one, for all or by variable: "mean" of the new values,
        "sum" of the changes, added to the old value, or the "last" lane's.

    Returns:
      A function of the same positional arguments.

    Raises:
      ValueError: on the call, if a shared variable is written and `writes` does not say how; it is not changed.

    Source: JAX, `jax.vmap`, over variables. `stacked` and `writes` are additions.

    >>> import modulekit as mk, jax.numpy as jnp
    >>> seen = mk.Variable(0.0, name="seen")
    >>> def run(x):
    ...     seen.assign_add(x)
    ...     return 2 * x
    >>> mk.vmap(run, writes="sum")(jnp.arange(4.0)).tolist(), float(seen)
    ([0.0, 2.0, 4.0, 6.0], 6.0)
    """

    @functools.wraps(fn)
    def wrapped(*args: Any) -> Any:
        footprint = Footprint()
        lanes = listed(stacked)
        arguments = hold(plain(args))
        size = _size(arguments, in_axes, axis_size, lanes)

        def attempt() -> Any:
            shared = [v for v in footprint.writes if v not in lanes]
            kept = [v for v in lanes if v in footprint.writes]
            streams = [stream for stream in map(stream_of, shared) if stream is not None]
            for written in shared:
                if stream_of(written) is None:
                    _check_rule(written, writes)
            baked = bakes_reads()
            keys = values_of(stream.key for stream in streams)

            def lane(index: Any, own: list[Any], args: tuple[Any, ...]) -> tuple[Any, list[Any], list[Any]]:
                bindings = dict(zip(lanes, own, strict=True))
                bindings |= {s.key: lane_key(key, index) for s, key in zip(streams, keys, strict=True)}
                with footprint.overlay(bindings, baked=baked) as running:
                    result = hold(plain(fn(*release(args))))
                    footprint.check(running)
                return result, [running.values[v] for v in kept], [running.values[v] for v in shared]

            mapped = jax.vmap(lane, (0, 0, in_axes), (out_axes, 0, 0), axis_size=size)
            old = values_of(shared)
            result, new_lanes, values = mapped(jnp.arange(size), values_of(lanes), arguments)
            merged = [_merge(v, before, new, writes) for v, before, new in zip(shared, old, values, strict=True)]
            footprint.commit([*kept, *shared], [*new_lanes, *merged])
            return release(result)

        return footprint.settle(attempt, "vmap")

    return wrapped


def _size(args: tuple[Any, ...], in_axes: Any, axis_size: int | None, lanes: list[Variable]) -> int:
    axes = in_axes if isinstance(in_axes, tuple | list) else (in_axes,) * len(args)
    if len(axes) != len(args):
        raise ValueError(f"mk.vmap got in_axes for {len(axes)} arguments, and {len(args)} arguments")
    sizes = [axis_size] if axis_size is not None else []
    sizes += [v.shape[0] for v in lanes]
    for axis, arg in zip(axes, args, strict=True):
        if isinstance(axis, int):
            sizes += _sizes_along(axis, arg)
        elif axis is not None:
            each = jax.tree.map(_sizes_along, axis, arg, is_leaf=_is_none)
            sizes += jax.tree.leaves(each)
    if not sizes:
        raise ValueError(
            "mk.vmap cannot tell the number of lanes: give axis_size, or an argument with an axis of lanes"
        )
    if len(set(sizes)) > 1:
        raise ValueError(f"mk.vmap got different numbers of lanes: {sorted(set(sizes))}")
    return int(sizes[0])


def _sizes_along(axis: int | None, arg: Any) -> list[int]:
    if axis is None:
        return []
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(arg)]
    for shape in shapes:
        if not -len(shape) <= axis < len(shape):
            raise ValueError(
                f"mk.vmap was told that the lanes lie along axis {axis} of an argument of shape {list(shape)}: "
                "give in_axes=None for an argument that the lanes share"
            )
    return [shape[axis] for shape in shapes]


def _is_none(value: Any) -> bool:
    return value is None


def lane_key(key: Any, index: Any) -> Any:
    """Returns the key of one lane; of a stack of layers, each with a stream of its own, the keys."""
    keys, fold = jax.random.wrap_key_data(key), jax.random.fold_in
    for _ in range(keys.ndim):
        fold = jax.vmap(fold, (0, None))
    return jax.random.key_data(fold(keys, index))


def _rule_of(written: Variable, writes: Any) -> str | None:
    return writes.get(written) if isinstance(writes, Mapping) else writes


def _check_rule(written: Variable, writes: Any) -> None:
    rule = _rule_of(written, writes)
    if rule not in RULES:
        said = "no rule" if rule is None else f"the rule {rule!r}"
        raise ValueError(
            f"{written.describe()} is written under mk.vmap, by each lane with a value of its own, and there is {said} for "
            "how they become one: give writes='mean', 'sum' or 'last', or list it in stacked if each lane has its own"
        )


def _merge(written: Variable, old: Any, lanes: Any, writes: Any) -> Any:
    stream = stream_of(written)
    if stream is not None:  # past the draws of all lanes: under `cond`, some lanes draw more than others
        return old if written is stream.key else lanes.max(axis=0)
    return RULES[str(_rule_of(written, writes))](old, lanes)
