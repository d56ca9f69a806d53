"""An LSTM over a sequence, with a derivative of its own.

Differentiated as it stands, the loop adds each step's share to the gradients of the weights: three small products and
three sums of whole weights per step. Here the loop of tangents carries only what has to be carried. What the tangents of
inputs and weights add to the gates is computed for all steps before it, and in the transposed program, that of a
gradient, for all steps after it: one product each.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from modulekit.layers.lstm import LSTMState, gated


class _Operands(NamedTuple):
    """What goes into the computation: `[time, batch, input_size]`, `[batch, hidden_size]` twice, and the weights."""

    x: Any
    h: Any
    c: Any
    w_i: Any
    w_h: Any
    b: Any


@functools.partial(jax.jit, inline=True)  # outside of other programs, it is compiled once for all calls of one form
def unrolled(
    sequence: jax.Array, state: LSTMState, w_i: jax.Array, w_h: jax.Array, b: jax.Array
) -> tuple[jax.Array, LSTMState]:
    """Returns the hidden states of all steps, `[time, batch, hidden_size]`, and the state after the last one.

    Args:
      sequence: `[time, batch, input_size]`.
      state: `h` and `c`, `[batch, hidden_size]` each.
      w_i: `[input_size, 4 * hidden_size]`.
      w_h: `[hidden_size, 4 * hidden_size]`.
      b: `[4 * hidden_size]`.
    """
    outputs, h, c = _unrolled(sequence, state.hidden, state.cell, w_i, w_h, b)
    return outputs, LSTMState(hidden=h, cell=c)


@jax.custom_jvp
def _unrolled(*operands: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    (h, c), outputs = _loop(_Operands(*operands), lambda gates, h, c: h)
    return outputs, h, c


def _loop(operands: _Operands, kept: Callable[..., Any]) -> tuple[tuple[jax.Array, jax.Array], Any]:
    """Returns the last state, and of each step what `kept(gates, h', c')` returns."""
    x, h, c, w_i, w_h, b = operands

    # The products `x w_i` could be one for all steps. On CPU that is slower, forward 2 to 3 times, unless the inputs are
    # much wider than the hidden state: `tests/benchmarks/recurrent_overhead.py`.
    def step(state: tuple[jax.Array, jax.Array], x: jax.Array) -> tuple[tuple[jax.Array, jax.Array], Any]:
        h, c = state
        gates = x @ w_i + h @ w_h + b
        h, c = gated(gates, c)
        return (h, c), kept(gates, h, c)

    return jax.lax.scan(step, (h, c), x)


def _tangents(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
    """The rule: the outputs, and their tangents."""
    of, along = _Operands(*primals), _Operands(*tangents)
    (last_h, last_c), (gates, outputs, cells) = _loop(of, lambda gates, h, c: (gates, h, c))
    h_before = jnp.concatenate([of.h[None], outputs[:-1]])
    c_before = jnp.concatenate([of.c[None], cells[:-1]])
    of_gates = _sum(
        (lambda: along.x @ of.w_i, along.x),
        (lambda: of.x @ along.w_i, along.w_i),
        (lambda: h_before @ along.w_h, along.w_h),
        (lambda: jnp.broadcast_to(along.b, gates.shape), along.b),
        otherwise=jnp.zeros_like(gates),
    )

    def step(state: tuple[jax.Array, jax.Array], inputs: Any) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        h, c = state
        of_gates, (by_i, by_f, by_g, by_o, by_c, of_c) = inputs
        i, f, g, o = jnp.split(of_gates + h @ of.w_h, 4, axis=-1)
        c = by_c * c + by_i * i + by_f * f + by_g * g
        h = by_o * o + of_c * c
        return (h, c), h

    start = _dense(along.h, of.h), _dense(along.c, of.c)
    (h, c), tangents_out = jax.lax.scan(step, start, (of_gates, _slopes(gates, c_before, cells)))
    return (outputs, last_h, last_c), (tangents_out, h, c)


_unrolled.defjvp(_tangents, symbolic_zeros=True)


def _slopes(gates: jax.Array, before: jax.Array, after: jax.Array) -> tuple[jax.Array, ...]:
    """Returns the derivatives of the cell by `i`, `f`, `g`; of `h` by `o`; of the cell by that before; of `h` by the cell.

    Args:
      gates: of all steps, `[time, batch, 4 * hidden_size]`.
      before: the cells before each step.
      after: the cells after it.
    """
    i, f, g, o = jnp.split(gates, 4, axis=-1)
    i, f, g, o, shown = jax.nn.sigmoid(i), jax.nn.sigmoid(f), jnp.tanh(g), jax.nn.sigmoid(o), jnp.tanh(after)
    return (
        g * i * (1 - i),
        before * f * (1 - f),
        i * (1 - g * g),
        shown * o * (1 - o),
        f,
        o * (1 - shown * shown),
    )


def _sum(*terms: tuple[Callable[[], jax.Array], Any], otherwise: jax.Array) -> jax.Array:
    """Returns the sum of those terms whose tangent is not zero everywhere."""
    present = [term() for term, tangent in terms if not isinstance(tangent, SymbolicZero)]
    return sum(present[1:], present[0]) if present else otherwise


def _dense(tangent: Any, like: jax.Array) -> jax.Array:
    return jnp.zeros_like(like) if isinstance(tangent, SymbolicZero) else tangent
