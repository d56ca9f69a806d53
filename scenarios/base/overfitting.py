"""Whether one batch can be learned by heart: if not, more data will not help."""

import math
from dataclasses import dataclass, replace
from time import perf_counter

import numpy as np

from scenarios.base.feeding import Chunk
from scenarios.base.stepping import Stepper

_UPDATES = 200
_SECONDS = 5.0
_CALL = 25  # updates between two looks at the loss
_LEARNED = 0.1  # of the first loss
_MOVED = 0.9  # of the first loss: above it, nothing was learned
_STOPPED = 0.98  # of the lowest loss before; a fall by less, in two calls, is none


@dataclass(frozen=True)
class Overfitting:
    """The loss on one batch, trained on again and again.

    Attributes:
      metric: the first metric of the update.
      first: its value before the first update.
      last: its lowest value.
      updates: how many there were; fewer than 200 where the loss had fallen or had stopped to, or time was over.
      seconds: how long they took.

    >>> print(Overfitting("loss", 2.5, 0.2, 50, 0.1))
    one batch can be overfitted: loss fell from 2.5 to 0.2 in 50 updates
    """

    metric: str
    first: float
    last: float
    updates: int
    seconds: float

    @property
    def succeeded(self) -> bool:
        """Whether the loss fell below a tenth of the first."""
        return self.first > 0 and self.last < _LEARNED * self.first

    def __str__(self) -> str:
        verdict = "can" if self.succeeded else "was not"
        change = "fell" if self.last < self.first else "went"
        be = " be" if self.succeeded else ""
        return (
            f"one batch {verdict}{be} overfitted: {self.metric} {change} from {self.first:.3g} to {self.last:.3g} in "
            f"{self.updates} updates"
        )

    @property
    def warnings(self) -> list[str]:
        """What is wrong; a loss that cannot reach zero need not fall by nine tenths."""
        if self.first == 0 or self.first - self.last > (1 - _MOVED) * abs(self.first):
            return []
        return [
            f"{self}. It does not learn even that: look at the learning rate, and at what the loss is a function of"
        ]


def overfit(stepper: Stepper, chunk: Chunk) -> Overfitting:
    """Trains on the first batch of a chunk alone, for at most 200 updates and 5 seconds.

    Args:
      stepper: of the run; the caller takes back what it does to variables.
      chunk: the examples of some steps.
    """
    losses: list[float] = []
    metric = ""
    began = perf_counter()
    best, stalled = math.inf, 0
    while len(losses) < _UPDATES and perf_counter() - began < _SECONDS and stalled < 2:
        capacity = len(chunk.rows)
        count = min(_CALL, capacity, _UPDATES - len(losses))
        again = replace(chunk, count=count, rows=np.repeat(chunk.rows[:1], capacity, axis=0))
        done, metrics = stepper.run(len(losses), again)
        metric = next(iter(metrics))
        losses.extend(float(value) for value in metrics[metric][:done])
        if done < count or min(losses) < _LEARNED * max(losses[0], 0):
            break
        if len(losses) // _CALL > (len(losses) - count) // _CALL:  # a look at every 25 updates
            stalled = 0 if min(losses) < best - (1 - _STOPPED) * abs(best) else stalled + 1
            best = min(losses)
    first = losses[0] if losses else math.nan
    return Overfitting(metric, first, min(losses, default=math.nan), len(losses), perf_counter() - began)
