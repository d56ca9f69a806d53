"""How many steps one program runs: measured on the user's own update, and never a change of a result."""

from collections.abc import Callable
from time import perf_counter

from modulekit.core.processes import agreed

_LONGEST_CALL = 500  # steps; what must be uploaded and logged per call stays small
_SECONDS_PER_CALL = 0.8  # so that progress moves and a signal is soon heard
_SLOW_STEP = 2e-3  # seconds; below it the loop cannot lose anything that matters
_TRIAL = 8  # steps of a call in the trial, at most
_ENOUGH = 0.2  # seconds that tell one form from the other
_CLEAR_GAIN = 0.7  # machines are noisy, and the loop is the better form wherever XLA compiles it well

Form = Callable[[int], object]


class Pacing:
    """Chooses between a loop over many steps and one step at a time, and how long the loop runs.

    The two forms may differ in the last bits of a result, so that a run keeps to one of them, from its first step on.

    Args:
      steps_per_call: how many steps one program runs at most, always in the loop; None measures and chooses.
      in_loop: the form that an earlier part of the run has found to be faster; None where that is not known.

    Attributes:
      in_loop: whether steps run in the loop; None before the trial.
    """

    def __init__(self, steps_per_call: int | None, in_loop: bool | None) -> None:
        self.in_loop = in_loop if steps_per_call is None else True
        self._is_free = steps_per_call is None
        self._capacity = steps_per_call or _LONGEST_CALL
        self._count = steps_per_call or 1
        self._compiled = False

    @property
    def decided(self) -> bool | None:
        """Whether the loop was measured to be the faster form, None while that is not known."""
        return self.in_loop if self._is_free else None

    def advise(self, remaining: int) -> tuple[int, int]:
        """Returns how many steps to run in the next call, and how many the program for it could run."""
        if self.in_loop is False:
            return 1, 1
        return max(1, min(remaining, self._count, self._capacity)), self._capacity

    def choose(self, loop: Form, alone: Form) -> None:
        """Tries both forms, which take a number of steps to run; the second one only where it could matter.

        Args:
          loop: runs steps in one program, `_TRIAL` of them at most.
          alone: runs them one by one.
        """
        self.in_loop = True
        loop(1)  # compiles
        count, seconds = 1, seconds_of(loop, 1)
        if seconds < _TRIAL * _SLOW_STEP:  # most of it may be the call
            count = min(_TRIAL, self._capacity)
            seconds = seconds_of(loop, count)
        if seconds < _SLOW_STEP:
            return
        alone(1)
        self.in_loop = _CLEAR_GAIN * seconds < seconds_of(alone, count)

    def learn(self, count: int, seconds: float) -> None:
        """Takes note of the time of a call of `count` steps; the first one may compile and does not count."""
        if self._compiled and self._is_free and self.in_loop:
            self._count = int(min(self._capacity, max(1.0, _SECONDS_PER_CALL * count / seconds)))
        self._compiled = True


def seconds_of(form: Form, count: int) -> float:
    """Returns the seconds per step in the best of a few calls, one where a call is long, by the first process's clock."""
    times: list[float] = []
    while not times or (len(times) < 3 and sum(times) < _ENOUGH):
        began = perf_counter()
        form(count)
        times.append(agreed(perf_counter() - began))
    return min(times) / count
