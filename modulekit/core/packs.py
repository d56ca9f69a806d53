"""Packs: small variables that lie in one buffer between compiled steps.

What a step costs beyond its arithmetic is the number of buffers that go in and out of its program. So the program takes
the small variables that it writes in one buffer and gives one back (`transforms/arrangement.py`), and a variable in it
holds its place in the pack in place of an array. Reading a variable from outside cuts it from the buffer, once for each
step, by a program for all of its shape: one program for all variables would take XLA seconds to compile where they are
hundreds. What it gives are copies, so that the buffer itself is never known outside, and may always be donated. A variable
that is assigned leaves its place for an array of its own, and is put back before the next step.
"""

import functools
import math
import threading
import weakref
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np

from modulekit.core.counters import Counter
from modulekit.core.pieces import cut_alone, starts_of

# Threads that step one model take turns: between taking the arrays and storing the new ones, nobody else may.
one_at_a_time = threading.RLock()
layouts = Counter()  # of packs that were formed or dissolved


class Place:
    """Where a variable's value lies in a pack. It has the shape and dtype of the array."""

    __slots__ = ("dtype", "index", "pack", "shape")

    def __init__(self, pack: "Pack", index: int, shape: tuple[int, ...], dtype: Any) -> None:
        self.pack, self.index, self.shape, self.dtype = pack, index, shape, dtype

    def array(self) -> jax.Array:
        """Returns the value, as an array that nobody will donate."""
        return self.pack.array(self.index)


class Pack:
    """One buffer with the values of several variables of one dtype, on one device.

    Args:
      variables: the members; held weakly.
      arrays: their values.

    Attributes:
      buffer: the values, flat, one after the other.
      committed_to: the device on which the values were put on purpose; None where they may move.
      places: of the members.
      members: weak references to them.
      is_whole: whether every member is in its place; false where one may have left it.
      starts: where those places begin that are cut from the buffer by themselves, by number of the member.
    """

    def __init__(self, variables: Sequence[Any], arrays: Sequence[jax.Array]) -> None:
        self.members = [weakref.ref(variable) for variable in variables]
        self.places = [Place(self, index, array.shape, array.dtype) for index, array in enumerate(arrays)]
        self.committed_to = next(iter(arrays[0].devices())) if arrays[0].committed else None
        self.key = key_of(arrays[0])
        self.shapes = tuple(array.shape for array in arrays)
        self._all_starts = starts_of(self.shapes)
        self.starts = {index: self._all_starts[index] for index in cut_alone(self.shapes)}
        self._arrays: dict[int, jax.Array] = {}
        self.fill(arrays)
        layouts.count += 1

    def present(self) -> list[Any]:
        """Returns the members; None for one that is gone."""
        return [reference() for reference in self.members]

    def taken(self) -> list[Place]:
        """Returns the places of members that are still there."""
        return [place for place, member in zip(self.places, self.present(), strict=True) if member is not None]

    def fill(self, arrays: Sequence[jax.Array]) -> None:
        """Takes new values for all members."""
        flat = np.concatenate([np.asarray(array).reshape(-1) for array in arrays])
        with jax.ensure_compile_time_eval():  # whatever is being traced
            self.replace(jax.device_put(flat, self.committed_to, may_alias=False))
        self.is_whole = True

    def replace(self, buffer: jax.Array) -> None:
        """Takes a new buffer."""
        self.buffer = buffer
        self._arrays = {}

    def array(self, index: int) -> jax.Array:
        """Returns the value of a place."""
        with one_at_a_time:
            if index not in self._arrays:
                self._arrays[index] = self.cut(self.buffer, index)
            return self._arrays[index]

    def cut(self, buffer: jax.Array, index: int) -> jax.Array:
        """Returns the value that a place has in a buffer of this pack."""
        with jax.ensure_compile_time_eval():  # whatever is being traced
            return _cut(buffer, _scalar(self._all_starts[index], self.committed_to), self.shapes[index])


def vacate(held: Any) -> None:
    """Notes that a variable gives up what it holds, for an array of its own."""
    if type(held) is Place:
        held.pack.is_whole = False


def key_of(array: jax.Array) -> Any:
    """Returns what arrays must have in common to lie in one pack; None for one that cannot, as one without a value."""
    if isinstance(array, jax.ShapeDtypeStruct):
        return None
    devices = array.sharding.device_set
    return (array.dtype, next(iter(devices)), array.committed) if len(devices) == 1 else None


@functools.cache
def _scalar(number: int, place: Any) -> jax.Array:
    with jax.ensure_compile_time_eval():
        return jax.device_put(np.int32(number), place)


def scalars(numbers: Iterable[int], place: Any) -> list[Any]:
    """Returns numbers as inputs of a program, where its other inputs are."""
    return [_scalar(number, place) for number in numbers]


@functools.partial(jax.jit, static_argnums=2)
def _cut(buffer: Any, start: Any, shape: tuple[int, ...]) -> Any:
    return jax.lax.dynamic_slice(buffer, (start,), (math.prod(shape),)).reshape(shape)
