"""Mixed precision: arithmetic in float16 or bfloat16, variables in float32.

Two ways lead there. `set_policy` gives one module, with everything in it, a `Policy`. Or, as in Sonnet, `modes` marks the
methods that may run in other precisions, and `enable` or `scope` switches a precision on.
"""

import contextlib
import functools
import inspect
from collections.abc import Callable, Collection, Iterator
from typing import Any, TypeVar

import jax.numpy as jnp

from modulekit.core import context, foreign, overlay, precision
from modulekit.core.counters import changes
from modulekit.core.module import Module
from modulekit.core.precision import Policy

__all__ = ["Policy", "disable", "enable", "modes", "scope", "set_policy"]

F = TypeVar("F", bound=Callable[..., Any])


def set_policy(module: Module, policy: Policy | None) -> None:
    """Sets in which precision the calls of a module compute; compiled functions notice.

    Inputs and variables are cast on the way in, in the submodules as well, and the result on the way out; a submodule with
    a policy of its own follows that. Variables, gradients, optimizers and statistics stay in their own dtypes.

    Args:
      module: any; what counts is its `__call__`.
      policy: None for no casts.

    Raises:
      TypeError: a dtype of the policy is not floating.

    Source: Haiku, `hk.mixed_precision.set_policy`, there for the classes of modules.

    >>> import modulekit as mk, jax.numpy as jnp
    >>> net = mk.nets.MLP([8, 2])
    >>> set_policy(net, Policy(jnp.bfloat16))
    >>> net(jnp.ones([1, 3])).dtype, net.layers[0].w.dtype
    (dtype('float32'), dtype('float32'))
    """
    for dtype in policy or ():
        if not jnp.issubdtype(jnp.dtype(dtype), jnp.floating):
            raise TypeError(
                f"a mixed-precision policy has floating dtypes, as jnp.bfloat16, and not {jnp.dtype(dtype)}"
            )
    changes.count += 1
    module._modulekit.policy = policy


def enable(dtype: Any) -> None:
    """Switches a precision on for all functions that `modes` has marked; in a `scope`, until its end.

    Args:
      dtype: such as `jnp.float16`; None for none.

    Source: Sonnet 2, `snt.mixed_precision.enable`.

    >>> import jax.numpy as jnp
    >>> dtype_of = modes([jnp.float16])(lambda x: str(x.dtype))
    >>> enable(jnp.float16)
    >>> dtype_of(jnp.ones([1])), dtype_of(jnp.ones([1]))
    ('float32', 'float16')
    >>> disable()
    """
    mode = None if dtype is None else jnp.dtype(dtype)
    if context.now().mode is context.UNSET:
        context.everywhere.mode = mode
    else:
        context.thread.around = context.now()._replace(mode=mode)


def disable() -> None:
    """Switches mixed precision off.

    Source: Sonnet 2, `snt.mixed_precision.disable`.

    >>> import jax.numpy as jnp
    >>> dtype_of = modes([jnp.float16])(lambda x: str(x.dtype))
    >>> enable(jnp.float16)
    >>> _ = dtype_of(jnp.ones([1]))
    >>> disable()
    >>> dtype_of(jnp.ones([1]))
    'float32'
    """
    enable(None)


@contextlib.contextmanager
def scope(dtype: Any) -> Iterator[None]:
    """Context in which a precision is switched on, in this thread.

    Args:
      dtype: such as `jnp.bfloat16`; None for none.

    Source: Sonnet 2, `snt.mixed_precision.scope`.

    >>> import jax.numpy as jnp
    >>> dtype_of = modes([jnp.bfloat16])(lambda x: str(x.dtype))
    >>> with scope(jnp.bfloat16):
    ...     _ = dtype_of(jnp.ones([1]))
    ...     dtype_of(jnp.ones([1]))
    'bfloat16'
    >>> dtype_of(jnp.ones([1]))
    'float32'
    """
    with context.changed(mode=None if dtype is None else jnp.dtype(dtype)):
        yield


def _mode() -> Any:
    around = context.now()
    return context.everywhere.mode if around.mode is context.UNSET else around.mode


def modes(valid_types: Collection[Any]) -> Callable[[F], F]:
    """Decorates a function or method that may run in the precision that is switched on.

    It then gets its floating arrays cast, sees variables cast, and returns float32. The first call of each instance (of
    a function: its first call) is not cast, so that variables are made in full precision; inside a transform, where a
    first call would be compiled in, it is, and only what runs under `once` sees full precision.

    Args:
      valid_types: the dtypes in which it may run. With any other one switched on, it runs as it is.

    Returns:
      The decorator.

    Source: Sonnet 2, `snt.mixed_precision.modes`.

    >>> import modulekit as mk, jax.numpy as jnp
    >>> class Double(mk.Module):
    ...     @modes([jnp.float32, jnp.bfloat16])
    ...     def __call__(self, x):
    ...         return 2 * x, str(x.dtype)
    >>> double, x = Double(), jnp.ones([1])
    >>> with scope(jnp.bfloat16):
    ...     double(x)[1], double(x)[1]
    ('float32', 'bfloat16')
    """
    valid = frozenset(map(jnp.dtype, valid_types))

    def decorate(function: F) -> F:
        is_method = next(iter(inspect.signature(function).parameters), None) == "self"
        ran: set[str] = set()

        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            mode = _mode()
            if mode is None or mode not in valid:
                return function(*args, **kwargs)
            is_of_a_module = is_method and bool(args) and isinstance(args[0], Module)
            precise = args[0]._modulekit.ran_precisely if is_of_a_module else ran
            is_traced = overlay.active() is not None or not foreign.untraced()
            if function.__qualname__ in precise or is_traced:
                precise.add(function.__qualname__)
                return precision.under(Policy(mode), function)(*args, **kwargs)
            result = function(*args, **kwargs)
            precise.add(function.__qualname__)
            return result

        return run  # type: ignore[return-value]

    return decorate
