"""How the values of a program's variables go in and come out: small ones in packs, the others each by itself."""

from collections.abc import Callable, Sequence
from typing import Any

from modulekit.core import storage
from modulekit.core.packs import Pack, layouts, scalars
from modulekit.core.pieces import join, split, tracing
from modulekit.core.variable import Variable

_MOST_CONSTANTS = 48  # starts of pieces; as constants they make calls faster, as inputs they make compiling faster
Pure = Callable[[list[Any], list[Any]], tuple[list[Any], Any]]


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
        for pack in _packs_of([*writes, *reads]):
            if not pack.is_whole:
                storage.gather(pack)
        if not storage.meet([*writes, *reads]) and packs:
            storage.packed(writes)
        self._written_packs = _packs_of(writes)
        self._read_packs = [pack for pack in _packs_of(reads) if pack not in self._written_packs]
        self._packs = [*self._written_packs, *self._read_packs]
        self._loose = [v for v in writes if storage.pack_of(v) is None]
        self._loose_reads = [v for v in reads if storage.pack_of(v) is None]
        numbers = sorted({start for pack in self._packs for start in _starts_of_weights(pack)})
        self._numbers = numbers if len(numbers) > _MOST_CONSTANTS else []
        self._starts = scalars(self._numbers, self._packs[0].committed_to if self._packs else None)
        self._shardings = storage.shardings(self._loose)
        self._count = layouts.count

    def is_current(self) -> bool:
        """Returns whether all variables lie where they did; puts those back that have left their place."""
        for pack in self._packs:
            if not pack.is_whole:
                storage.gather(pack)
        if self._count == layouts.count:
            return True
        now = Arrangement(self._writes, self._reads, packs=False)
        if now._packs != self._packs or now._loose != self._loose or now._loose_reads != self._loose_reads:
            return False
        if now._shardings != self._shardings:
            return False
        self._count = layouts.count
        return True

    # What goes in and out.

    def given(self) -> list[Any]:
        """Returns the buffers that the program overwrites, which are safe to donate once `own` has been called."""
        return storage.buffers(self._written_packs, self._loose)

    def kept(self) -> list[Any]:
        """Returns the buffers that the program only reads."""
        return storage.buffers(self._read_packs, self._loose_reads) + self._starts

    def own(self) -> None:
        """Makes sure that nobody else knows what is given."""
        storage.own(self._loose)

    def store(self, new: Sequence[Any]) -> None:
        """Takes what the program gave for what it was given."""
        storage.store_buffers(self._written_packs, self._loose, new)

    def run(self, pure: Pure, given: Sequence[Any], kept: Sequence[Any]) -> tuple[list[Any], Any]:
        """Runs the function inside the program.

        Args:
          pure: from the values of the variables that are written, and of those that are read, to the new ones and a result.
          given: what came for `given()`.
          kept: what came for `kept()`.

        Returns:
          `(new, result)`, where `new` is what comes out for what was given.
        """
        written, read = len(self._written_packs), len(self._read_packs)
        starts = dict(zip(self._numbers, kept[read + len(self._loose_reads) :], strict=True))
        with tracing(starts):
            buffers = [*given[:written], *kept[:read]]
            pieces = [split(buffer, pack.shapes) for pack, buffer in zip(self._packs, buffers, strict=True)]
            values: dict[Any, Any] = {}  # those of members that are gone go by the name of None, and are not asked for
            for pack, of_pack in zip(self._packs, pieces, strict=True):
                values.update(zip(pack.present(), of_pack, strict=True))
            values.update(zip(self._loose, given[written:], strict=True))
            values.update(zip(self._loose_reads, kept[read:], strict=False))
            new, result = pure([values[v] for v in self._writes], [values[v] for v in self._reads])
            fresh: dict[Any, Any] = dict(zip(self._writes, new, strict=True))
            joined = [
                join([fresh.get(v, piece) for v, piece in zip(pack.present(), of_pack, strict=True)])
                for pack, of_pack in zip(self._written_packs, pieces, strict=False)
            ]
        return joined + storage.kept_in_place([fresh[v] for v in self._loose], self._shardings), result


def _starts_of_weights(pack: Pack) -> list[int]:
    """Returns where weights begin; the slots of optimizers, which are most of the others, are used all at once."""
    members = pack.present()
    return [start for index, start in pack.starts.items() if getattr(members[index], "trainable", False)]


def _packs_of(variables: Sequence[Variable]) -> list[Pack]:
    packs = (storage.pack_of(variable) for variable in variables)
    return list(dict.fromkeys(pack for pack in packs if pack is not None))
