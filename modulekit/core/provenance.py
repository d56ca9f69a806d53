"""Where in the user's code something happened."""

import os
import sys
from typing import NamedTuple

_LIBRARY = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_SKIPPED = (_LIBRARY + os.sep, os.sep + os.path.join("site-packages", "jax") + os.sep, "<frozen", "<string>")


class Origin(NamedTuple):
    """A place in a source file."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


def user_line() -> Origin:
    """Returns the innermost place on the call stack that is neither this library nor JAX."""
    frame = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if not any(part in file for part in _SKIPPED):
            return Origin(file, frame.f_lineno)
        if frame.f_back is None:
            break
        frame = frame.f_back
    return Origin(frame.f_code.co_filename, frame.f_lineno)
