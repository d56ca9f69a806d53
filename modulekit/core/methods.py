"""What a method of a module is wrapped in: its name scope, a note for the running trace, and a chain for its errors."""

import functools
import inspect
from collections.abc import Callable
from types import FrameType
from typing import Any, TypeVar

from modulekit.core import chain, finite, names, overlay, precision, provenance
from modulekit.core.once import Once

T = TypeVar("T")
_UNSCOPED = "_no_name_scope"


def scoped_attribute(key: str, value: Any) -> Any:
    """Returns what stands in a module class for an attribute of its body: methods and properties run in the scope."""
    if isinstance(value, Once):
        return value if hasattr(value, _UNSCOPED) else Once(in_scope(value.function), _line_of_the_call)
    if isinstance(value, property):
        getter, setter, deleter = (f if f is None else in_scope(f) for f in (value.fget, value.fset, value.fdel))
        return property(getter, setter, deleter, value.__doc__)
    is_special = key.startswith("__") and key not in ("__call__", "__enter__", "__exit__")
    if inspect.isfunction(value) and not is_special:
        return in_scope(value)
    return value


def in_scope(method: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a method that runs inside its module's name scope."""
    if is_unscoped(method):
        return method

    is_call = getattr(method, "__name__", "") == "__call__"

    @functools.wraps(method)
    def run_in_scope(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self._modulekit.name is None:
            raise AttributeError(
                "The super constructor must be called before any other methods in your constructor: begin it with "
                "`super().__init__(name=name)`, or decorate the methods called before with `@mk.no_name_scope`"
            )
        stack = names.frames()
        stack.append(names.Frame(self._modulekit.scope, self))
        running = overlay.active()
        if running is not None:
            running.ran[id(self)] = self
        try:
            if not is_call:
                return method(self, *args, **kwargs)
            run = method if self._modulekit.policy is None else precision.under(self._modulekit.policy, method)
            return finite.run(run, self, args, kwargs) if finite.is_on() else run(self, *args, **kwargs)
        except chain.EXPLAINED as error:
            chain.explain(error, stack, args, kwargs)
            raise
        finally:
            stack.pop()

    return run_in_scope


def _line_of_the_call(module: Any) -> provenance.Origin:
    """Returns the user's line that called a running module, outside of the module's own methods."""

    def is_inside(frame: FrameType) -> bool:
        return frame.f_code is _RUN_IN_SCOPE and frame.f_locals.get("self") is module

    return provenance.line_around(is_inside)


def is_unscoped(method: Any) -> bool:
    """Returns whether `no_name_scope` has marked a method."""
    return hasattr(method, _UNSCOPED)


def no_name_scope(method: T) -> T:
    """Decorates a method (or a constructor) that is not to enter the module's name scope.

    Args:
      method: the method, or a property.

    Returns:
      The argument, marked.

    Source: Sonnet 2, `snt.no_name_scope`.

    >>> import modulekit as mk
    >>> class Net(mk.Module):
    ...     @no_name_scope
    ...     def scope(self):
    ...         return names.current_scope()
    >>> Net().scope()
    ''
    """
    setattr(method, _UNSCOPED, True)
    return method


_RUN_IN_SCOPE = in_scope(lambda self: None).__code__
