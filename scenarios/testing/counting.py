"""The law of counting: a run of n steps is n updates, and each knows its number."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

import modulekit as mk
from scenarios.testing.check import Check, Violation
from scenarios.testing.subject import Subject

_SEEN = "step seen by check_scenario"


def _step_count(subject: Subject) -> str | None:
    count = mk.Variable(jnp.zeros([], jnp.int32), trainable=False, name="updates")

    def counting(scenario: Any, update: Callable[..., Any]) -> Callable[..., Any]:
        def counted(batch: Any, **parts: Any) -> Any:
            count.assign_add(1)
            return {**update(batch, **parts), _SEEN: scenario.step}

        return counted

    attempt = subject.attempt(around=counting, steps_per_call=7, log_interval=1)
    result = attempt.start()
    if result.step != subject.steps:
        raise Violation(f"the run was to have {subject.steps} steps, and had {result.step}")
    if int(count) != subject.steps:
        raise Violation(f"update ran {int(count)} times in a run of {subject.steps} steps")
    seen = result.column(_SEEN)[1]
    wrong = [(expected, found) for expected, found in enumerate(seen) if expected != found]
    if wrong:
        raise Violation(f"self.step is {wrong[0][1]:g} in the update after {wrong[0][0]} others")
    return None


STEP_COUNT = Check(
    "step_count",
    "A run of n steps calls update n times, and self.step counts the updates before.",
    "Pass steps on to super().__init__ as they are, leave `step` and the call to the base class, and take what an update "
    "needs beyond one batch by batches_per_update or indices.",
    _step_count,
)
