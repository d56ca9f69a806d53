"""Sharing by name: `variable_scope` and `get_variable`, as in TensorFlow's variable scopes.

A store keeps variables by full name. `get_variable("w", ...)` inside `variable_scope("layer")` makes `layer/w` the first
time; asking again is an error unless the scope reuses, so that sharing is always meant. A function that asks for its
variables this way shares them by being called twice.
"""

import enum
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

import jax
import jax.numpy as jnp

from modulekit.core import births, draws, names, overlay
from modulekit.core.module import Module, allow_empty_variables
from modulekit.core.variable import Variable

Initializer = Callable[[Sequence[int], Any], Any]


class _AutoReuse(enum.Enum):
    AUTO_REUSE = "AUTO_REUSE"

    def __repr__(self) -> str:
        return "mk.AUTO_REUSE"


AUTO_REUSE = _AutoReuse.AUTO_REUSE
Reuse = bool | None | _AutoReuse


@allow_empty_variables
class VariableStore(Module):
    """Variables by full name. As a context it is the store that `get_variable` uses.

    It is a module: `store.trainable_variables`, pickling and saving work as for any other.

    Args:
      name: the module's name, which is no part of its variables' names.

    Source: TensorFlow 1, where `tf.compat.v1.get_variable` keeps one store for each graph.

    >>> with VariableStore() as store, variable_scope("layer"):
    ...     w = get_variable("w", [2, 3])
    >>> list(store.by_name)
    ['layer/w']
    """

    def __init__(self, name: str | None = None) -> None:
        super().__init__(name=name)
        self.by_name: dict[str, Variable] = {}

    def __enter__(self) -> Self:
        _current.scopes.append(VariableScope("", None, self))
        return self

    def __exit__(self, *error: object) -> None:
        _current.scopes.pop()


class VariableScope:
    """What `variable_scope` yields: a name, whether its variables are reused, and the store they are in.

    Args:
      name: the full name.
      reuse: True, `AUTO_REUSE`, or None or False for neither.
      store: where the variables are.

    Source: TensorFlow 1, `tf.compat.v1.VariableScope`.

    >>> with VariableStore(), variable_scope("net") as scope:
    ...     w = get_variable("w", [2])
    ...     scope.reuse_variables()
    ...     get_variable("w") is w
    True
    """

    def __init__(self, name: str, reuse: Reuse, store: VariableStore) -> None:
        self.name = name
        self.reuse = reuse
        self.store = store

    def reuse_variables(self) -> None:
        """From here on, `get_variable` in this scope returns existing variables and makes no new ones."""
        self.reuse = True


_default_store = VariableStore()


class _Current(threading.local):
    def __init__(self) -> None:
        self.scopes = [VariableScope("", None, _default_store)]


_current = _Current()


def get_variable_scope() -> VariableScope:
    """Returns the innermost variable scope.

    Source: TensorFlow 1, `tf.compat.v1.get_variable_scope`.

    >>> with VariableStore(), variable_scope("net"), variable_scope("layer"):
    ...     get_variable_scope().name
    'net/layer'
    """
    return _current.scopes[-1]


@contextmanager
def variable_scope(name_or_scope: str | VariableScope, reuse: Reuse = None) -> Iterator[VariableScope]:
    """Puts the variables of `get_variable` under a name, and says whether existing ones are reused.

    Args:
      name_or_scope: a name, put under the scope around; or a scope, entered again with its full name.
      reuse: True returns existing variables and makes none; `AUTO_REUSE` makes what is missing; None or False does as
        the scope around does, and without one that reuses, asking for an existing variable is an error.

    Yields:
      The scope.

    Source: TensorFlow 1, `tf.compat.v1.variable_scope`.

    >>> with VariableStore(), variable_scope("net", reuse=AUTO_REUSE):
    ...     get_variable("w", [2]) is get_variable("w", [2])
    True
    """
    around = get_variable_scope()
    if isinstance(name_or_scope, VariableScope):
        name, store, inherited = name_or_scope.name, name_or_scope.store, name_or_scope.reuse
    else:
        name, store, inherited = _joined(around.name, _checked(name_or_scope)), around.store, around.reuse
    scope = VariableScope(name, reuse or inherited, store)
    _current.scopes.append(scope)
    try:
        yield scope
    finally:
        _current.scopes.pop()


def get_variable(
    name: str,
    shape: Sequence[int] | None = None,
    dtype: Any = jnp.float32,
    initializer: Initializer | Any = None,
    trainable: bool = True,
) -> Variable:
    """Returns the variable of this name in the current variable scope, making it where the scope allows.

    Args:
      name: a name, put under the current variable scope.
      shape: its shape; may be left out where the variable exists, or where `initializer` is an array.
      dtype: its dtype.
      initializer: a function of (shape, dtype), or an array. If None, Glorot uniform for floating-point matrices and
        zeros for the rest.
      trainable: whether gradients are taken with respect to it.

    Returns:
      The one variable of that full name in the current store.

    Raises:
      ValueError: it exists and the scope does not reuse; it does not exist and the scope only reuses; it exists with
        another shape or dtype. The message gives the full name and where the variable was first defined.

    Source: TensorFlow 1, `tf.compat.v1.get_variable`.

    >>> with VariableStore(), variable_scope("layer"):
    ...     get_variable("w", [2, 3])
    Variable('layer/w', float32[2,3])
    """
    scope = get_variable_scope()
    full_name = _joined(scope.name, _checked(name))
    existing = scope.store.by_name.get(full_name)
    if existing is not None:
        if not scope.reuse and not _is_retraced(existing):
            raise ValueError(
                f"variable {full_name!r} already exists: it was first defined at {existing.origin}. To share it, ask "
                f"inside mk.variable_scope(..., reuse=True) or reuse=mk.AUTO_REUSE; to have another one, choose "
                "another name or scope"
            )
        _check_same(existing, full_name, shape, dtype)
        return existing
    if scope.reuse is True:
        raise ValueError(
            f"variable {full_name!r} does not exist, and the scope only reuses. Define it first without reuse, or use "
            f"reuse=mk.AUTO_REUSE. Existing: {sorted(scope.store.by_name) or 'none'}"
        )
    made = _make(full_name, shape, dtype, initializer, trainable)
    scope.store.by_name[full_name] = made
    return made


def _make(full_name: str, shape: Sequence[int] | None, dtype: Any, initializer: Any, trainable: bool) -> Variable:
    scope, _, last = full_name.rpartition("/")

    def make() -> Variable:
        if initializer is not None and not callable(initializer):
            value = jnp.asarray(initializer, dtype)
            if shape is not None and list(value.shape) != list(shape):
                raise ValueError(
                    f"variable {full_name!r}: initializer has shape {list(value.shape)}, not {list(shape)}"
                )
        elif shape is None:
            raise ValueError(f"variable {full_name!r} does not exist yet: give its shape, or an array as initializer")
        elif initializer is not None:
            with names.absolute(full_name):
                value = initializer(shape, dtype)
        elif jnp.issubdtype(dtype, jnp.floating) and len(shape) >= 2:
            value = jax.nn.initializers.glorot_uniform()(draws.next_initial_key(last), tuple(shape), dtype)
        else:
            value = jnp.zeros(shape, dtype)
        return Variable(value, trainable=trainable, name=last)

    with names.absolute(scope):
        made: Variable = births.run_outside(make)
    return made


def _check_same(existing: Variable, full_name: str, shape: Sequence[int] | None, dtype: Any) -> None:
    if shape is not None and list(existing.shape) != list(shape):
        raise ValueError(
            f"variable {full_name!r} has shape {list(existing.shape)} (first defined at {existing.origin}), "
            f"and was asked for with shape {list(shape)}"
        )
    if existing.dtype != jnp.dtype(dtype):
        raise ValueError(
            f"variable {full_name!r} has dtype {existing.dtype} (first defined at {existing.origin}), "
            f"and was asked for with dtype {jnp.dtype(dtype)}"
        )


def _is_retraced(variable: Variable) -> bool:
    """Whether an abandoned attempt at the running trace defined the variable: the repetition defines it again."""
    running = overlay.active()
    if running is None or variable not in running.forgiven:
        return False
    running.forgiven.discard(variable)
    return True


def _joined(scope: str, name: str) -> str:
    return f"{scope}/{name}" if scope else name


def _checked(name: str) -> str:
    if not isinstance(name, str) or not name or any(not part for part in name.split("/")):
        raise ValueError(f"{name!r} is no variable name: use words, joined by '/'")
    return name
