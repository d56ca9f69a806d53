"""What the conformance kit found, law by law."""

from collections.abc import Sequence
from dataclasses import dataclass

from scenarios.testing.check import Check


@dataclass(frozen=True)
class Finding:
    """The outcome of one check.

    Attributes:
      check: the law.
      passed: whether the scenario obeys it.
      message: how it was seen to be broken; of a law that is obeyed, what could not be tried, or nothing.
      seconds: that the check took.

    >>> check = Check("patience", "Nothing happens.", "Wait.", lambda subject: None)
    >>> print(Finding(check, False, "model.w has changed"))
    FAILED patience: Nothing happens. But model.w has changed. What to do: Wait.
    """

    check: Check
    passed: bool
    message: str = ""
    seconds: float = 0.0

    def __str__(self) -> str:
        if self.passed:
            note = f" (not tried: {self.message})" if self.message else ""
            return f"passed {self.check}{note}"
        return f"FAILED {self.check} But {self.message}. What to do: {self.check.remedy}"


@dataclass(frozen=True)
class ConformanceReport:
    """Which laws a scenario obeys.

    Attributes:
      scenario: its name.
      findings: one of each check.

    >>> check = Check("patience", "Nothing happens.", "Wait.", lambda subject: None)
    >>> report = ConformanceReport("Fit", [Finding(check, True)])
    >>> report.passed
    True
    >>> print(report)
    Fit obeys 1 of 1 laws of scenarios
    passed patience: Nothing happens.
    """

    scenario: str
    findings: Sequence[Finding]

    @property
    def failed(self) -> list[str]:
        """The names of the laws that are broken."""
        return [finding.check.name for finding in self.findings if not finding.passed]

    @property
    def passed(self) -> bool:
        """Whether all laws are obeyed."""
        return not self.failed

    def __str__(self) -> str:
        obeyed = len(self.findings) - len(self.failed)
        head = f"{self.scenario} obeys {obeyed} of {len(self.findings)} laws of scenarios"
        return "\n".join([head, *map(str, self.findings)])


class ConformanceError(AssertionError):
    """A scenario breaks laws; the message lists them with what was seen and what to do.

    Args:
      report: all findings, as `error.report`.

    >>> check = Check("patience", "Nothing happens.", "Wait.", lambda subject: None)
    >>> raise ConformanceError(ConformanceReport("Fit", [Finding(check, False, "model.w has changed")]))
    Traceback (most recent call last):
        ...
    scenarios.testing.report.ConformanceError: Fit breaks 1 of 1 laws of scenarios:
    - patience: Nothing happens. But model.w has changed. What to do: Wait.
    """

    def __init__(self, report: ConformanceReport) -> None:
        broken = [str(finding).removeprefix("FAILED ") for finding in report.findings if not finding.passed]
        head = f"{report.scenario} breaks {len(broken)} of {len(report.findings)} laws of scenarios:"
        super().__init__("\n- ".join([head, *broken]))
        self.report = report
