"""`static_unroll` and `dynamic_unroll`: a core over a whole sequence.

Both compute the same. The static one repeats the step in the program, once for each element; the dynamic one is a
compiled loop, whose program has the size of one step. Sequences are time-major, `[time, batch, ...]`.

Sequences of different lengths are padded to one, and `sequence_length` tells where each ends: from there on, its last
outputs and state are repeated, so that the final state is that of its last element. A sequence without any element has
outputs of zeros and the initial state. A scalar among outputs and state belongs to no sequence and goes on.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import ArrayLike

from modulekit.core.explain import summarize
from modulekit.layers.recurrent_inputs import form_of
from modulekit.transforms.build import eval_shape
from modulekit.transforms.loops import scan
from modulekit.transforms.settle import plain

Core = Callable[[Any, Any], tuple[Any, Any]]


def static_unroll(
    core: Core, input_sequence: Any, initial_state: Any, sequence_length: ArrayLike | None = None
) -> tuple[Any, Any]:
    """Calls a core on the elements of a sequence, one after the other: `y_t, s_t = core(x_t, s_{t-1})`.

    Args:
      core: an `RNNCore`, or any function of `(inputs, state)` that returns `(outputs, next_state)`.
      input_sequence: any structure of arrays `[time, batch, ...]`.
      initial_state: the state before the first step.
      sequence_length: the length of each sequence, `[batch]`; the number of steps if None.

    Returns:
      `(output_sequence, final_state)`: the outputs `[time, batch, ...]`, and the state after the last step.

    Raises:
      ValueError: the arrays have no steps, or different numbers of them.

    Source: Sonnet 2, `snt.static_unroll`.

    >>> import modulekit as mk
    >>> core = mk.LSTM(16)
    >>> outputs, state = mk.static_unroll(core, jnp.ones([7, 3, 5]), core.initial_state(3))
    >>> outputs.shape, state.hidden.shape
    ((7, 3, 16), (3, 16))
    """
    sequence, _ = _checked(input_sequence)
    leaves, tree = jax.tree.flatten(sequence)
    lengths = None if sequence_length is None else jnp.asarray(plain(sequence_length))
    state, rows = plain(initial_state), list[Any]()
    for step, elements in enumerate(zip(*map(jnp.unstack, leaves), strict=True)):
        outputs, next_state = plain(core(jax.tree.unflatten(tree, elements), state))
        if lengths is not None:
            before = rows[-1] if rows else jax.tree.map(jnp.zeros_like, outputs)
            outputs, next_state = _held(step >= lengths, (before, state), (outputs, next_state))
        rows.append(outputs)
        state = next_state
    return jax.tree.map(lambda *parts: jnp.stack(parts), *rows), state


def dynamic_unroll(
    core: Core,
    input_sequence: Any,
    initial_state: Any,
    sequence_length: ArrayLike | None = None,
    parallel_iterations: int = 1,
    swap_memory: bool = False,
) -> tuple[Any, Any]:
    """Calls a core on the elements of a sequence, in one compiled loop: `y_t, s_t = core(x_t, s_{t-1})`.

    What the core writes to variables is seen by the next step and kept at the end, and random draws differ from step to
    step. Call it under `mk.jit`: outside, JAX compiles the loop anew each time.

    Args:
      core: an `RNNCore`, or any function of `(inputs, state)` that returns `(outputs, next_state)`.
      input_sequence: any structure of arrays `[time, batch, ...]`.
      initial_state: the state before the first step.
      sequence_length: the length of each sequence, `[batch]`; the number of steps if None.
      parallel_iterations: without effect, for code written for Sonnet: XLA schedules the loop.
      swap_memory: without effect, likewise; `mk.remat` of the core saves memory.

    Returns:
      `(output_sequence, final_state)`: the outputs `[time, batch, ...]`, and the state after the last step.

    Raises:
      ValueError: the arrays have no steps, or different numbers of them, or the core returns a state of another form.

    Source: Sonnet 2, `snt.dynamic_unroll`.

    >>> import modulekit as mk
    >>> core = mk.LSTM(4)
    >>> outputs, state = mk.dynamic_unroll(core, jnp.ones([7, 2, 5]), core.initial_state(2), sequence_length=[3, 7])
    >>> bool((outputs[2:, 0] == outputs[2, 0]).all()), bool((state.hidden[0] == outputs[2, 0]).all())
    (True, True)
    """
    sequence, steps = _checked(input_sequence)
    if sequence_length is None:

        def step(state: Any, inputs: Any) -> tuple[Any, Any]:
            outputs, next_state = plain(core(inputs, state))
            _check_form(core, state, next_state)
            return next_state, outputs

        final_state, output_sequence = scan(step, initial_state, sequence)
        return output_sequence, final_state

    lengths = jnp.asarray(plain(sequence_length))
    first = jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape[1:], array.dtype), sequence)
    specified, _ = eval_shape(core, first, plain(initial_state))
    zeros = jax.tree.map(lambda spec: jnp.zeros(spec.shape, spec.dtype), specified)

    def held_step(before: Any, element: Any) -> tuple[Any, Any]:
        index, inputs = element
        outputs, next_state = plain(core(inputs, before[1]))
        _check_form(core, before[1], next_state)
        after = _held(index >= lengths, before, (outputs, next_state))
        return after, after[0]

    (_, final_state), output_sequence = scan(held_step, (zeros, initial_state), (jnp.arange(steps), sequence))
    return output_sequence, final_state


def _checked(input_sequence: Any) -> tuple[Any, int]:
    """Returns the sequence as arrays, and its number of steps."""
    sequence = jax.tree.map(jnp.asarray, plain(input_sequence))
    shapes = [array.shape for array in jax.tree.leaves(sequence)]
    got = f"got {summarize(sequence)}"
    if not shapes or any(len(shape) == 0 for shape in shapes):
        raise ValueError(f"input_sequence must consist of arrays [time, batch, ...], {got}")
    steps = {shape[0] for shape in shapes}
    if len(steps) > 1:
        raise ValueError(
            f"input_sequence tensors must have consistent number of time steps, {got}: the first axis is the time"
        )
    if steps == {0}:
        raise ValueError(
            f"input_sequence must have at least a single time step, {got}: return the initial state instead"
        )
    return sequence, steps.pop()


def _held(is_over: jax.Array, before: Any, after: Any) -> Any:
    """Returns `after`, or `before` for the sequences that are over; scalars are always those after the step."""

    def chosen(old: Any, new: Any) -> Any:
        new = jnp.asarray(new)
        if new.ndim == 0:
            return new
        if is_over.ndim > 0 and new.shape[0] != is_over.shape[0]:
            raise ValueError(
                f"sequence_length has {is_over.shape[0]} elements, and among outputs and states is {summarize(new)}: each "
                "needs a first axis of that size, the batch"
            )
        return jnp.where(is_over.reshape(is_over.shape + (1,) * (new.ndim - is_over.ndim)), old, new)

    return jax.tree.map(chosen, before, after)


def _check_form(core: Core, given: Any, returned: Any) -> None:
    """Raises `ValueError` unless a state has the structure, shapes and dtypes of the one before."""
    trees: list[Any] = [jax.tree.structure(state) for state in (given, returned)]
    same = trees[0] == trees[1] and all(
        before.shape == jnp.shape(after) and (before.weak_type or before.dtype == jnp.result_type(after))
        for before, after in zip(jax.tree.leaves(given), jax.tree.leaves(returned), strict=True)
    )
    if not same:
        raise ValueError(
            f"{core!r} was given the state {form_of(given)} and returned {form_of(returned)}: in a compiled loop it "
            "stays the same structure of the same shapes and dtypes. Give an initial state of the form that the core returns"
        )
