"""A module: an ordinary object that holds variables and other modules, and is called like a function.

Nothing has to be registered. `vars(module)` is the truth: collection walks attributes, lists, tuples and dicts. The
metaclass does what a subclass would otherwise have to remember: it runs the constructor inside the module's name scope,
keeps the arguments for `repr`, and has every method run inside the scope.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

from modulekit.core import collect, describe, names, overlay, pickling
from modulekit.core.explain import ExplainedType, summarize
from modulekit.core.once import Once
from modulekit.core.variable import Variable, changes

T = TypeVar("T")
_UNSCOPED = "_no_name_scope"
_EMPTY_ALLOWED = "_allow_empty_variables"

pickling.register()  # what a module holds must be picklable, activations included


class _Hidden:
    """What a module keeps out of `vars`: its name, its repr, what has run once, and whether a program depends on it."""

    __slots__ = ("name", "once_done", "scope", "text", "watched")

    def __init__(self) -> None:
        self.name: str | None = None
        self.scope = ""
        self.text = ""
        self.once_done: set[str] = set()
        self.watched = False

    def __getstate__(self) -> tuple[Any, ...]:
        return (self.name, self.scope, self.text, sorted(self.once_done))

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.name, self.scope, self.text, done = state
        self.once_done, self.watched = set(done), False


class ModuleType(ExplainedType):
    """Constructs modules, and wraps the methods of each new module class."""

    def __init__(cls, name: str, bases: tuple[type, ...], attributes: dict[str, Any], **kwargs: Any) -> None:
        super().__init__(name, bases, attributes, **kwargs)
        if not any(isinstance(base, ModuleType) for base in bases):
            return  # Module itself: its own machinery enters no scope
        for key, value in attributes.items():
            wrapped = _scoped_attribute(key, value)
            if wrapped is not value:
                setattr(cls, key, wrapped)

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        """Makes a module: runs its constructor inside its name scope, and keeps the arguments for `repr`."""
        module: Module = cast(Any, cls).__new__(cls, *args, **kwargs)
        stack = names.frames()
        depth = len(stack)
        try:
            if dataclasses.is_dataclass(cls):
                Module.__init__(module)
            cast(Any, type(module)).__init__(module, *args, **kwargs)
        finally:
            del stack[depth:]
        if module._hidden.name is None:
            raise ValueError(
                f"Constructing a modulekit.Module without calling the super constructor is not supported: begin "
                f"{cls.__name__}.__init__ with `super().__init__(name=name)`"
            )
        module._hidden.text = _repr_text(cls, args, kwargs)
        return module


def _scoped_attribute(key: str, value: Any) -> Any:
    if isinstance(value, Once):
        return value if hasattr(value, _UNSCOPED) else Once(in_scope(value.function))
    if isinstance(value, property):
        getter, setter, deleter = (f if f is None else in_scope(f) for f in (value.fget, value.fset, value.fdel))
        return property(getter, setter, deleter, value.__doc__)
    is_special = key.startswith("__") and key not in ("__call__", "__enter__", "__exit__")
    if inspect.isfunction(value) and not is_special and not hasattr(value, _UNSCOPED):
        return in_scope(value)
    return value


def in_scope(method: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a method that runs inside its module's name scope."""
    if hasattr(method, _UNSCOPED):
        return method

    @functools.wraps(method)
    def run_in_scope(self: Any, *args: Any, **kwargs: Any) -> Any:
        stack = names.frames()
        stack.append(names.Frame(self._hidden.scope, self))
        running = overlay.active()
        if running is not None:
            running.ran[id(self)] = self
        try:
            return method(self, *args, **kwargs)
        finally:
            stack.pop()

    return run_in_scope


def _repr_text(cls: type, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """Returns `Linear(output_size=5)`: the arguments that differ from their defaults."""
    try:
        signature = inspect.signature(cls.__init__)  # type: ignore[misc]
        bound = signature.bind(None, *args, **kwargs)
    except (TypeError, ValueError):
        return f"{cls.__name__}(...)"
    parts: list[str] = []
    for index, (name, value) in enumerate(bound.arguments.items()):
        parameter = signature.parameters[name]
        if index == 0 or value is parameter.default:
            continue
        if parameter.kind is parameter.VAR_POSITIONAL:
            parts.extend(summarize(item) for item in value)
        elif parameter.kind is parameter.VAR_KEYWORD:
            parts.extend(f"{key}={summarize(item)}" for key, item in value.items())
        elif isinstance(parameter.default, bool | int | float | str | tuple) and value == parameter.default:
            continue
        else:
            parts.append(f"{name}={summarize(value)}")
    return f"{cls.__name__}({', '.join(parts)})"


class Module(metaclass=ModuleType):
    """Base class of everything that holds variables: layers, networks, optimizers, metrics.

    Subclasses store choices in the constructor, make variables in a method under `@mk.once`, and compute in `__call__`.

    Args:
      name: a word; the class name in snake case if None. It stands in the names of the variables.

    >>> import jax.numpy as jnp
    >>> class Scale(Module):
    ...     def __call__(self, x):
    ...         if not hasattr(self, "factor"):
    ...             self.factor = Variable(2.0, name="factor")
    ...         return x * self.factor
    >>> scale = Scale()
    >>> float(scale(jnp.ones([])))
    2.0
    >>> scale.variables
    (Variable('scale/factor', float32[]),)
    """

    __slots__ = ("__dict__", "__weakref__", "_hidden")
    _jax_remedy = "a modulekit Module: close over it, and use mk.jit, mk.grad, ... or mk.functionalize"
    _hidden: _Hidden

    def __new__(cls, *args: Any, **kwargs: Any) -> "Module":
        """Makes the object; what is hidden is there before any constructor runs."""
        module = super().__new__(cls)
        object.__setattr__(module, "_hidden", _Hidden())
        return module

    def __init__(self, name: str | None = None) -> None:
        hidden = self._hidden
        if hidden.name is not None and name is None:
            return  # a second visit, as where a dataclass calls it
        is_first = hidden.name is None
        hidden.name = names.check_name(names.snake_case(type(self).__name__) if name is None else name)
        hidden.scope = names.qualified(hidden.name) if is_first else hidden.scope
        if not hasattr(type(self).__init__, _UNSCOPED):
            names.frames().append(names.Frame(hidden.scope, self))

    @property
    def name(self) -> str:
        """The module's name, the last part of its scope."""
        return str(self._hidden.name)

    @property
    def scope_name(self) -> str:
        """The absolute name scope, such as `mlp/linear_0`."""
        return self._hidden.scope

    def name_scope(self) -> Any:
        """Returns a context in which new variables are named as if the module had made them."""
        return _ModuleScope(self)

    # Collection.

    @property
    def variables(self) -> tuple[Variable, ...]:
        """All variables of the module and its submodules, each once, in Sonnet's order.

        Raises:
          ValueError: there are none, most likely because the module has not been called yet.
        """
        return self._collected("variables", lambda _: True)

    @property
    def trainable_variables(self) -> tuple[Variable, ...]:
        """The variables that a gradient step changes. Raises `ValueError` where there are no variables at all."""
        return self._collected("trainable_variables", lambda variable: variable.trainable)

    @property
    def non_trainable_variables(self) -> tuple[Variable, ...]:
        """The other variables: statistics, counters. Raises `ValueError` where there are no variables at all."""
        return self._collected("non_trainable_variables", lambda variable: not variable.trainable)

    @property
    def submodules(self) -> tuple["Module", ...]:
        """All modules inside this one, each once, itself excluded."""
        return tuple(module for _, module in collect.walk(self, Module, Module))

    def paths(self) -> dict[str, Variable]:
        """Returns the variables by attribute path, such as `layers[0].w`; a shared one under its first path."""
        return {collect.render(path): variable for path, variable in collect.walk(self, Variable, Module)}

    def path_of(self, part: "Variable | Module") -> str | None:
        """Returns the attribute path of a variable or submodule inside this module, None if it is not there."""
        for path, leaf in collect.walk(self, type(part), Module):
            if leaf is part:
                return collect.render(path)
        return None

    def summary(self) -> str:
        """Returns a table of the variables by path, a shared one once, and the totals.

        >>> class Scale(Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.factor = Variable([1.0, 2.0], name="factor")
        >>> print(Scale().summary())
        Scale()
        | Path   | Name         | Spec   | Trainable | Size |
        |--------+--------------+--------+-----------+------|
        | factor | scale/factor | f32[2] | True      | 2    |
        2 parameters in 1 variable, 2 of them trainable, 8 bytes
        """
        return describe.summary(self)

    def _collected(self, listed: str, wanted: Callable[[Variable], bool]) -> tuple[Variable, ...]:
        everything = [variable for _, variable in collect.walk(self, Variable, Module)]
        if not everything and not getattr(self, _EMPTY_ALLOWED, False):
            raise ValueError(_no_variables(self, listed))
        return tuple(variable for variable in everything if wanted(variable))

    # Attributes. A compiled function that ran this module notices when one changes.

    def __setattr__(self, name: str, value: Any) -> None:
        if self._hidden.watched:
            changes.count += 1
        object.__setattr__(self, name, value)

    def __delattr__(self, name: str) -> None:
        changes.count += 1
        object.__delattr__(self, name)

    @property
    def _once_done(self) -> set[str]:
        return self._hidden.once_done

    # Copies.

    def __getstate__(self) -> tuple[dict[str, Any], _Hidden]:
        return dict(vars(self)), self._hidden

    def __setstate__(self, state: tuple[dict[str, Any], _Hidden]) -> None:
        attributes, hidden = state
        vars(self).update(attributes)
        object.__setattr__(self, "_hidden", hidden)

    def __repr__(self) -> str:
        return self._hidden.text or f"{type(self).__name__}(...)"


class _ModuleScope:
    def __init__(self, module: Module) -> None:
        self._frame = names.Frame(module.scope_name, module)

    def __enter__(self) -> str:
        names.frames().append(self._frame)
        return self._frame.scope

    def __exit__(self, *error: object) -> None:
        names.frames().pop()


def _no_variables(module: Module, listed: str) -> str:
    return (
        f"{module!r} does not currently contain any variables, so {listed} is not known yet.\n\n"
        "A module makes its variables when it is first called. Before that, either\n"
        "  call it once:        module(x)\n"
        "  build it abstractly: mk.build(module, [batch, features])\n"
        "  or pass the module:  mk.value_and_grad(loss, module), which collects them after the first run.\n\n"
        "If it never has variables, say so with mk.allow_empty_variables(module) or as a class decorator."
    )


def no_name_scope(method: T) -> T:
    """Decorates a method (or a constructor) that is not to enter the module's name scope.

    >>> class Net(Module):
    ...     @no_name_scope
    ...     def scope(self):
    ...         return names.current_scope()
    >>> Net().scope()
    ''
    """
    setattr(method, _UNSCOPED, True)
    return method


def allow_empty_variables(module_or_cls: T) -> T:
    """Lets a module without variables return empty tuples instead of raising.

    Args:
      module_or_cls: a module, or a class of modules.

    Returns:
      The argument.

    >>> allow_empty_variables(Module()).variables
    ()
    """
    setattr(module_or_cls, _EMPTY_ALLOWED, True)
    return module_or_cls


def modules_in(value: Any) -> Iterator[Module]:
    """Yields the modules that `value` is or holds, each once: a module, or plain containers of modules."""
    if isinstance(value, Module):
        yield value
    for _, module in collect.walk(value, Module, Module):
        yield module
