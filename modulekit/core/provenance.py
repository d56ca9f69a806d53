"""Where in the user's code something happened, and in which order."""

import contextlib
import functools
import itertools
import os
import sys
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any, NamedTuple

import jax

_LIBRARY = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_JAX = os.path.dirname(os.path.abspath(jax.__file__))
_skipped = [_LIBRARY + os.sep, _JAX + os.sep, contextlib.__file__, "<frozen", "<string>"]


class Origin(NamedTuple):
    """A place in a source file."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


def skip(directory: str) -> None:
    """Counts the files in a directory as this library's, and no user's."""
    _skipped.append(os.path.abspath(directory) + os.sep)
    _is_foreign.cache_clear()


def user_line() -> Origin:
    """Returns the innermost place on the call stack that is neither this library nor JAX."""
    return _first_user_line(sys._getframe(1))


def line_around(is_inside: Callable[[FrameType], bool]) -> Origin:
    """Returns the innermost user's line outside of the outermost frame for which `is_inside` holds."""
    start: FrameType = sys._getframe(1)
    frame: FrameType | None = start
    while frame is not None:
        if is_inside(frame) and frame.f_back is not None:
            start = frame.f_back
        frame = frame.f_back
    return _first_user_line(start)


def _first_user_line(frame: FrameType) -> Origin:
    while True:
        file = frame.f_code.co_filename
        if not _is_foreign(file):
            return Origin(file, frame.f_lineno)
        if frame.f_back is None:
            break
        frame = frame.f_back
    return Origin(frame.f_code.co_filename, frame.f_lineno)


@functools.cache
def _is_foreign(file: str) -> bool:
    return file.startswith(tuple(_skipped))


_clock = itertools.count(1)


def now() -> int:
    """Returns a number that is larger each time, to tell which of two writes was later."""
    return next(_clock)


class Tally:
    """How often a compiled program has written its variables, when last, and at which lines.

    A program counts for all of its variables at once, so that a step costs the same for one variable as for thousands.
    """

    __slots__ = ("count", "time", "writers")

    def __init__(self) -> None:
        self.count = 0
        self.time = 0
        self.writers: Mapping[Any, Origin] = {}

    def add(self) -> None:
        """Counts one run of the program."""
        self.count += 1
        self.time = next(_clock)
