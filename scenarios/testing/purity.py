"""The law of purity: a run changes variables, and nothing else."""

from scenarios.testing import snapshot
from scenarios.testing.check import Check, demand
from scenarios.testing.subject import Subject


def _purity(subject: Subject) -> str | None:
    for what, before, after in zip(("the scenario", "its parts"), subject.before, subject.after, strict=True):
        demand(snapshot.change(before, after), f"a run has changed {what}: ")
    return None


PURITY = Check(
    "purity",
    "A run changes variables and nothing else: neither the scenario, nor what its methods see, nor attributes of parts.",
    "Keep the state of a run in variables of modules that state() returns. Python code in update runs when it is traced, so "
    "that what it counts or appends has nothing to do with steps.",
    _purity,
)
