"""The law of values that are not finite: one bad example stops the run before the update that would have taken it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from modulekit.data import Arrays
from scenarios.base.nonfinite import NonFiniteError
from scenarios.testing.attempt import Attempt
from scenarios.testing.check import Check, Violation, demand
from scenarios.testing.states import difference
from scenarios.testing.subject import Subject


def _non_finite(subject: Subject) -> str | None:
    case = subject.fresh()
    examples = Attempt(case).run.examples
    if not isinstance(examples, Arrays):
        return "a bad example, since the data is a stream"
    if not any(jnp.issubdtype(leaf.dtype, jnp.inexact) for _, leaf in examples.leaves):
        return "a bad example, since the data has no floating-point numbers"
    sample, step = _latest(subject, case, examples)
    poisoned = jax.tree.map(lambda leaf: _poisoned(leaf, sample), examples.arrays)
    attempt = Attempt(case.replace(data=poisoned), steps_per_call=7)
    try:
        attempt.start()
    except NonFiniteError as error:
        if error.step != step:
            raise Violation(
                f"example {sample}, first of update {step}, is nan, and update {error.step} failed"
            ) from error
    except ValueError:  # it looks at its data before anything runs, and refuses
        demand(None if not attempt.states else f"example {sample} is nan, and the run failed in the middle")
        return None
    else:
        raise Violation(f"example {sample}, first of update {step}, is nan, and the run went on to its end")
    subject.demand_state(step - 1, attempt.state(), f"update {step} was refused, and ")
    expected = {path: np.zeros(array.shape, bool) for path, array in attempt.state().items()}
    bad = {path: ~np.isfinite(array) if _is_float(array) else expected[path] for path, array in attempt.state().items()}
    demand(difference(expected, bad), f"update {step} was refused, and not all is finite: ")
    return None


def _latest(subject: Subject, case: Any, examples: Arrays) -> tuple[int, int]:
    """Returns the example that comes last for the first time, and the number of the update that takes it."""
    run = Attempt(case).run
    first: dict[int, int] = {}
    for step in range(subject.steps):
        for sample in run.choose(step, 1)[0].reshape(-1):
            first.setdefault(int(sample), step + 1)
    sample = max(first, key=lambda key: first[key])
    return sample, first[sample]


def _poisoned(leaf: Any, sample: int) -> Any:
    if not jnp.issubdtype(leaf.dtype, jnp.inexact):
        return leaf
    copy = np.array(leaf)
    copy[sample] = np.nan
    return copy


def _is_float(array: Any) -> bool:
    return bool(jnp.issubdtype(array.dtype, jnp.inexact))


NON_FINITE = Check(
    "non_finite",
    "A bad example stops the run at the first update that takes it, and leaves the variables of the update before.",
    "Return the metrics as they are: replace no value that is not finite, neither in what update returns nor in what it "
    "assigns. Who wants bad examples left out says so with non_finite='skip'.",
    _non_finite,
)
