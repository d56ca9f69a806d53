"""One run of a case, watched: the values of all its variables after each of its programs."""

import contextlib
import functools
import io
from collections.abc import Callable, Sequence
from typing import Any

from scenarios.base.events import Event, Progressed, Skipped, Started
from scenarios.base.hooks import Hook
from scenarios.base.parts import made_state, named_parts
from scenarios.base.result import Result
from scenarios.base.run import Run
from scenarios.testing.case import Case
from scenarios.testing.states import State, state_of

Update = Callable[..., Any]

# What is the check's to choose, and not the case's.
_OURS: dict[str, Any] = {
    "save_dir": None,
    "save_interval": None,
    "non_finite": "stop",
    "time_limit": None,
    "progress": False,
}


class Attempt:
    """A run of a case.

    Args:
      case: what is run.
      hooks: hear its events, after the states are taken.
      around: returns the update to run in place of the scenario's.
      **settings: in place of the case's.

    Attributes:
      scenario: the object.
      parts: of the call, with the state that the scenario made for the run.
      states: by step, the values of all variables: at the start, and after each program.
    """

    def __init__(
        self,
        case: Case,
        hooks: Sequence[Hook] = (),
        around: Callable[[Any, Update], Update] | None = None,
        **settings: Any,
    ) -> None:
        self.scenario = case.scenario(**{**case.settings, **_OURS, **settings})
        if around is not None:
            update = self.scenario.update
            self.scenario.update = functools.wraps(update)(around(self.scenario, update))  # type: ignore[method-assign]
        state = made_state(self.scenario)
        named = named_parts(self.scenario.update, case.scenario.__name__, (), case.parts, state)
        self.parts = {**named, **state}
        self.states: dict[int, State] = {}
        heard = [self._watch, *hooks]
        self._run = Run(self.scenario, self.scenario.settings, self.parts, case.data, case.eval_data, heard, state)

    def start(self) -> Result:
        """Runs it; what a run says on the standard error stream is not shown."""
        with contextlib.redirect_stderr(io.StringIO()):
            return self._run()

    @property
    def run(self) -> Run:
        """The run itself."""
        return self._run

    def state(self) -> State:
        """Returns copies of all variables as they are."""
        return state_of(self.parts)

    @property
    def last(self) -> int:
        """The step of the last state."""
        return max(self.states)

    def _watch(self, event: Event) -> None:
        if isinstance(event, Started | Progressed | Skipped):
            self.states[event.step] = self.state()
