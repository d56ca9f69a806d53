"""Keeping some variables of a module as they are, by path pattern.

A frozen variable gets no gradient, no decay and no new moments, and what model code writes to it, such as the statistics
of a normalization, is dropped. Its optimizer slots stay for the thaw. Random streams go on: to stop one would repeat
its numbers.
"""

from typing import Any

from modulekit.core import patterns, ties
from modulekit.core.streams import stream_of
from modulekit.core.variable import Variable


def chosen(module: Any, pattern: str, module_type: type) -> dict[str, Variable]:
    """Returns the variables of a module by first path, for which one of the paths fits a pattern.

    Raises:
      ValueError: none does; the message lists the paths.
    """
    paths = ties.all_paths(module, module_type)
    fitting = {places[0]: v for v, places in paths.items() if any(patterns.matches(pattern, p) for p in places)}
    patterns.check_some(pattern, fitting, (place for places in paths.values() for place in places), repr(module))
    return fitting


def freeze(module: Any, pattern: str, module_type: type) -> tuple[str, ...]:
    """Freezes the variables of a module that fit a pattern; returns their paths."""
    fitting = {path: v for path, v in chosen(module, pattern, module_type).items() if stream_of(v) is None}
    for variable in fitting.values():
        variable.freeze()
    return tuple(fitting)


def thaw(module: Any, pattern: str, module_type: type) -> tuple[str, ...]:
    """Thaws the variables of a module that fit a pattern; returns their paths."""
    fitting = chosen(module, pattern, module_type)
    for variable in fitting.values():
        variable.thaw()
    return tuple(fitting)
