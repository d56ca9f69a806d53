"""What the checks look at: a scenario, through fresh cases of it and one run without a break that all others must equal."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import modulekit as mk
from scenarios.base.hooks import Hook
from scenarios.base.result import Result
from scenarios.base.saving import open_store
from scenarios.base.settings import Settings
from scenarios.testing import snapshot
from scenarios.testing.attempt import Attempt
from scenarios.testing.case import Case
from scenarios.testing.check import demand
from scenarios.testing.elsewhere import KilledProcess
from scenarios.testing.states import State, difference, result_difference

SEED = 11  # of the first weights
_FEWEST = 8  # steps: with less there is nothing between the beginning and the end


class Subject:
    """A scenario under test.

    Args:
      make: returns a fresh case; all of them begin with the same first weights.
      folder: for the runs' directories.
      elsewhere: whether part of it may run in another process.

    Attributes:
      name: of the scenario.
      steps: of the case.
      reference: the run without a break; its states are those after all steps.
      result: what the reference returned.
      before: what the scenario and the parts held before it beside variables.
      after: the same, after it.

    Raises:
      TypeError: `make` returns no case.
      ValueError: the case has too few steps.
    """

    def __init__(self, make: Callable[[], Case], folder: Path, elsewhere: bool = True) -> None:
        self._make, self._folder, self._elsewhere, self._directories = make, folder, elsewhere, 0
        case = self.fresh()
        self.name = case.scenario.__name__
        self.steps = int(case.settings.get("steps", 0))
        if self.steps < _FEWEST:
            raise ValueError(
                f"the case of {self.name} has steps={self.steps}: give it at least {_FEWEST}, so that it can be interrupted"
            )

    def fresh(self) -> Case:
        """Returns a case that has not run."""
        mk.seed(SEED)
        case = self._make()
        if not isinstance(case, Case):
            raise TypeError(f"expected a scenarios.testing.Case, and got {case!r}")
        return case

    def built(self) -> Case:
        """Returns a case whose variables exist, and have their first values."""
        case = self.fresh()
        Attempt(case.replace(eval_data=None), steps=0).start()
        return case

    def attempt(self, hooks: Sequence[Hook] = (), **options: Any) -> Attempt:
        """Returns a run of a fresh case, to be started; arguments are those of `Attempt`."""
        return Attempt(self.fresh(), hooks, **options)

    def directory(self) -> Path:
        """Returns a path of its own for a run."""
        self._directories += 1
        return self._folder / f"run_{self._directories}"

    def run_reference(self) -> None:
        """Runs without a break, one step at a time."""
        case = self.built()
        self.reference = Attempt(case, steps_per_call=1)
        self.before = snapshot.of_scenario(self.reference.scenario), snapshot.of_parts(case.parts)
        self.result = self.reference.start()
        self.after = snapshot.of_scenario(self.reference.scenario), snapshot.of_parts(case.parts)

    @functools.cached_property
    def killed(self) -> KilledProcess:
        """The same run in another process, which is killed."""
        return KilledProcess(self.built(), self.directory(), max(1, self.steps // 4), self._elsewhere)

    def demand_state(self, step: int, found: State, where: str) -> None:
        """Raises `Violation` unless a state is bitwise that of the reference after `step` updates."""
        expected = self.reference.states.get(step)
        if expected is None:
            demand(f"there is no update {step} in a run of {self.steps}", where)
        else:
            demand(difference(expected, found), f"{where}after update {step} ")

    def demand_states(self, attempt: Attempt, where: str) -> None:
        """Raises `Violation` unless a run went through states of the reference."""
        for step, state in sorted(attempt.states.items()):
            self.demand_state(step, state, where)

    def demand_same(self, attempt: Attempt, result: Result, where: str) -> None:
        """Raises `Violation` unless a run went through states of the reference, and ended as it did."""
        self.demand_states(attempt, where)
        demand(difference(self.reference.state(), attempt.state()), f"{where}at the end ")
        demand(result_difference(self.result, result), where)

    def demand_same_end(self, directory: Path, where: str, **settings: Any) -> None:
        """Raises `Violation` unless the run in a directory goes on with fresh parts to the end of the reference."""
        attempt = self.attempt(save_dir=directory, **settings)
        self.demand_same(attempt, attempt.start(), where)

    def newest(self, directory: Path, settings: Settings) -> tuple[int, State]:
        """Returns the step and the arrays of the newest state in a run's directory, or raises `Violation`."""
        store = open_store(directory, settings)
        try:
            step = store.latest()
            demand("no state was saved" if step is None else None)
            return int(step or 0), store.restore(int(step or 0))[0]
        finally:
            store.close()
