"""What somebody wants of a run instead of training: asked before its program starts, answered where it calls the scenario.

A run's directory says how its program was started, and nothing else can make the same models and data again. So a request
is left here, the program is started once more, and the call whose `save_dir` is the request's directory answers it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Request:
    """Something to do with a run.

    Attributes:
      directory: the run's, absolute.
      answer: does it.
    """

    directory: Path
    answer: Callable[[Any], Any]


class Answered(BaseException):
    """Ends the program that called the scenario, once the request is answered; no error, and no `except` should stop it.

    Args:
      answer: what was found.
    """

    def __init__(self, answer: Any) -> None:
        super().__init__("a request was answered")
        self.answer = answer


_waiting: list[Request] = []


def ask(directory: Path, answer: Callable[[Any], Any]) -> None:
    """Leaves a request for the run with this directory."""
    _waiting[:] = [Request(directory.resolve(), answer)]


def withdraw() -> None:
    """Takes back what was asked."""
    _waiting.clear()


def respond(directory: Path | None, run: Any) -> None:
    """Answers the request for this run, if there is one.

    Raises:
      Answered: there was one.
    """
    for request in _waiting:
        if directory is not None and directory.resolve() == request.directory:
            _waiting.clear()
            raise Answered(request.answer(run))
