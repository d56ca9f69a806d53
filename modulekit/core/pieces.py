"""Pieces of flat arrays: how a traced program takes apart what lies in one buffer, and puts it together again.

A piece remembers where it comes from as long as the program is traced, so that pieces which are joined in their old order
are a stretch of the flat array again, and no copy. Where there are many, where a piece begins is an input of the program
and no constant: XLA compiles two slices that differ in a constant twice, and a hundred of them a hundred times.

Pieces of one form in a row, but for their first axes, are cut from one array along its first axis, and arrays of such a
form are laid together along it: then XLA sees through a concatenation of all of them, in a model or in a gradient.
"""

import itertools
import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

SMALL = 2**12  # elements up to which a copy costs less than a buffer of its own
_MOST_SLICES = 8  # each of which XLA compiles by itself
_MANY = 8  # arrays of one form in a row


class _Tracing(threading.local):
    def __init__(self) -> None:
        self.origins: dict[int, tuple[Any, Any, int]] | None = None  # of pieces, by id: itself, its source, its start
        self.starts: Mapping[int, Any] = {}
        self.apart = False


_tracing = _Tracing()


@contextmanager
def tracing(starts: Mapping[int, Any]) -> Iterator[None]:
    """Context in which pieces remember where they come from.

    Args:
      starts: scalars of the program, by the number that they have when it runs.
    """
    before = _tracing.origins, _tracing.starts
    _tracing.origins, _tracing.starts = {}, starts
    try:
        yield
    finally:
        _tracing.origins, _tracing.starts = before


@contextmanager
def apart() -> Iterator[None]:
    """Context in which groupings lay nothing together, so that each value depends on what it is computed from alone."""
    before, _tracing.apart = _tracing.apart, True
    try:
        yield
    finally:
        _tracing.apart = before


def is_apart() -> bool:
    """Returns whether groupings lay nothing together."""
    return _tracing.apart


def is_small(shape: Sequence[int], dtype: Any) -> bool:
    """Returns whether an array is worth lying in one buffer with others."""
    return isinstance(dtype, np.dtype) and 0 < math.prod(shape) <= SMALL


def starts_of(shapes: Sequence[Sequence[int]]) -> list[int]:
    """Returns where each array begins when all lie one after the other; and at last, where they end."""
    starts = [0]
    for shape in shapes:
        starts.append(starts[-1] + math.prod(shape))
    return starts


def split(flat: Any, shapes: Sequence[Sequence[int]]) -> list[Any]:
    """Returns the arrays of these shapes that lie one after the other in a flat array."""
    starts, pieces = starts_of(shapes), []
    for first, last in _runs(shapes):
        if last - first >= _MANY:
            cuts = _rows(flat[starts[first] : starts[last]], shapes[first:last])
        else:
            cuts = [_cut(flat, starts[index], shapes[index]) for index in range(first, last)]
        pieces += [_from(flat, start, cut) for start, cut in zip(starts[first:last], cuts, strict=True)]
    return pieces


def cut_alone(shapes: Sequence[Sequence[int]]) -> list[int]:
    """Returns which of the arrays of a flat one are cut from it by themselves, and not in a run of their form."""
    runs = (range(*run) for run in _runs(shapes))
    return [index for run in runs if len(run) < _MANY for index in run]


def _cut(flat: Any, start: int, shape: Sequence[int]) -> Any:
    """Returns the array that begins somewhere in a flat one."""
    return lax.dynamic_slice(flat, (_tracing.starts.get(start, start),), (math.prod(shape),)).reshape(shape)


def _rows(flat: Any, shapes: Sequence[Sequence[int]]) -> list[Any]:
    """Returns the arrays of a flat one that have all axes but the first in common."""
    block, stops = flat.reshape(-1, *shapes[0][1:]), list(itertools.accumulate(shape[0] for shape in shapes))
    return [block[stop - shape[0] : stop] for stop, shape in zip(stops, shapes, strict=True)]


def _runs(shapes: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    """Returns from where to where arrays have all axes but the first in common; a scalar is by itself."""
    forms = [tuple(shape[1:]) if len(shape) else index for index, shape in enumerate(shapes)]
    lengths = [len(list(run)) for _, run in itertools.groupby(forms)]
    return list(itertools.pairwise(itertools.accumulate(lengths, initial=0)))


def stack(values: Sequence[Any]) -> Any:
    """Returns arrays of one shape along a new first axis, as `jnp.stack`."""
    if len(_stretches(values)) > 1:
        return jnp.stack(values)
    _, source, start = _origin(values[0])
    stacked = join(values).reshape(len(values), *jnp.shape(values[0]))
    return stacked if source is None else _from(source, start, stacked)


def unstack(value: Any) -> list[Any]:
    """Returns the arrays along the first axis."""
    rows = list(value)
    _, source, start = _origin(value)
    if source is None:
        return rows
    size = math.prod(jnp.shape(value)[1:])
    return [_from(source, start + index * size, row) for index, row in enumerate(rows)]


def _from(source: Any, start: int, piece: Any) -> Any:
    """Returns a piece, and remembers where it comes from."""
    if _tracing.origins is not None:
        _tracing.origins[id(piece)] = piece, source, start
    return piece


def _origin(value: Any) -> tuple[Any, Any, int]:
    """Returns an array, the flat one that it is a piece of, if that is known, and where it begins there."""
    return (_tracing.origins or {}).get(id(value), (value, None, 0))


def join(values: Sequence[Any]) -> Any:
    """Returns arrays of one dtype as a flat one; what has been split before, without a copy of each."""
    stretches = _stretches(values)
    if sum(stop - start < source.size for source, start, stop in stretches) > _MOST_SLICES:
        return _gathered(stretches)
    flat = [s if stop - start == s.size else s[start:stop] for s, start, stop in stretches]
    return flat[0] if len(flat) == 1 else jnp.concatenate(flat)


def _gathered(stretches: Sequence[tuple[Any, int, int]]) -> Any:
    """Returns stretches of flat arrays one after the other, by a single operation that XLA compiles fast."""
    sources = list({id(source): source for source, _, _ in stretches}.values())
    starts = dict(zip(map(id, sources), starts_of([source.shape for source in sources]), strict=False))
    places = [np.arange(start, stop, dtype=np.int32) + starts[id(source)] for source, start, stop in stretches]
    return jnp.concatenate(sources).at[np.concatenate(places)].get(mode="promise_in_bounds", unique_indices=True)


def _stretches(values: Sequence[Any]) -> list[tuple[Any, int, int]]:
    """Returns flat arrays, and from where to where, that are these values one after the other."""
    stretches: list[tuple[Any, int, int]] = []
    for value in _together(values):
        size = math.prod(jnp.shape(value))
        _, source, start = _origin(value)
        if source is None:
            stretches.append((jnp.reshape(value, (-1,)), 0, size))
        elif stretches and stretches[-1][0] is source and stretches[-1][2] == start:
            stretches[-1] = source, stretches[-1][1], start + size
        else:
            stretches.append((source, start, start + size))
    return stretches


def _together(values: Sequence[Any]) -> list[Any]:
    """Returns the values, and in place of several in a row that come from nowhere and have one form, one array."""
    found: list[Any] = []
    for is_piece, group in itertools.groupby(values, lambda value: _origin(value)[1] is not None):
        members = list(group)
        if is_piece:
            found += members
            continue
        for first, last in _runs([jnp.shape(value) for value in members]):
            found.append(jnp.concatenate(members[first:last]) if last - first > 1 else members[first])
    return found


class Grouping:
    """Which of some arrays lie together in flat ones: the small ones of each dtype, where there are several.

    Args:
      forms: the shape and dtype of each array.

    >>> grouping = Grouping([((2,), np.dtype("float32")), ((), np.dtype("int32")), ((2, 2), np.dtype("float32"))])
    >>> flat = grouping.joined([jnp.ones(2), jnp.asarray(3), jnp.zeros([2, 2])])
    >>> [array.shape for array in flat]
    [(6,), ()]
    >>> [array.shape for array in grouping.split(flat)]
    [(2,), (), (2, 2)]
    """

    def __init__(self, forms: Sequence[tuple[tuple[int, ...], Any]]) -> None:
        small: dict[Any, list[int]] = {}
        for index, (shape, dtype) in enumerate(forms):
            if is_small(shape, dtype) and not _tracing.apart:
                small.setdefault(dtype, []).append(index)
        self._shapes = [shape for shape, _ in forms]
        self.groups = [indices for indices in small.values() if len(indices) > 1]
        grouped = {index for indices in self.groups for index in indices}
        self.alone = [index for index in range(len(forms)) if index not in grouped]

    def joined(self, values: Sequence[Any]) -> list[Any]:
        """Returns the flat arrays of the groups, and then the other arrays."""
        flat = [join([values[index] for index in indices]) for indices in self.groups]
        return flat + [values[index] for index in self.alone]

    def split(self, arrays: Sequence[Any]) -> list[Any]:
        """Returns the arrays again, in their order."""
        found: dict[int, Any] = dict(zip(self.alone, arrays[len(self.groups) :], strict=True))
        for indices, flat in zip(self.groups, arrays, strict=False):
            found.update(zip(indices, split(flat, [self._shapes[index] for index in indices]), strict=True))
        return [found[index] for index in range(len(found))]
