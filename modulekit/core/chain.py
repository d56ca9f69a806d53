"""The chain of modules that an error has passed through, as notes behind its message.

A wrong shape shows deep inside a network, and what matters is the way there. Each module that was running adds a line:
its path, what it was called with, and what it was called with when it was built, and where. Traced or not, the same
modules run, so that the lines are the same under any transform.
"""

from collections.abc import Sequence
from typing import Any

from modulekit.core import names
from modulekit.core.explain import shortened, summarize
from modulekit.core.once import Built

EXPLAINED = (TypeError, ValueError, ArithmeticError)


def explain(error: BaseException, stack: Sequence[names.Frame], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Adds the line of the innermost running module to an error that has just left one of its methods."""
    module = stack[-1].module
    if len(stack) > 1 and stack[-2].module is module:
        return  # a method of the same module called this one, and will be passed through as well
    error.add_note(f"  in {place(module, stack)}: called with {call_text(args, kwargs)}{built_text(module)}")


def place(module: Any, stack: Sequence[names.Frame]) -> str:
    """Returns the path of a module from the outermost running one, and what it is: `layers[1] = Linear(output_size=10)`."""
    root = next(frame.module for frame in stack if frame.module is not None)
    path = None if root is module else root.path_of(module)
    text = shortened(repr(module))
    return text if path is None else f"{path} = {text}"


def call_text(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """Returns the arguments of a call in short, such as `float32[32,784], is_training=True`."""
    parts = [summarize(arg) for arg in args] + [f"{name}={summarize(value)}" for name, value in kwargs.items()]
    return ", ".join(parts) or "nothing"


def built_text(module: Any) -> str:
    """Returns where a module was first called, and with what: `; built at net.py:12, for float32[32,784]`."""
    first: Built | None = next(iter(module._once_done.values()), None)
    if first is None:
        made = [value for value in vars(module).values() if hasattr(value, "origin")]
        return f"; built at {made[0].origin}" if made else ""
    specs = first.arguments
    called_with = "" if specs is None or specs == ((), {}) else f", for {call_text(*specs)}"
    return f"; built at {first.origin}{called_with}"
