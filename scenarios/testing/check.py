"""A law that scenarios obey, and what it is to break one."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


class Violation(Exception):
    """A scenario breaks a law; the message says how that was seen."""


@dataclass(frozen=True)
class Check:
    """A law of scenarios, and how it is tried.

    Attributes:
      name: of the law.
      law: a sentence.
      remedy: what to do where it is broken.
      attempt: tries it on a `scenarios.testing.subject.Subject`; raises where it is broken, and returns what could not be
        tried, or None.

    >>> check = Check("patience", "Nothing happens.", "Wait.", lambda subject: None)
    >>> print(check)
    patience: Nothing happens.
    """

    name: str
    law: str
    remedy: str
    attempt: Callable[[Any], str | None] = field(repr=False)

    def __str__(self) -> str:
        return f"{self.name}: {self.law}"


def demand(problem: str | None, where: str = "") -> None:
    """Raises `Violation` if there is a problem."""
    if problem is not None:
        raise Violation(f"{where}{problem}")
