"""A goal: a hook that ends a run."""

from scenarios import Stop, events


class Goal:
    """Ends a run at the first evaluation that is good enough.

    Args:
      metric: of the evaluation.
      value: which it is to reach from above.
    """

    def __init__(self, metric: str, value: float) -> None:
        self.metric, self.value = metric, value

    def __call__(self, event: events.Event) -> Stop | None:
        if isinstance(event, events.Evaluated) and event.metrics[self.metric] <= self.value:
            return Stop(f"{self.metric} has reached {self.value:g}")
        return None
