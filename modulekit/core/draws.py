"""First weights: the random draws that initialize variables.

A draw depends on (seed, name of the scope in which it is made, count of draws under that name), and not on the order in
which modules are made: adding a layer leaves the first weights of the others as they were.
"""

import contextlib
import hashlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from modulekit.core import names, overlay

DEFAULT_SEED = 0


class _Root:
    """The seed of all first weights, and how many draws each scope has made."""

    seed = DEFAULT_SEED
    counts: dict[str, int] = {}


def restart(seed: int) -> None:
    """Sets the seed and forgets the counts."""
    _Root.seed = seed
    _Root.counts = {}


def root_seed() -> int:
    """Returns the seed last set."""
    return _Root.seed


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Lets first weights be drawn from another seed, counting from the start, and goes on as before afterwards."""
    before = _Root.seed, _Root.counts
    restart(seed)
    try:
        yield
    finally:
        _Root.seed, _Root.counts = before


def snapshot() -> dict[str, int]:
    """Returns the counts, to be restored if what follows raises."""
    return dict(_Root.counts)


def restore(counts: dict[str, int]) -> None:
    """Sets the counts back to a snapshot."""
    _Root.counts = counts


def next_initial_key(name: str = "", seed: int | None = None) -> jax.Array:
    """Returns the key of the next first-weights draw in the current scope.

    Args:
      name: added to the name of the current scope.
      seed: stands in for the seed set by `mk.seed`.

    Returns:
      A typed key, concrete under any trace.
    """
    scope = names.qualified(name) if name else names.current_scope()
    counted = scope if seed is None else f"{scope} seed {seed}"
    count = _Root.counts.get(counted, 0)
    _Root.counts[counted] = count + 1
    digest = hashlib.blake2b(scope.encode(), digest_size=8).digest()
    with overlay.concrete():
        words = (digest[:4], digest[4:], count.to_bytes(4, "little"))
        numbers = [np.uint32(int.from_bytes(word, "little")) for word in words]
        return _derived_key(np.uint32(_Root.seed if seed is None else seed), *numbers)


@jax.jit
def _derived_key(seed: Any, *numbers: Any) -> jax.Array:
    """Folds numbers into the key of a seed, in one program: first weights are part of the time to the first step."""
    key = jax.random.key(seed)
    for number in numbers:
        key = jax.random.fold_in(key, number)
    return key
