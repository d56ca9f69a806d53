"""Laws of repetition: the same run is the same, here, elsewhere, and however it is cut into programs."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from scenarios.testing.check import Check
from scenarios.testing.subject import Subject

_COUNTS = (7, 50)  # steps per program; the reference has 1


@contextmanager
def _other_generators() -> Iterator[None]:
    """Context in which the global random generators of Python and NumPy stand elsewhere."""
    before = random.getstate(), np.random.get_state()
    random.seed(1729)
    np.random.seed(1729)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])


def _determinism(subject: Subject) -> str | None:
    attempt = subject.attempt(steps_per_call=1)
    with _other_generators():
        result = attempt.start()
    subject.demand_same(attempt, result, "when it is run again, ")
    untried = subject.killed.wait()
    if untried is None:
        step, state = subject.newest(subject.killed.directory, subject.reference.scenario.settings)
        subject.demand_state(step, state, "in another process, ")
    return untried


def _chunk_invariance(subject: Subject) -> str | None:
    for count in _COUNTS:
        attempt = subject.attempt(steps_per_call=count)
        subject.demand_same(attempt, attempt.start(), f"with {count} steps in a program, ")
    return None


DETERMINISM = Check(
    "determinism",
    "The same run again, here or in another process, ends with the same bits.",
    "Draw random numbers with mk.next_key() alone, read no clock, no global generator, no hash of a text and no order of a "
    "set in what a program computes; and see that the case is made anew each time, with seeds for what it draws.",
    _determinism,
)
CHUNK_INVARIANCE = Check(
    "chunk_invariance",
    "How many steps run in one program changes no bit.",
    "Let everything that an update computes be a function of the settings, the parts and self.step: Python code in update "
    "runs when it is traced, and not at each step; indices(size, step, count) must give each step its own examples, "
    "whatever count is.",
    _chunk_invariance,
)
