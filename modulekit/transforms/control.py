"""Branches over variables: what a branch writes is kept, if that branch is taken."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from modulekit.core.overlay import bakes_reads
from modulekit.transforms.arguments import hold, release
from modulekit.transforms.settle import Footprint, plain, values_of


def cond(pred: Any, true_fun: Callable[..., Any], false_fun: Callable[..., Any], *operands: Any) -> Any:
    """Returns `true_fun(*operands)` if `pred` holds, else `false_fun(*operands)`.

    Both are traced, so that variables that either makes on its first call are made; only the writes of the one taken are
    kept.

    Args:
      pred: a boolean scalar, which may be traced.
      true_fun: a function that may read and write variables.
      false_fun: likewise; it returns the same structure, shapes and dtypes.
      *operands: arrays; modules are passed as they are.

    Source: JAX, `jax.lax.cond`, over variables.

    >>> import modulekit as mk
    >>> count = mk.Variable(0, name="count")
    >>> int(mk.cond(True, lambda x: (count.assign_add(1), x)[1], lambda x: -x, 3)), int(count)
    (3, 1)
    """
    return _branch("cond", jnp.asarray(pred).astype(jnp.int32), [false_fun, true_fun], operands)


def switch(index: Any, branches: Sequence[Callable[..., Any]], *operands: Any) -> Any:
    """Returns `branches[index](*operands)`.

    Args:
      index: an integer scalar, which may be traced; clamped to `0 .. len(branches) - 1`.
      branches: functions that may read and write variables, and return the same structure, shapes and dtypes.
      *operands: arrays.

    Raises:
      ValueError: there are no branches.

    Source: JAX, `jax.lax.switch`, over variables.

    >>> int(switch(1, [lambda x: x, lambda x: 2 * x, lambda x: 3 * x], 5))
    10
    """
    if not branches:
        raise ValueError("mk.switch needs at least one branch")
    return _branch("switch", index, branches, operands)


def _branch(name: str, index: Any, branches: Sequence[Callable[..., Any]], operands: tuple[Any, ...]) -> Any:
    footprint, held = Footprint(), hold(plain(operands))
    for branch in branches:
        footprint.discover(lambda held, branch=branch: hold(plain(branch(*release(held)))), held)

    def attempt() -> Any:
        carried, baked = list(footprint.writes), bakes_reads()

        def pure(branch: Callable[..., Any]) -> Callable[..., Any]:
            def run(values: list[Any], operands: tuple[Any, ...]) -> tuple[list[Any], Any]:
                bindings = dict(zip(carried, values, strict=True))
                with footprint.overlay(bindings, baked=baked) as running:
                    result = hold(plain(branch(*release(operands))))
                    footprint.check(running)
                return [running.values[v] for v in carried], result

            return run

        pures = [pure(branch) for branch in branches]
        new, result = jax.lax.switch(index, pures, values_of(carried), held)
        footprint.commit(carried, new)
        return release(result)

    return footprint.settle(attempt, name)
