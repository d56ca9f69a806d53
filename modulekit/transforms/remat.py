"""`remat`: a function whose intermediate values are computed again for the gradient, instead of being kept."""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec

import jax

from modulekit.core.overlay import bakes_reads
from modulekit.transforms.arguments import join, split
from modulekit.transforms.settle import Footprint, plain, values_of

P = ParamSpec("P")


def remat(fn: Callable[P, Any], policy: Callable[..., bool] | None = None) -> Callable[P, Any]:
    """Returns a function that computes the same as `fn` and keeps no intermediate values for its gradient.

    Random numbers are the same in both passes. What `fn` writes to variables is written once.

    Args:
      fn: a function that may read and write variables.
      policy: which intermediate values are kept after all, one of `jax.checkpoint_policies`.

    Source: JAX, `jax.checkpoint`, also called `jax.remat`, over variables.

    >>> import modulekit as mk, jax.numpy as jnp
    >>> layer = mk.Linear(3)
    >>> mk.remat(layer)(jnp.ones([2, 4])).shape
    (2, 3)
    """

    @functools.wraps(fn)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> Any:
        footprint = Footprint()
        traced, key = split(plain(args), plain(kwargs))

        def run(traced: list[Any]) -> Any:
            own_args, own_kwargs = join(key, traced)
            return plain(fn(*own_args, **own_kwargs))

        footprint.discover(run, traced)

        def attempt() -> Any:
            carried, baked = list(footprint.writes), bakes_reads()

            def pure(values: list[Any], traced: list[Any]) -> tuple[list[Any], Any]:
                bindings = dict(zip(carried, values, strict=True))
                with footprint.overlay(bindings, baked=baked) as running:
                    result = run(traced)
                    footprint.check(running)
                return [running.values[v] for v in carried], result

            new, result = jax.checkpoint(pure, policy=policy)(values_of(carried), traced)
            footprint.commit(carried, new)
            return result

        return footprint.settle(attempt, "remat")

    return wrapped
