"""Which examples each member of an ensemble takes, as a function of the seeds and the step."""

import functools
from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np

from modulekit.data import batch_indices
from modulekit.data.order import MAX_KEY

Split = Literal["shared", "shuffled", "bootstrap", "disjoint"]
SPLITS: tuple[str, ...] = get_args(Split)
Indices = np.ndarray[Any, Any]


def parts(size: int, count: int) -> list[range]:
    """Returns equal parts of the examples, one behind the other; what is left over belongs to none.

    Args:
      size: the number of examples.
      count: the number of parts.

    Raises:
      ValueError: there are fewer examples than parts.

    >>> parts(7, 3)
    [range(0, 2), range(2, 4), range(4, 6)]
    """
    each = size // count
    if each < 1:
        raise ValueError(f"{size} examples cannot be split into {count} parts")
    return [range(start, start + each) for start in range(0, each * count, each)]


@functools.lru_cache(maxsize=64)
def bootstrap(size: int, seed: int) -> Indices:
    """Returns a sample of the examples, as many as there are, drawn with replacement: a function of (size, seed).

    Source: Breiman, Bagging predictors, 1996, section 1.

    >>> bootstrap(5, seed=0)
    array([4, 4, 1, 1, 2], dtype=int32)
    """
    generator = np.random.Philox(key=np.array([seed, MAX_KEY], np.uint64))  # no epoch has this number
    drawn = (generator.random_raw(size) % np.uint64(size)).astype(np.int32)
    drawn.flags.writeable = False  # it is remembered
    return drawn


def member_indices(split: str, size: int, batch_size: int, seeds: Sequence[int], step: int, count: int) -> Indices:
    """Returns the examples of each member, `[count, members, batch]`.

    Args:
      split: "shuffled", "bootstrap" or "disjoint".
      size: the number of examples.
      batch_size: examples of a member's batch.
      seeds: of the members' orders.
      step: the number of updates before.
      count: the number of updates.

    Raises:
      ValueError: a member has fewer examples than a batch.
    """
    own = parts(size, len(seeds)) if split == "disjoint" else [range(size)] * len(seeds)
    columns = []
    for member, (part, seed) in enumerate(zip(own, seeds, strict=True)):
        try:
            places = batch_indices(len(part), batch_size, seed, step, count)
        except ValueError as error:
            raise ValueError(f"member {member}: {error}") from None
        columns.append(bootstrap(size, seed)[places] if split == "bootstrap" else places + part.start)
    return np.stack(columns, axis=1).astype(np.int32)
