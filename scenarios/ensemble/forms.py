"""Two forms of an ensemble's update: members side by side, or one after the other, all in one program.

Side by side is the better form wherever the way into operations and out of them is what takes the time, or where a device
does the arithmetic of all members at once. A convolution with other weights for each member may take a CPU longer than one
convolution after the other. So where there is much arithmetic, both forms are tried. They may differ in the last bits of a
result: a run keeps to one of them.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

import modulekit as mk
from scenarios.base.pacing import seconds_of
from scenarios.ensemble.lanes import Group

LARGE = 2**25  # floating-point operations of an update of all members, below which nothing is tried
_ROUNDS = 3
_CLEAR_GAIN = 0.8  # machines are noisy, and members side by side are compiled once


def is_worth_a_trial(groups: Sequence[Group]) -> bool:
    """Returns whether members that could be trained side by side have so much arithmetic that their form matters."""
    return sum(group.flops for group in groups if len(group.members) > 1) >= LARGE


def is_faster_side_by_side(side_by_side: Callable[[Any], Any], one_by_one: Callable[[Any], Any], batch: Any) -> bool:
    """Tries both forms of an update, with nothing changed; one by one must be clearly faster.

    Args:
      side_by_side: one form, a function of a batch.
      one_by_one: the other.
      batch: the structure of a batch.
    """
    examples = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), batch)
    programs = [mk.jit(form, donate=False) for form in (side_by_side, one_by_one)]

    def run(program: Callable[[Any], Any], count: int) -> None:
        for _ in range(count):
            jax.block_until_ready(program(examples))

    runs = [functools.partial(run, program) for program in programs]
    with mk.trial() as trial:
        for compiling in runs:
            compiling(1)
        rounds = [[seconds_of(timed, 1) for timed in runs] for _ in range(_ROUNDS)]
        trial.rollback()
    first, second = map(min, zip(*rounds, strict=True))
    return _CLEAR_GAIN * first < second
