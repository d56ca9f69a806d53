"""The chain of modules that an error has passed through, as notes behind its message.

A wrong shape shows deep inside a network, and what matters is the way there. Each module that was running adds a line:
its path, what it was called with, and what it was called with when it was built, and where. Traced or not, the same
modules run, so that the lines are the same under any transform.
"""

from collections.abc import Sequence
from typing import Any

from modulekit.core import collect, names
from modulekit.core.explain import LONGEST, shown, summarize
from modulekit.core.once import Built
from modulekit.core.variable import Variable

EXPLAINED = (TypeError, ValueError, ArithmeticError)


def explain(error: BaseException, stack: Sequence[names.Frame], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Adds the line of the innermost running module to an error that has just left one of its methods."""
    module = stack[-1].module
    callers = (frame.module for frame in reversed(stack[:-1]) if frame.module is not None)
    if next(callers, None) is module:
        return  # a method of the same module called this one, and will be passed through as well
    error.add_note(f"  in {place(module, stack)}: called with {call_text(args, kwargs)}{built_text(module)}")


def place(module: Any, stack: Sequence[names.Frame]) -> str:
    """Returns the path of a module from the outermost running one around it that holds it, and what it is.

    Such as `layers[1] = Linear(output_size=10)`.
    """
    text = shown(module, repr)
    for frame in stack:
        if frame.module is module:
            break
        path = None if frame.module is None else frame.module.path_of(module)
        if path is not None:
            return f"{path} = {text}"
    return text


def text_of(value: Any) -> str:
    """Returns a short text for any value."""
    return shown(value, summarize, LONGEST)


def call_text(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """Returns the arguments of a call in short, such as `float32[32,784], is_training=True`."""
    parts = [text_of(arg) for arg in args] + [f"{name}={text_of(value)}" for name, value in kwargs.items()]
    return ", ".join(parts) or "nothing"


def built_text(module: Any) -> str:
    """Returns where a module was first called, and with what: `; built at net.py:12, for float32[32,784]`."""
    first: Built | None = next(iter(module._once_done.values()), None)
    if first is None:
        own = (leaf for value in vars(module).values() for _, leaf in collect.leaves(value))
        made = next((leaf for leaf in own if isinstance(leaf, Variable)), None)
        return "" if made is None else f"; built at {made.origin}"
    specs = first.arguments
    called_with = "" if specs is None or specs == ((), {}) else f", for {call_text(*specs)}"
    return f"; built at {first.origin}{called_with}"
