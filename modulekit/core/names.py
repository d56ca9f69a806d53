"""Name scopes: which module is running, and which name a new variable gets.

Each thread has a stack. A module's method pushes the module and its absolute scope name while it runs, so a variable
made inside is called `mlp/linear_0/w`, an initializer knows in which scope it draws, and an error can say which module
was at work.
"""

import contextlib
import re
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

_WORD_START = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<!^)(?=[A-Z][a-z])")
_VALID = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class Frame(NamedTuple):
    """One entry of the stack: an absolute scope name and the module that runs in it, if any."""

    scope: str
    module: Any


class _Stack(threading.local):
    def __init__(self) -> None:
        self.frames: list[Frame] = []


_stack = _Stack()


def frames() -> list[Frame]:
    """Returns this thread's stack itself, outermost first."""
    return _stack.frames


def current_scope() -> str:
    """Returns the absolute name of the innermost scope, `""` outside all scopes."""
    stack = _stack.frames
    return stack[-1].scope if stack else ""


def qualified(name: str) -> str:
    """Returns `name` under the current scope, as in `mlp/linear_0/w`."""
    scope = current_scope()
    return f"{scope}/{name}" if scope else name


@contextlib.contextmanager
def name_scope(name: str) -> Iterator[str]:
    """Puts the variables and modules made inside under `name`.

    Args:
      name: one or more words, separated by `/`.

    Yields:
      The absolute scope name.

    Source: TensorFlow 2, `tf.name_scope`.

    >>> with name_scope("tower"):
    ...     qualified("w")
    'tower/w'
    """
    full = qualified(name)
    _stack.frames.append(Frame(full, None))
    try:
        yield full
    finally:
        _stack.frames.pop()


@contextlib.contextmanager
def absolute(scope: str) -> Iterator[None]:
    """Puts what is made inside under `scope`, whatever stands around."""
    _stack.frames.append(Frame(scope, None))
    try:
        yield
    finally:
        _stack.frames.pop()


def snake_case(class_name: str) -> str:
    """Returns Sonnet's default name for a class: `Conv2D` -> `conv2_d`, `MLP` -> `mlp`, `RMSProp` -> `rms_prop`.

    >>> snake_case("VectorQuantizerEMA")
    'vector_quantizer_ema'
    """
    return _WORD_START.sub("_", class_name).lower()


def check_name(name: str) -> str:
    """Returns `name`; raises `ValueError` unless it can stand in a variable's name, `TypeError` where it is no string."""
    if not isinstance(name, str):
        raise TypeError(f"{name!r} is not a valid module name: expected a string, got {type(name).__name__}")
    if not _VALID.fullmatch(name):
        raise ValueError(f"{name!r} is not a valid module name: use a letter or '_', then letters, digits or '_'")
    return name
