"""How many steps one program runs: measured on the user's own update, and never a change of a result."""

_LONGEST_CALL = 500  # steps; what must be uploaded and logged per call stays small
_SECONDS_PER_CALL = 0.4  # so that progress moves and a signal is soon heard
_SLOW_STEP = 2e-3  # seconds; below it the loop cannot lose anything that matters
_TRIAL = 8  # calls of a form at most, beside the one that compiles
_CLEAR_GAIN = 0.7  # machines are noisy, and the loop is the better form wherever XLA compiles it well


class Pacing:
    """Chooses between a loop over many steps and one step at a time, and how long the loop runs.

    Args:
      steps_per_call: how many steps one program runs at most; None measures and chooses.
      in_loop: the form that an earlier part of the run has found to be faster; None where that is not known.

    Attributes:
      in_loop: whether many steps run in one program.
    """

    def __init__(self, steps_per_call: int | None, in_loop: bool | None) -> None:
        self.in_loop = steps_per_call != 1 if in_loop is None else in_loop
        self._measures = steps_per_call is None and in_loop is None
        self._is_free = steps_per_call is None
        self._capacity = steps_per_call or _LONGEST_CALL
        self._count = steps_per_call or 1
        self._calls: dict[bool, int] = {True: 0, False: 0}
        self._seconds: dict[bool, list[float]] = {True: [], False: []}  # per step, of each call that did not compile

    @property
    def decided(self) -> bool | None:
        """Whether the loop was measured to be the faster form, None while that is not known."""
        return None if self._measures or not self._is_free else self.in_loop

    def advise(self, remaining: int) -> tuple[int, int]:
        """Returns how many steps to run in the next call, and how many the program for it could run."""
        if not self.in_loop:
            return 1, 1
        return max(1, min(remaining, self._count, self._capacity)), self._capacity

    def learn(self, in_loop: bool, count: int, seconds: float) -> None:
        """Takes note of the time of a call of `count` steps; the first one of each form compiles and does not count."""
        self._calls[in_loop] += 1
        if in_loop != self.in_loop or self._calls[in_loop] == 1 or not self._is_free:
            return
        is_whole = in_loop and count >= self._count
        if in_loop:
            self._count = int(min(self._capacity, max(1.0, _SECONDS_PER_CALL * count / seconds)))
        if self._measures:
            times = self._seconds[in_loop]
            times.append(seconds / count)
            if len(times) == _TRIAL or (is_whole and len(times) > 1):
                self._decide()

    def _decide(self) -> None:
        """Goes on to try the other form, or ends the trial."""
        looped, alone = self._seconds[True], self._seconds[False]
        if self.in_loop and min(looped) > _SLOW_STEP:
            self.in_loop = False
            return
        if not self.in_loop:  # a mean, as a call of the loop is one: the luckiest step is no measure
            self.in_loop = sum(alone) / len(alone) > _CLEAR_GAIN * min(looped)
        self._measures = False
