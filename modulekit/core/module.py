"""A module: an ordinary object that holds variables and other modules, and is called like a function.

Nothing has to be registered. `vars(module)` is the truth: collection walks attributes, lists, tuples and dicts. The
metaclass does what a subclass would otherwise have to remember: it runs the constructor inside the module's name scope,
keeps the arguments for `repr`, and has every method run inside the scope.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar, cast

from modulekit.core import collect, describe, freezing, matching, methods, names, pickling, redraw, ties
from modulekit.core.arithmetic import ArrayLike
from modulekit.core.counters import changes
from modulekit.core.explain import ExplainedType, constructor_text
from modulekit.core.once import Built
from modulekit.core.precision import Policy
from modulekit.core.variable import Variable

T = TypeVar("T")
_EMPTY_ALLOWED = "_allow_empty_variables"

pickling.register()  # what a module holds must be picklable, activations included


class _Hidden:
    """What a module keeps out of `vars`: its name, its repr, what has run once, and whether a program depends on it.

    Also its mixed-precision policy, the methods that `mixed_precision.modes` has let run at full precision once, and the
    arguments that it was constructed with, as long as it is not copied.
    """

    __slots__ = ("construction", "name", "once_done", "policy", "ran_precisely", "scope", "text", "watched")

    def __init__(self) -> None:
        self.name: str | None = None
        self.scope = ""
        self.text = ""
        self.once_done: dict[str, Built] = {}
        self.watched = False
        self.policy: Policy | None = None
        self.ran_precisely: set[str] = set()
        self.construction: tuple[tuple[Any, ...], dict[str, Any]] | None = None

    def fresh(self) -> "_Hidden":
        """Returns what a module of the same name and scope keeps that has not run anything under `once`."""
        hidden = _Hidden()
        hidden.name, hidden.scope, hidden.text, hidden.policy = self.name, self.scope, self.text, self.policy
        return hidden

    def __getstate__(self) -> tuple[Any, ...]:
        return (self.name, self.scope, self.text, self.once_done, self.policy, self.ran_precisely)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.name, self.scope, self.text, done, self.policy, precise = state
        self.once_done, self.ran_precisely, self.watched = dict(done), set(precise), False
        self.construction = None  # the arguments need not be copied or pickled


class ModuleType(ExplainedType):
    """Constructs modules, and wraps the methods of each new module class."""

    def __init__(cls, name: str, bases: tuple[type, ...], attributes: dict[str, Any], **kwargs: Any) -> None:
        super().__init__(name, bases, attributes, **kwargs)
        if not any(isinstance(base, ModuleType) for base in bases):
            return  # Module itself: its own machinery enters no scope
        for key, value in attributes.items():
            wrapped = methods.scoped_attribute(key, value)
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
        if module._modulekit.name is None:
            raise ValueError(
                f"Constructing a modulekit.Module without calling the super constructor is not supported: begin "
                f"{cls.__name__}.__init__ with `super().__init__(name=name)`"
            )
        module._modulekit.text = constructor_text(cls, args, kwargs)
        module._modulekit.construction = (args, kwargs)
        return module


class Module(metaclass=ModuleType):
    """Base class of everything that holds variables: layers, networks, optimizers, metrics.

    Subclasses store choices in the constructor, make variables in a method under `@mk.once`, and compute in `__call__`.

    Args:
      name: a word; the class name in snake case if None. It stands in the names of the variables.

    Source: Sonnet 2, `snt.Module`. Paths, `freeze`, `reinitialize` and what else has to do with paths are additions.

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

    __slots__ = ("__dict__", "__weakref__", "_modulekit")
    _jax_remedy = "a modulekit Module: close over it, and use mk.jit, mk.grad, ... or mk.functionalize"
    _modulekit: _Hidden

    def __new__(cls, *args: Any, **kwargs: Any) -> "Module":
        """Makes the object; what is hidden is there before any constructor runs."""
        module = super().__new__(cls)
        object.__setattr__(module, "_modulekit", _Hidden())
        return module

    def __init__(self, name: str | None = None) -> None:
        hidden = self._modulekit
        if hidden.name is not None and name is None:
            return  # a second visit, as where a dataclass calls it
        is_first = hidden.name is None
        hidden.name = names.check_name(names.snake_case(type(self).__name__) if name is None else name)
        hidden.scope = names.qualified(hidden.name) if is_first else hidden.scope
        if not methods.is_unscoped(type(self).__init__):
            names.frames().append(names.Frame(hidden.scope, self))

    @property
    def name(self) -> str:
        """The module's name, the last part of its scope."""
        return str(self._modulekit.name)

    @property
    def scope_name(self) -> str:
        """The absolute name scope, such as `mlp/linear_0`."""
        return self._modulekit.scope

    @property
    def name_scope(self) -> "ModuleScope":
        """A context in which new variables are named as if the module had made them."""
        return ModuleScope(self)

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

    def ties(self) -> tuple[ties.Tie, ...]:
        """Returns the variables that more than one path leads to, with these paths.

        >>> import modulekit as mk, jax.numpy as jnp
        >>> encode = mk.Linear(3, name="encode")
        >>> pair = mk.Sequential([encode, encode.transpose()])
        >>> _ = pair(jnp.ones([2, 5]))
        >>> print(*pair.ties())
        layers[0].w = layers[1].w (transposed)
        """
        return ties.ties_in(self, Module)

    # Changing many variables at once, by path.

    def assign(self, values: Mapping[str, ArrayLike]) -> None:
        """Assigns a value to every variable, by path: all of them or, where one does not fit, none.

        Args:
          values: an array of the variable's shape and dtype for each path. The paths of a tied variable take one value.

        Raises:
          ValueError: a path is missing or unexpected, a shape or dtype differs, or a tied variable would take two values.
        """
        found = matching.matched(repr(self), ties.all_paths(self, Module), values, "value")
        for variable, value in [(variable, variable.conforming(value)) for variable, value in found.items()]:
            variable.assign(value)

    def freeze(self, pattern: str = "**") -> tuple[str, ...]:
        """Keeps variables as they are until `thaw`; compiled steps notice, and optimizers keep their slots.

        A frozen variable gets no gradient, no decay and no new moments, and what the code of a module writes to it, such
        as batch statistics, is dropped. An assignment from outside all modules is done. Random streams go on.

        Args:
          pattern: of paths: `encoder/**` or `encoder` for everything in it, `**/w` for every weight, `*` for any one part.

        Returns:
          The paths of the variables that are frozen now.

        Raises:
          ValueError: nothing fits the pattern; the message lists the paths.

        >>> import modulekit as mk, jax.numpy as jnp
        >>> net = mk.nets.MLP([4, 2])
        >>> _ = net(jnp.ones([1, 3]))
        >>> net.freeze("layers/0")
        ('layers[0].b', 'layers[0].w')
        >>> len(net.trainable_variables)
        2
        """
        return freezing.freeze(self, pattern, Module)

    def thaw(self, pattern: str = "**") -> tuple[str, ...]:
        """Ends `freeze` for the variables that fit a pattern, and returns their paths."""
        return freezing.thaw(self, pattern, Module)

    def reinitialize(self, pattern: str = "**", *, seed: int) -> tuple[str, ...]:
        """Draws the first values of some variables anew; the others, ties and optimizer slots stay as they are.

        The values are those that the modules would give themselves, one after the other, after `mk.seed(seed)`. Random
        streams go on.

        Args:
          pattern: of paths, as in `freeze`.
          seed: of the draws.

        Returns:
          The paths of the variables that have new values.

        Raises:
          ValueError: nothing fits the pattern, or a variable was made elsewhere than in a constructor or under `once`.
        """
        return redraw.reinitialize(self, pattern, seed, Module)

    def _collected(self, listed: str, wanted: Callable[[Variable], bool]) -> tuple[Variable, ...]:
        everything = [variable for _, variable in collect.walk(self, Variable, Module)]
        if not everything and not getattr(self, _EMPTY_ALLOWED, False):
            raise ValueError(_no_variables(self, listed))
        return tuple(variable for variable in everything if wanted(variable))

    # Attributes. A compiled function that ran this module notices when one changes.

    def __setattr__(self, name: str, value: Any) -> None:
        if self._modulekit.watched:
            changes.count += 1
        old = vars(self).get(name)
        if old is not value and isinstance(old, Variable | Module):
            ties.warn_if_untied(self, name, old, value, Module)
        if isinstance(value, Variable):
            value.hold(self, name)
        object.__setattr__(self, name, value)

    def __delattr__(self, name: str) -> None:
        changes.count += 1
        object.__delattr__(self, name)

    @property
    def _construction(self) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        return self._modulekit.construction

    @property
    def _once_done(self) -> dict[str, Built]:
        return self._modulekit.once_done

    def _choices(self) -> dict[str, Any]:
        """Returns the attributes and the mixed-precision policy: what a compiled program depends on."""
        policy = self._modulekit.policy
        return dict(vars(self)) if policy is None else {**vars(self), "mixed-precision policy": policy}

    # Copies.

    def __getstate__(self) -> tuple[dict[str, Any], _Hidden]:
        return dict(vars(self)), self._modulekit

    def __setstate__(self, state: tuple[dict[str, Any], _Hidden]) -> None:
        attributes, hidden = state
        vars(self).update(attributes)
        for name, value in attributes.items():
            if isinstance(value, Variable):
                value.hold(self, name)
        object.__setattr__(self, "_modulekit", hidden)

    def __repr__(self) -> str:
        return self._modulekit.text or f"{type(self).__name__}(...)"


class ModuleScope:
    """The name scope of a module, a context.

    Args:
      module: whose scope it is.

    Attributes:
      name: the scope with a slash behind it, such as `mlp/linear_0/`.
    """

    def __init__(self, module: Module) -> None:
        self._frame = names.Frame(module.scope_name, module)
        self.name = f"{module.scope_name}/"

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


def allow_empty_variables(module_or_cls: T) -> T:
    """Lets a module without variables return empty tuples instead of raising.

    Args:
      module_or_cls: a module, or a class of modules.

    Returns:
      The argument.

    Source: Sonnet 2, `snt.allow_empty_variables`.

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
