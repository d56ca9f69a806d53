"""How the values of a program's variables go in and come out: small ones in packs, the others each by itself."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from modulekit.core import storage
from modulekit.core.packs import Pack, layouts, scalars
from modulekit.core.pieces import join, split, tracing
from modulekit.core.variable import Variable


class Arrangement:
    """Where the variables of a program lie, as of now.

    A pack that the program writes to goes in as a whole and comes out as a whole, with the members that the program does
    not know as they are.

    Args:
      writes: the variables that the program writes.
      reads: those that it only reads.
      packs: whether small ones that are written are put into packs; others stay in those where they are.
    """

    def __init__(self, writes: Sequence[Variable], reads: Sequence[Variable], packs: bool) -> None:
        self._writes, self._reads = writes, reads
        _gather(_packs_of([*writes, *reads]))
        if packs:
            storage.packed(writes)
        self._written_packs = _packs_of(writes)
        self._read_packs = [pack for pack in _packs_of(reads) if pack not in self._written_packs]
        self._packs = [*self._written_packs, *self._read_packs]
        self._loose = [v for v in writes if storage.pack_of(v) is None]
        self._loose_reads = [v for v in reads if storage.pack_of(v) is None]
        self._numbers = sorted({start for pack in self._packs for start in pack.starts})
        self._starts = scalars(self._numbers, self._packs[0].committed_to if self._packs else None)
        self._count = layouts.count

    def is_current(self) -> bool:
        """Returns whether all variables lie where they did; puts those back that have left their place."""
        _gather(self._packs)
        if self._count == layouts.count:
            return True
        now = Arrangement(self._writes, self._reads, packs=False)
        if now._packs != self._packs or now._loose != self._loose or now._loose_reads != self._loose_reads:
            return False
        self._count = layouts.count
        return True

    # What goes in and out.

    def given(self) -> list[Any]:
        """Returns the buffers that the program overwrites, which are safe to donate once `own` has been called."""
        return [pack.buffer for pack in self._written_packs] + storage.stored_arrays(self._loose)

    def kept(self) -> list[Any]:
        """Returns the buffers that the program only reads."""
        arrays = storage.stored_arrays(self._loose_reads)
        return [pack.buffer for pack in self._read_packs] + arrays + self._starts if self._packs else arrays

    def own(self) -> None:
        """Makes sure that nobody else knows what is given."""
        storage.own(self._loose)

    def store(self, new: Sequence[Any]) -> None:
        """Takes what the program gave for what it was given."""
        count = len(self._written_packs)
        for pack, buffer in zip(self._written_packs, new, strict=False):
            pack.replace(buffer)
        storage.store_arrays(self._loose, new[count:] if count else new)

    # Inside the program.

    @contextmanager
    def opened(self, given: Sequence[Any], kept: Sequence[Any]) -> Iterator[tuple[list[Any], list[Any]]]:
        """Context in which the program has the values of the variables that it writes, and of those that it reads."""
        count, values = len(self._read_packs), {}
        starts = dict(zip(self._numbers, kept[count + len(self._loose_reads) :], strict=True))
        with tracing(starts):
            buffers = [*given[: len(self._written_packs)], *kept[:count]]
            self._pieces = [split(buffer, pack.shapes) for pack, buffer in zip(self._packs, buffers, strict=True)]
            for pack, pieces in zip(self._packs, self._pieces, strict=True):
                members = [reference() for reference in pack.members]
                values.update({v: piece for v, piece in zip(members, pieces, strict=True) if v is not None})
            values.update(zip(self._loose, given[len(self._written_packs) :], strict=True))
            values.update(zip(self._loose_reads, kept[count:], strict=False))
            yield [values[v] for v in self._writes], [values[v] for v in self._reads]

    def closed(self, new: Sequence[Any]) -> list[Any]:
        """Returns what comes out, from the new values of the variables that the program writes; inside `opened`."""
        values: dict[Any, Any] = dict(zip(self._writes, new, strict=True))
        buffers = []
        for pack, pieces in zip(self._written_packs, self._pieces, strict=False):
            members = [reference() for reference in pack.members]
            buffers.append(join([values.get(v, piece) for v, piece in zip(members, pieces, strict=True)]))
        return buffers + [values[v] for v in self._loose]


def _gather(packs: Sequence[Pack]) -> None:
    for pack in packs:
        if not pack.is_whole:
            storage.gather(pack)


def _packs_of(variables: Sequence[Variable]) -> list[Pack]:
    packs = (storage.pack_of(variable) for variable in variables)
    return list(dict.fromkeys(pack for pack in packs if pack is not None))
