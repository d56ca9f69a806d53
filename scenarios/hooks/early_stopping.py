"""Early stopping: a run ends when its evaluations get no better."""

import math
import warnings
from typing import Any

from scenarios.base.events import Evaluated, Event, Finished, Started
from scenarios.base.hooks import Stop


class EarlyStopping:
    """Ends a run after `patience` evaluations in a row that are no better than the best before them.

    Better is below `best - min_delta`, or with `mode="max"` above `best + min_delta`; a value that is not finite never is.
    What was best, when, and how many evaluations have passed since is saved with the run: a run that resumes stops where
    it would have, and one that was stopped stays stopped, unless it has more patience now.

    Args:
      metric: of the evaluation, such as `loss`.
      patience: how many evaluations without improvement end the run.
      mode: `min` where less is better, `max` where more is.
      min_delta: by how much a value must be better to count.

    Raises:
      ValueError: a number is out of range, or the mode unknown; in the run, if evaluations have no such metric.

    >>> import jax.numpy as jnp, modulekit as mk, scenarios
    >>> x, fit = jnp.ones([4, 1]), scenarios.Supervised(50, batch_size=4, eval_interval=5, progress=False)
    >>> never_better = mk.optimizers.SGD(0.0)
    >>> result = fit(mk.Linear(1, w_init=mk.initializers.Zeros()), never_better, mk.losses.squared_error,
    ...              data=(x, x), eval_data=(x, x), hooks=[EarlyStopping(patience=3)])
    >>> result.step, result.reason
    (20, 'no better loss than 1 (step 5) in 3 evaluations')
    """

    def __init__(self, metric: str = "loss", patience: int = 5, mode: str = "min", min_delta: float = 0.0) -> None:
        if isinstance(patience, bool) or not isinstance(patience, int) or patience < 1:
            raise ValueError(f"patience={patience!r}: expected an integer of at least 1, a number of evaluations")
        if mode not in ("min", "max"):
            raise ValueError(f"mode={mode!r}: expected 'min', where less is better, or 'max'")
        if not 0 <= min_delta < math.inf:
            raise ValueError(f"min_delta={min_delta}: expected a number of at least 0")
        self._metric = metric
        self._patience = patience
        self._sign = 1 if mode == "min" else -1
        self._min_delta = min_delta
        self._is_restored = False
        self._forget()

    def _forget(self) -> None:
        self._best: float | None = None
        self._best_step: int | None = None
        self._waited = 0
        self._step = -1  # of the last evaluation: a run that resumes at its end tells it once more

    def get_state(self) -> dict[str, Any]:
        """Returns what a run that resumes must know."""
        return {"best": self._best, "best_step": self._best_step, "waited": self._waited, "step": self._step}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on from what `get_state` returned."""
        self._best, self._best_step = state["best"], state["best_step"]
        self._waited, self._step = state["waited"], state["step"]
        self._is_restored = True

    def __call__(self, event: Event) -> Stop | None:
        """Judges the event if it is an evaluation, and asks to stop if it is time."""
        if isinstance(event, Started):
            if not self._is_restored:
                self._forget()
            self._is_restored = self._has_heard = False
            return self._answer()
        if isinstance(event, Evaluated):
            self._has_heard = True
            if event.step > self._step:
                self._judge(event)
            return self._answer()
        if isinstance(event, Finished) and event.reason == "done" and not self._has_heard:
            warnings.warn(
                "EarlyStopping heard no evaluation in this run: give it eval_data, and an eval_interval", stacklevel=2
            )
        return None

    def _judge(self, event: Evaluated) -> None:
        if self._metric not in event.metrics:
            known = ", ".join(event.metrics)
            raise ValueError(
                f"EarlyStopping(metric={self._metric!r}): evaluations have no such metric; there are: {known}"
            )
        self._step, value = event.step, float(event.metrics[self._metric])
        gain = math.inf if self._best is None else self._sign * (self._best - value)
        if math.isfinite(value) and gain > self._min_delta:
            self._best, self._best_step, self._waited = value, event.step, 0
        else:
            self._waited += 1

    def _answer(self) -> Stop | None:
        if self._waited < self._patience:
            return None
        if self._best is None:
            return Stop(f"no finite {self._metric} in {self._waited} evaluations")
        return Stop(
            f"no better {self._metric} than {self._best:.6g} (step {self._best_step}) in {self._waited} evaluations"
        )
