"""A run that has not begun: a scenario, its settings and all that it is called with, made anew for each trial of it."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from scenarios.base.hooks import Hook
from scenarios.base.parts import variables_by_path
from scenarios.base.result import Result
from scenarios.base.scenario import Scenario


@dataclasses.dataclass(frozen=True)
class Case:
    """A fresh run that has not begun.

    Attributes:
      scenario: the class.
      settings: what its constructor takes: `steps`, at least 8 of them, and whatever else is not to be the default.
      parts: by name, what a call of it takes: new models, optimizers and losses.
      data: the examples.
      eval_data: the examples of evaluations, if there are any.

    >>> import modulekit as mk, scenarios
    >>> x = np.ones([4, 1], np.float32)
    >>> parts = {"model": mk.Linear(1), "optimizer": mk.optimizers.SGD(0.1), "loss": mk.losses.squared_error}
    >>> case = Case(scenarios.Supervised, {"steps": 3, "batch_size": 4, "progress": False}, parts, (x, x))
    >>> case.run().step, list(case.state())
    (3, ['model.b', 'model.w'])
    """

    scenario: type[Scenario]
    settings: Mapping[str, Any]
    parts: Mapping[str, Any]
    data: Any
    eval_data: Any = None

    def run(self, hooks: Iterable[Hook] = (), **settings: Any) -> Result:
        """Runs with other settings than its own where given."""
        scenario = self.scenario(**{**self.settings, **settings})
        return scenario(data=self.data, eval_data=self.eval_data, hooks=hooks, **self.parts)

    def state(self) -> dict[str, np.ndarray[Any, Any]]:
        """Returns copies of all that the parts hold, by path: weights, slots, counters."""
        apart = [
            variables_by_path({name: part}) for name, part in self.parts.items()
        ]  # shared ones under all parts' paths
        return {path: variable.numpy() for variables in apart for path, variable in variables.items()}

    def replace(self, **changes: Any) -> "Case":
        """Returns a copy with other data, parts or settings."""
        return dataclasses.replace(self, **changes)
