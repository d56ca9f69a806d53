"""The largest batch with which an update fits in memory, found by compiling it for several sizes. None of them runs."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import jax

from scenarios.base.sizes import in_bytes

_COMPILATIONS = 7  # beside the one for the batch size of the settings


@dataclass(frozen=True)
class LargestBatch:
    """The largest batch that fits.

    Attributes:
      size: examples, a whole multiple of the batch size where that fits; 0 where not even one does, None if not known.
      memory: bytes of the update with it.
      too_large: the smallest size that was found not to fit; None if none was.
      limit: what limits the size; or why it is not known.

    >>> print(LargestBatch(64, 4_000_000, 80, "memory"))
    largest batch that fits: 64 examples (4 MB); 80 do not
    """

    size: int | None
    memory: int | None
    too_large: int | None
    limit: str

    def __str__(self) -> str:
        if self.size is None:
            return f"largest batch that fits: not known, since {self.limit}"
        if not self.size:
            return "largest batch that fits: none, not even of one example"
        fits = f"largest batch that fits: {self.size} examples ({in_bytes(self.memory or 0)})"
        return f"{fits}, limited by {self.limit}" if self.too_large is None else f"{fits}; {self.too_large} do not"


def largest_batch(
    memory_of: Callable[[int], int], batch_size: int, memory: int, available: int, examples: int
) -> LargestBatch:
    """Searches the largest batch that fits, among the multiples of the batch size, or below it where that does not fit.

    Memory is nearly linear in the batch size: the line through the two nearest sizes says which one to try next.

    Args:
      memory_of: returns the bytes that an update takes with a batch size.
      batch_size: of the settings.
      memory: its bytes.
      available: bytes that an update may take.
      examples: the largest batch that there is.

    >>> print(largest_batch(lambda size: 1000 + 10 * size, 8, 1080, 2000, 500))
    largest batch that fits: 96 examples (1.96 kB); 104 do not
    """
    fits = memory <= available
    unit = batch_size if fits else 1
    known = {batch_size // unit: float(memory)}  # by the number of units
    wanted = examples // unit if fits else 1
    while wanted not in known and len(known) <= _COMPILATIONS:
        try:
            known[wanted] = _measured(memory_of, wanted * unit)
        except Exception as error:
            told = str(error).strip().split("\n")[0]
            why = f"the update cannot be compiled for {wanted * unit} examples ({type(error).__name__}: {told})"
            return LargestBatch(None, None, None, why)
        wanted = _next(known, available)
    fitting, too_large = _bounds(known, available)
    return LargestBatch(
        fitting * unit,
        int(known[fitting]) if fitting else None,
        None if too_large is None else too_large * unit,
        "the number of examples" if too_large is None else "memory",
    )


def _bounds(known: dict[int, float], available: int) -> tuple[int, int | None]:
    """Returns the largest count that fits, 0 if none does, and the smallest that does not."""
    fitting = max((count for count, needed in known.items() if needed <= available), default=0)
    return fitting, min((count for count, needed in known.items() if needed > available), default=None)


def _next(known: dict[int, float], available: int) -> int:
    """Returns the count to try next: where the line between the nearest two meets what is available; a known one to stop."""
    fitting, too_large = _bounds(known, available)
    if too_large is None or too_large - fitting <= 1 or not fitting:
        return fitting or 1
    low, high = known[fitting], known[too_large]
    if math.isinf(high) or high <= low:
        return (fitting + too_large) // 2
    guess = fitting + int((available - low) / (high - low) * (too_large - fitting))
    return min(max(guess, fitting + 1), too_large - 1)


def _measured(memory_of: Callable[[int], int], size: int) -> float:
    try:
        return memory_of(size)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return math.inf  # the compiler itself says so
