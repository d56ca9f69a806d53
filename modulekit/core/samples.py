"""Random numbers of many shapes by few programs.

XLA takes a second of a processor to compile what draws normal numbers, and does so for each shape anew. But with JAX's own
generator, the numbers of a key are those at the beginning of any longer array of that key. So those of a shape are cut
from an array of one of a few sizes.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax

from modulekit.core import births

Sampler = Callable[..., jax.Array]

_SIZES = (2**14, 2**18, 2**21)  # numbers; beyond, it would take longer to draw than to compile


@functools.partial(jax.jit, static_argnums=(1, 2))
def normal(key: jax.Array, shape: tuple[int, ...], dtype: Any, mean: Any, stddev: Any) -> jax.Array:
    """Returns normal numbers."""
    return jax.random.normal(key, shape, dtype) * stddev + mean


@functools.partial(jax.jit, static_argnums=(1, 2))
def truncated(key: jax.Array, shape: tuple[int, ...], dtype: Any, mean: Any, stddev: Any) -> jax.Array:
    """Returns normal numbers, `stddev` being that before those beyond two of them are drawn again."""
    return jax.random.truncated_normal(key, -2.0, 2.0, shape, dtype) * stddev + mean


@functools.partial(jax.jit, static_argnums=(1, 2))
def uniform(key: jax.Array, shape: tuple[int, ...], dtype: Any, low: Any, high: Any) -> jax.Array:
    """Returns uniform numbers."""
    return jax.random.uniform(key, shape, dtype, low, high)


def drawn(sampler: Sampler, key: jax.Array, shape: tuple[int, ...], dtype: Any, *numbers: Any) -> jax.Array:
    """Returns what `sampler(key, shape, dtype, *numbers)` does, up to the last bits.

    Args:
      sampler: one of the functions above.
      key: of random numbers.
      shape: of the array.
      dtype: floating.
      *numbers: which the sampler takes.
    """
    count = math.prod(shape)
    size = next((size for size in _SIZES if count <= size), None)
    if size is None or births.is_traced() or not _begins_alike(key):
        return sampler(key, shape, dtype, *numbers)
    return _cut(sampler(key, (size,), dtype, *numbers), shape)


def _begins_alike(key: jax.Array) -> bool:
    """Returns whether the numbers of a key do not depend on how many are drawn."""
    return str(jax.random.key_impl(key)) == "threefry2x32" and jax.config.values["jax_threefry_partitionable"]


@functools.partial(jax.jit, static_argnums=1)
def _cut(array: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return array[: math.prod(shape)].reshape(shape)
