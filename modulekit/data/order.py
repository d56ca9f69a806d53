"""The order in which training meets its examples, as a pure function of the seed and the step.

The training stream is the concatenation of the orders of all epochs, and step k takes the positions
`[k * batch_size, (k + 1) * batch_size)` of it. Nothing is stored between steps, so a run resumes, skips or replays at
any step by asking for it.
"""

import operator
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import numpy.typing as npt

_MAX_SIZE = 2**31 - 1  # indices are int32
MAX_KEY = 2**64 - 1  # half of a Philox key


def epoch_order(size: int, seed: int, epoch: int) -> npt.NDArray[np.int32]:
    """Draws the order of one epoch's examples: a permutation that depends on (size, seed, epoch) and on nothing else.

    Args:
      size: the number of examples.
      seed: the seed of the run.
      epoch: the number of the epoch, from 0.

    Returns:
      A read-only permutation of 0 .. size - 1, of shape `[size]`.

    Raises:
      ValueError: if size < 1, or if the seed or the epoch is negative.

    The examples are sorted by the high bits of random 64-bit numbers of the Philox generator (Salmon et al., "Parallel
    random numbers: as easy as 1, 2, 3", 2011) with the key (seed, epoch). NumPy promises those numbers for all
    versions, which it does not for `Generator.permutation`; so a run saved under one version resumes under another.

    >>> from modulekit.data import epoch_order
    >>> epoch_order(5, seed=0, epoch=0)
    array([0, 2, 1, 4, 3], dtype=int32)
    """
    size = checked_integer("size", size, 1, _MAX_SIZE)
    return _shuffled(size, checked_integer("seed", seed, 0, MAX_KEY), checked_integer("epoch", epoch, 0, MAX_KEY))


def batch_indices(
    size: int, batch_size: int, seed: int, step: int, count: int, shuffle: bool = True
) -> npt.NDArray[np.int32]:
    """Lists the examples of the training steps step .. step + count - 1.

    A batch may straddle two epochs (and then hold an example twice); no example is dropped. The time does not depend on
    the step: only the epochs that these batches touch are shuffled, and the latest few orders are remembered.

    Args:
      size: the number of examples.
      batch_size: the number of examples of a step.
      seed: the seed of the run.
      step: the first step, from 0.
      count: the number of steps; 0 gives no batch.
      shuffle: whether each epoch has its own random order; if not, each has the order of the data.

    Returns:
      Indices into the data, of shape `[count, batch_size]`.

    Raises:
      ValueError: if size < 1, if batch_size is not in 1 .. size, or if the seed, the step or the count is negative.

    >>> from modulekit.data import batch_indices
    >>> batch_indices(size=5, batch_size=2, seed=0, step=1, count=3, shuffle=False)
    array([[2, 3],
           [4, 0],
           [1, 2]], dtype=int32)
    """
    size = checked_integer("size", size, 1, _MAX_SIZE)
    batch_size = checked_integer("batch_size", batch_size, 1)
    if batch_size > size:
        raise ValueError(
            f"batch_size={batch_size} is larger than the data's {size} examples; "
            f"choose a batch_size of at most {size}, or give more data"
        )
    seed = checked_integer("seed", seed, 0, MAX_KEY)
    start = checked_integer("step", step, 0) * batch_size
    stop = start + checked_integer("count", count, 0) * batch_size
    stream = np.empty([stop - start], np.int32)
    for epoch in range(start // size, -(-stop // size)):
        first, last = max(start, epoch * size), min(stop, (epoch + 1) * size)
        order = _shuffled(size, seed, epoch) if shuffle else _in_sequence(size)
        stream[first - start : last - start] = order[first - epoch * size : last - epoch * size]
    return stream.reshape(-1, batch_size)


def evaluation_batches(size: int, batch_size: int) -> Iterator[slice]:
    """Walks over all examples once, in order, for evaluation.

    Args:
      size: the number of examples.
      batch_size: the number of examples of a batch; the last batch holds what is left.

    Returns:
      An iterator of slices of the first axis.

    Raises:
      ValueError: if size < 1 or batch_size < 1.

    >>> from modulekit.data import evaluation_batches
    >>> list(evaluation_batches(size=5, batch_size=2))
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    size, batch_size = checked_integer("size", size, 1), checked_integer("batch_size", batch_size, 1)
    return (slice(start, min(start + batch_size, size)) for start in range(0, size, batch_size))


@lru_cache(maxsize=4)
def _shuffled(size: int, seed: int, epoch: int) -> npt.NDArray[np.int32]:
    # The high bits of each number are random and the low ones hold the index: all are distinct, so that every correct
    # sort gives the same order, and sorting values is several times faster than a stable argsort.
    bits = np.uint64((size - 1).bit_length())
    numbers = np.random.Philox(key=np.array([seed, epoch], np.uint64)).random_raw(size)
    numbers = (numbers >> bits << bits) | np.arange(size, dtype=np.uint64)
    numbers.sort()
    return _read_only((numbers & ((np.uint64(1) << bits) - np.uint64(1))).astype(np.int32))


@lru_cache(maxsize=4)
def _in_sequence(size: int) -> npt.NDArray[np.int32]:
    return _read_only(np.arange(size, dtype=np.int32))


def _read_only(order: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    order.flags.writeable = False  # it is remembered: a change would reach every later batch
    return order


def checked_integer(name: str, value: int, minimum: int, maximum: int | None = None) -> int:
    """Returns an integer between bounds, or raises an error that names it."""
    try:
        number = operator.index(value)
    except TypeError as error:
        raise TypeError(f"{name} must be an integer, got {value!r}; pass an int") from error
    if number < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {number}; pass a larger {name}")
    if maximum is not None and number > maximum:
        raise ValueError(f"{name} must be at most {maximum}, got {number}; pass a smaller {name}")
    return number
