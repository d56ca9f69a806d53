"""Random numbers that are part of the state.

A stream is a key and a counter, both variables: each draw folds the counter into the key and counts on. So a stream is
saved and resumed like weights, differs from step to step inside compiled loops, and repeats inside rematerialization.
"""

from typing import Any

import jax
import jax.numpy as jnp

from modulekit.core import draws, names, overlay, streams
from modulekit.core.module import Module
from modulekit.core.once import once
from modulekit.core.variable import Variable


class RandomStream(Module):
    """A source of random keys.

    Args:
      seed: where the stream starts.
      name: the module's name.

    >>> stream = RandomStream(seed=0)
    >>> first, second = stream.next_key(), stream.next_key()
    >>> bool((jax.random.key_data(first) == jax.random.key_data(second)).all())
    False
    """

    def __init__(self, seed: int = 0, name: str | None = None) -> None:
        super().__init__(name=name)
        self.seed = _checked_seed(seed)

    @once
    def _initialize(self) -> None:
        self.key = Variable(jax.random.key_data(jax.random.key(self.seed)), trainable=False, name="key")
        self.counter = Variable(jnp.zeros([], jnp.uint32), trainable=False, name="counter")
        self._register()

    def _register(self) -> None:
        streams.register(self, (self.key, self.counter))

    def __setstate__(self, state: Any) -> None:
        super().__setstate__(state)
        if hasattr(self, "counter"):
            self._register()

    def next_key(self) -> jax.Array:
        """Returns a typed key that no other draw of this stream gets, and counts it."""
        self._initialize()
        key = jax.random.fold_in(jax.random.wrap_key_data(self.key.current()), self.counter.current())
        self.counter.assign_add(1)
        return key

    def restart(self, key: jax.Array) -> None:
        """Continues the stream from `key` (a typed key), with the counter at zero."""
        self._initialize()
        self.key.assign(jax.random.key_data(key))
        self.counter.assign(0)


class _Default:
    """The stream that `next_key` draws from. Made on first use, so that an import costs no array."""

    stream: RandomStream | None = None


def default_stream() -> RandomStream:
    """Returns the stream that dropout and its like draw from."""
    if _Default.stream is None:
        with names.absolute(""):
            _Default.stream = RandomStream(draws.root_seed(), name="random")
        with overlay.concrete():
            _Default.stream._initialize()
    return _Default.stream


def next_key() -> jax.Array:
    """Returns the next key of the default stream, a typed JAX key.

    Inside compiled functions, loops and gradients the stream goes on as it would step by step.

    >>> first, second = next_key(), next_key()
    >>> bool((jax.random.key_data(first) == jax.random.key_data(second)).all())
    False
    """
    return default_stream().next_key()


def seed(seed: int) -> None:
    """Starts all randomness anew: the default stream, and the draws of first weights.

    Args:
      seed: an integer from 0 to 2^32 - 1.

    Raises:
      ValueError: another number.
      RuntimeError: called while a transform traces, where it could only happen once.

    >>> seed(1)
    >>> first = jax.random.key_data(next_key())
    >>> seed(1)
    >>> bool((first == jax.random.key_data(next_key())).all())
    True
    """
    number = _checked_seed(seed)
    if overlay.active() is not None:
        raise RuntimeError("mk.seed was called inside a transform: call it before, outside the traced function")
    draws.restart(number)
    default_stream().restart(jax.random.key(number))


def _checked_seed(seed: int) -> int:
    if isinstance(seed, bool) or not 0 <= int(seed) < 2**32 or int(seed) != seed:
        raise ValueError(f"seed={seed!r} is no integer from 0 to 2^32 - 1")
    return int(seed)
