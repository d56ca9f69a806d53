"""The forms of an ensemble's update: members at once, in turn by one program, or each by instructions of its own.

At once (`jax.vmap`) is the best form wherever the way into operations and out of them is what takes the time, or where a
device does the arithmetic of all members together. A convolution with other weights for each member may take a CPU longer
than one convolution after the other, in a loop (`jax.lax.scan`) or written out. So where there is much arithmetic, all are
tried. They may differ in the last bits of a result: a run keeps to one of them.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

import modulekit as mk
from scenarios.base.pacing import seconds_of
from scenarios.ensemble.lanes import Form, Group

LARGE = 2**25  # floating-point operations of an update of all members, below which nothing is tried
_ROUNDS = 3
_CLEAR_GAIN = 0.8  # machines are noisy, and members at once need no such trial again


def is_worth_a_trial(groups: Sequence[Group]) -> bool:
    """Returns whether members that could be trained at once have so much arithmetic that their form matters."""
    return sum(group.flops for group in groups if len(group.members) > 1) >= LARGE


def fastest(updates: Mapping[Form, Callable[[Any], Any]], batch: Any) -> Form:
    """Tries the forms of an update, with nothing changed; returns "vmap" unless another is clearly faster.

    Args:
      updates: a function of a batch for each form.
      batch: the structure of a batch.
    """
    examples = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), batch)

    def run(program: Callable[[Any], Any], count: int) -> None:
        for _ in range(count):
            jax.block_until_ready(program(examples))

    runs = [functools.partial(run, mk.jit(update, donate=False)) for update in updates.values()]
    with mk.trial() as trial:
        for compiling in runs:
            compiling(1)
        rounds = [[seconds_of(timed, 1) for timed in runs] for _ in range(_ROUNDS)]
        trial.rollback()
    seconds = dict(zip(updates, map(min, zip(*rounds, strict=True)), strict=True))
    best = min(updates, key=lambda form: seconds[form])
    return best if seconds[best] < _CLEAR_GAIN * seconds["vmap"] else "vmap"
