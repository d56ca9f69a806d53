"""JAX transforms that modulekit does not manage, and what a variable may do inside them.

A plain `jax.grad` or `jax.vmap` may read variables: they are constants to it, which is exact. A plain `jax.jit` may not:
it would keep the values of its first trace for ever. None may write: the write would store a tracer, or happen once
where the user meant it to happen every time.

JAX tells one trace from another by `jax.extend.core.get_opaque_trace_state`. Whether a trace *stages* (records a
program, as `jit` and `scan` do) is seen from an operation on constants: staged, even that gives a tracer.
"""

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import FrameType
from typing import Any

import jax
import jax.numpy as jnp

from modulekit.errors import ForeignTransformError

TraceState = Any

# JAX keeps what it traced for one value of this context apart from what it traced for another.
caches_apart = jax.make_user_context(None)


class _Jax:
    """JAX's own token function, and its token of untraced execution.

    They are loaded when the first variable is read: importing `jax.extend.core` costs as much as all of this library.
    """

    trace_state: Callable[[], TraceState] | None = None
    untraced: TraceState = None


def trace_state() -> TraceState:
    """Returns a token of the innermost trace; equal tokens mean the same trace."""
    return (_Jax.trace_state or _load())()


def untraced() -> bool:
    """Returns whether the caller runs in ordinary, untraced execution."""
    return bool((_Jax.trace_state or _load())() == _Jax.untraced)


def _load() -> Callable[[], TraceState]:
    from jax.extend.core import get_opaque_trace_state

    with ThreadPoolExecutor(1) as pool:  # the caller may be tracing; a new thread is not
        _Jax.untraced = pool.submit(get_opaque_trace_state).result()
    _Jax.trace_state = staticmethod(get_opaque_trace_state)
    return get_opaque_trace_state


# Functions of JAX's that stand on the call stack while it traces, by the transform that calls them: for messages only.
_TRANSFORM_OF_FUNCTION = {
    "vmap_f": "vmap", "value_and_grad_f": "value_and_grad", "grad_f": "grad", "jacfun": "grad", "hessian": "grad",
    "_vjp": "value_and_grad", "_jvp": "value_and_grad", "linearize": "value_and_grad", "scan": "scan",
    "while_loop": "while_loop", "fori_loop": "while_loop", "_cond": "cond", "cond": "cond", "switch": "cond",
    "fun_remat": "remat", "eval_shape": "eval_shape", "make_jaxpr_f": "functionalize", "cache_miss": "jit",
    "_python_pjit_helper": "jit", "_run_python_pjit": "jit",
}  # fmt: skip


CUSTOM_RULE = "custom rule"


def stages() -> bool:
    """Returns whether the innermost trace records a program instead of computing values."""
    return isinstance(jnp.zeros(()), jax.core.Tracer)


def innermost_transform() -> str:
    """Returns the name of the plain JAX transform that is tracing the caller, as modulekit calls it; `jit` if unknown.

    One that modulekit itself called is none. `custom rule` stands for `jax.custom_vjp` and `jax.custom_jvp`.
    """
    frame = sys._getframe(1)
    while frame is not None:
        if _package(frame) == "jax":
            if frame.f_globals["__name__"].endswith("custom_derivatives"):
                return CUSTOM_RULE
            name = _TRANSFORM_OF_FUNCTION.get(frame.f_code.co_name)
            if name is not None and not _is_called_by_us(frame):
                return name
        if frame.f_back is None:
            break
        frame = frame.f_back
    return "jit"


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).split(".")[0]


def _is_called_by_us(frame: FrameType) -> bool:
    caller: FrameType | None = frame
    while caller is not None and _package(caller) in ("jax", "contextlib"):
        caller = caller.f_back
    return caller is not None and _package(caller) == __name__.split(".")[0]


def refuse_write(description: str) -> ForeignTransformError:
    """Returns the error for a write inside a plain JAX transform."""
    name = innermost_transform()
    if name == CUSTOM_RULE:
        return ForeignTransformError(
            f"{description} is written inside a function with jax.custom_vjp or jax.custom_jvp, which JAX may trace apart. "
            "The old value stays. Return the new value from that function, and assign it outside."
        )
    return ForeignTransformError(
        f"{description} is written inside a plain JAX transform, which would drop the write or leak a tracer. "
        f"The old value stays. Use mk.{name} in place of the JAX transform, or mk.functionalize to hand JAX a pure "
        "function and take the new values back."
    )


def refuse_past_read(description: str) -> ForeignTransformError:
    """Returns the error for a backward rule that reads a variable after a transform which gave it a value has ended."""
    return ForeignTransformError(
        f"{description} is read by a backward rule of jax.custom_vjp, and had a value of its own inside a transform that "
        "has ended. Keep the value in the forward rule, among its residuals."
    )


def refuse_read(description: str) -> ForeignTransformError:
    """Returns the error for a read that a plain JAX transform would turn into a constant."""
    name = innermost_transform()
    if name == CUSTOM_RULE:
        return ForeignTransformError(
            f"{description} is read inside a function with jax.custom_vjp or jax.custom_jvp, which JAX traces apart: the "
            "value would be baked in. Hand over its .value as an argument of that function."
        )
    return ForeignTransformError(
        f"{description} is read inside a plain JAX transform that compiles its function: the value would be baked in, "
        f"and later assignments would not be seen. Use mk.{name} in place of the JAX transform, or mk.functionalize to "
        "pass the values as arguments."
    )
