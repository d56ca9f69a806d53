"""The storage of many variables at once, for compiled steps. Nothing else reads or replaces arrays in bulk."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from modulekit.core import births, finite, overlay, provenance
from modulekit.core.packs import Pack, Place, key_of, layouts, one_at_a_time, vacate
from modulekit.core.pieces import is_small
from modulekit.core.processes import put
from modulekit.core.streams import stream_of
from modulekit.core.variable import Variable


def stored_arrays(variables: Sequence[Variable]) -> list[jax.Array]:
    """Returns the arrays of `variables`, as they are."""
    return [held.array() if type(held) is Place else held for held in [v._held for v in variables]]


def buffers(packs: Sequence[Pack], variables: Sequence[Variable]) -> list[jax.Array]:
    """Returns the buffers of packs, and the arrays of `variables`. Each compiled call asks: hence a plain loop."""
    found = []
    for pack in packs:
        found.append(pack.buffer)
    for variable in variables:
        held: Any = variable._held
        found.append(held.array() if type(held) is Place else held)
    return found


def own(variables: Sequence[Variable]) -> None:
    """Makes the arrays of `variables` safe to donate: those that are known outside are replaced by copies."""
    for variable in variables:
        if variable._lent and type(variable._held) is not Place:
            variable._lent = False
            array: Any = variable._held
            place = array.sharding if array.committed else None  # else it could not join those on several devices
            variable._held = jax.device_put(array, place, may_alias=False)


class Holdings:
    """What variables hold, so that they can have it back: whole buffers, where whole packs are among them.

    It is valid as long as no program is given it to donate.

    Args:
      variables: without repetition.
    """

    def __init__(self, variables: Sequence[Variable]) -> None:
        self._variables = variables
        self._held: list[Any] = [v._held for v in variables]
        self._buffers = {held.pack: held.pack.buffer for held in self._held if type(held) is Place}

    def wait(self) -> None:
        """Waits until the values have been computed."""
        arrays = [held for held in self._held if type(held) is not Place]
        jax.block_until_ready([*self._buffers.values(), *arrays])

    def give_back(self) -> None:
        """Gives the variables what they held."""
        places = {id(v._held) for v in self._variables}
        whole = {pack for pack in self._buffers if places.issuperset(id(place) for place in pack.taken())}
        for pack in whole:
            pack.replace(self._buffers[pack])
        left = [pair for pair in zip(self._variables, self._held, strict=True) if _pack(pair[1]) not in whole]
        store_buffers((), [variable for variable, _ in left], [self._array(held) for _, held in left])

    def _array(self, held: Any) -> jax.Array:
        return held.pack.cut(self._buffers[held.pack], held.index) if type(held) is Place else held


def store_buffers(packs: Sequence[Pack], variables: Sequence[Variable], new: Sequence[jax.Array]) -> None:
    """Replaces what `buffers` has given by what a program has just made of it and nobody else holds."""
    index = 0
    for pack in packs:
        pack.replace(new[index])
        index += 1
    for variable in variables:
        if type(variable._held) is Place:  # its value was put aside, and may have been read from its pack
            vacate(variable._held)
            variable._lend()
        variable._held = new[index]
        index += 1


def pack_of(variable: Variable) -> Pack | None:
    """Returns the pack in which a variable lies, None for one that has an array of its own."""
    return _pack(variable._held)


def _pack(held: Any) -> Pack | None:
    return held.pack if type(held) is Place else None


def packed(variables: Sequence[Variable]) -> None:
    """Puts those small ones among `variables` that fit together into packs, where they do not lie in one."""
    fitting: dict[Any, list[Variable]] = {}
    for variable in variables:
        held: Any = variable._held
        if type(held) is not Place and is_small(held.shape, held.dtype):
            fitting.setdefault(key_of(held), []).append(variable)
    for key, members in fitting.items():
        if key is not None and len(members) > 1:
            pack = Pack(members, stored_arrays(members))
            for variable, place in zip(members, pack.places, strict=True):
                variable._held, variable._lent = place, False


def shardings(variables: Iterable[Variable]) -> list[NamedSharding | None]:
    """Returns how those of `variables` lie that lie on a mesh of several devices, None for each of the others."""
    return [_on_mesh(variable) for variable in variables]


def forms_of(variables: Iterable[Variable]) -> list[tuple[tuple[int, ...], Any]]:
    """Returns shape and dtype of `variables`, for a `Grouping`: no dtype where the devices would have to exchange parts."""
    return [(v.shape, v.dtype if _on_mesh(v) is None else None) for v in variables]


def meet(variables: Sequence[Variable]) -> bool:
    """Brings `variables` together: where one of them lies on a mesh of several devices, the others get a copy on each.

    Random streams go where they are used; variables that were put on a device on purpose stay there.

    Returns:
      Whether there are several devices.
    """
    mesh = next((found.mesh for v in variables if (found := _on_mesh(v)) is not None and stream_of(v) is None), None)
    if mesh is None:
        for variable in variables:
            if _on_mesh(variable) is not None:  # a stream
                _move(variable, None)
        return False
    everywhere = NamedSharding(mesh, PartitionSpec())
    spread([variable for variable in variables if pack_of(variable) is not None])
    for variable in variables:
        held: Any = variable._held
        is_bound = held.sharding is not None if type(held) is jax.ShapeDtypeStruct else held.committed
        travels = not is_bound or stream_of(variable) is not None
        if travels and held.sharding != everywhere:
            _move(variable, everywhere)
    return True


def kept_in_place(values: Sequence[Any], places: Sequence[NamedSharding | None]) -> list[Any]:
    """Returns traced values that lie, when the program runs, as `shardings` said."""
    return [
        value if place is None else jax.lax.with_sharding_constraint(value, place)
        for value, place in zip(values, places, strict=True)
    ]


def place(variable: Variable, sharding: jax.sharding.Sharding) -> None:
    """Moves a variable, which keeps its value."""
    with one_at_a_time:
        _move(variable, sharding)


def _move(variable: Variable, sharding: jax.sharding.Sharding | None) -> None:
    held: Any = variable._held
    vacate(held)
    layouts.count += 1
    if not births.have_values():
        variable._held = jax.ShapeDtypeStruct(held.shape, held.dtype, sharding=sharding)
        return
    array = held.array() if type(held) is Place else held
    variable._held = jax.device_put(np.asarray(array)) if sharding is None else put(array, sharding)
    variable._lend()


def _on_mesh(variable: Variable) -> NamedSharding | None:
    held: Any = variable._held
    sharding = None if type(held) is Place else held.sharding
    return sharding if isinstance(sharding, NamedSharding) and sharding.num_devices > 1 else None


def spread(variables: Iterable[Variable]) -> None:
    """Gives each of `variables` an array of its own, so that what is packed next does not depend on what was before."""
    for variable in variables:
        held = variable._held
        if isinstance(held, Place):
            vacate(held)
            variable._held = held.array()
            variable._lend()


def gather(pack: Pack) -> None:
    """Puts the members of a pack that have left it back in their places; dissolves a pack that does not fit any more."""
    with one_at_a_time:
        members = pack.present()
        arrays: list[Any] = [
            pack.array(index) if v is None or v._held is pack.places[index] else v._held
            for index, v in enumerate(members)
        ]
        elsewhere = any(v is not None and pack_of(v) not in (None, pack) for v in members)
        fits = not elsewhere and all(key_of(array) == pack.key for array in arrays)
        if fits:
            pack.fill(arrays)
        layouts.count += 1
        for variable, place, array in zip(members, pack.places, arrays, strict=True):
            if variable is not None and fits:
                variable._held, variable._lent = place, False
            elif variable is not None and variable._held is place:
                variable._held = array
                variable._lend()


def commit(
    variables: Sequence[Variable], values: Sequence[Any], writers: Mapping[Variable, provenance.Origin] | None = None
) -> None:
    """Writes the new values that a transform returned, to the overlay around it or to the variables themselves.

    Args:
      variables: those that its function wrote.
      values: their new values.
      writers: the lines that wrote them; the line that called the transform where they are not known.
    """
    if not variables:
        return
    variables[0].check_writable()
    finite.finish(values)
    running, caller = overlay.active(), provenance.user_line()
    for variable, value in zip(variables, values, strict=True):
        writer = (writers or {}).get(variable, caller)
        if running is not None:
            running.write(variable, value, writer)
        else:
            variable.replace(value, writer)
