"""Random numbers of single examples.

In an update one key serves the batch. An evaluation must give the same numbers however its examples are batched, so
there each example has a key of its own: a function of the run's seed and of the example's values. It is the same in
each evaluation, so that two of them differ by the weights alone.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

_BRANCH = 2**31 + 1  # of the seed's random numbers: no update has this number
_GOLDEN = 0x9E3779B9  # 2^32 over the golden ratio: spreads the positions


def example_keys(seed: int, examples: Any) -> jax.Array:
    """Returns a key for each example, `[batch]`, the same in any batch.

    Args:
      seed: of the run.
      examples: `[batch, ...]`.

    >>> both = example_keys(0, jnp.array([[1.0, 2.0], [2.0, 1.0]]))
    >>> bool((example_keys(0, jnp.array([[2.0, 1.0]])) == both[1:]).all()), bool(both[0] == both[1])
    (True, False)
    """
    key = jax.random.fold_in(jax.random.key(seed), _BRANCH)
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, _fingerprints(examples))


def normal_for(keys: jax.Array, shape: Sequence[int], index: Any = 0) -> jax.Array:
    """Returns standard normal numbers for each example, `[batch, *shape]`.

    Args:
      keys: of the examples.
      shape: of the numbers of one example.
      index: which of the draws of an example.

    >>> normal_for(jax.random.split(jax.random.key(0), 3), [2]).shape
    (3, 2)
    """
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, index), tuple(shape)))(keys)


def _fingerprints(examples: Any) -> jax.Array:
    """Returns a number of 32 bits for each example: the sum over its values of their mixed bits and positions."""
    values = jnp.asarray(examples).reshape(len(examples), -1).astype(jnp.float32)
    bits = jax.lax.bitcast_convert_type(values, jnp.uint32)
    positions = jnp.arange(values.shape[1], dtype=jnp.uint32) * jnp.uint32(_GOLDEN)
    return _mixed(bits ^ positions).sum(axis=1, dtype=jnp.uint32)


def _mixed(bits: jax.Array) -> jax.Array:
    """Returns bits of which each depends on all of those given: the finalizer of Appleby's MurmurHash3."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        bits = (bits ^ (bits >> shift)) * jnp.uint32(factor)
    return bits ^ (bits >> 16)
