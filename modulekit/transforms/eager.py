"""Running compiled functions step by step, so that breakpoints and prints see values."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from modulekit.core import storage
from modulekit.core.overlay import bakes_reads
from modulekit.transforms.arguments import join
from modulekit.transforms.settle import Footprint, Unsettled, plain


@contextlib.contextmanager
def eager() -> Iterator[None]:
    """Context in which compiled functions and loops run step by step, with the values that they would have compiled.

    Breakpoints and prints see arrays (inside a gradient or `vmap`, JAX's own traced ones). As in a compiled step, all
    variables are as before if it raises. It is `jax.disable_jit()`, which does as well. The first step of a loop that writes
    variables runs twice, and so does a function in which a plain JAX transform that cannot run step by step, such as
    `jax.checkpoint`, reads variables.

    >>> import modulekit as mk
    >>> @mk.jit
    ... def step(x):
    ...     print(x)
    ...     return x + 1
    >>> with mk.eager():
    ...     _ = step(2)
    2
    """
    with jax.disable_jit():
        yield


def is_eager() -> bool:
    """Returns whether compilation is switched off."""
    return bool(jax.config.jax_disable_jit)  # type: ignore[attr-defined]


def run_eagerly(function: Callable[..., Any], key: tuple[Any, ...], traced: list[Any]) -> Any:
    """Runs a function on the arguments that a program would get; its writes are kept if it returns."""
    footprint = Footprint()
    try:
        return _run(function, key, traced, footprint)
    except Unsettled:  # a plain JAX transform inside reads variables
        footprint.isolated = True
        return _run(function, key, traced, footprint)


def _run(function: Callable[..., Any], key: tuple[Any, ...], traced: list[Any], footprint: Footprint) -> Any:
    args, kwargs = join(key, [jnp.asarray(leaf) for leaf in traced])
    baked = bakes_reads()
    with footprint.overlay({}, baked=baked, collects_reads=not baked) as running:
        result = jax.tree.map(jnp.asarray, plain(function(*args, **kwargs)))
    storage.commit(list(running.written), [running.values[v] for v in running.written], running.written)
    return result
