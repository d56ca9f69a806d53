"""Which states of a store stay."""

from collections.abc import Sequence
from typing import Any, Literal

Mode = Literal["min", "max"]


class Preservation:
    """Decides which states stay: the newest, the best, and the anchor. A preservation policy of orbax."""

    def __init__(self, keep: int, keep_best: int, best: Mode, anchor_interval: int | None) -> None:
        self.scores: dict[int, float | None] = {}
        self._keep, self._keep_best, self._anchor_interval = keep, keep_best, anchor_interval
        self._sign = 1.0 if best == "min" else -1.0

    def best_of(self, steps: Sequence[int]) -> list[int]:
        """Returns the steps that have a score, the best first and the older one of two equal ones."""
        scored = [(score, step) for step in steps if (score := self.scores.get(step)) is not None]
        return [step for _, step in sorted((self._sign * score, step) for score, step in scored)]

    def anchors_of(self, steps: Sequence[int]) -> list[int]:
        """Returns the steps that are multiples of the anchor interval; none where there is no interval."""
        return [step for step in steps if self._anchor_interval is not None and step % self._anchor_interval == 0]

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Returns, for each state from old to new, whether it stays."""
        steps = [checkpoint.step for checkpoint in checkpoints]
        staying = {*steps[-self._keep :], *self.best_of(steps)[: self._keep_best]}
        staying.update(self.anchors_of(steps)[-1:])
        return [step in staying for step in steps]
