"""Hand-written JAX: `jax.jit` around a step, nested dicts of arrays, donation, and optax."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from tests.benchmarks.contender import Step, Stepwise
from tests.benchmarks.workloads.workload import LEARNING_RATE, Params, Workload

State = tuple[Params, Params, Any]  # weights, statistics, Adam's slots
Update = Callable[[State, jax.Array, jax.Array], tuple[State, jax.Array]]


def make_state(workload: Workload, params: Params | None) -> State:
    """Returns what a step replaces, from copies of these weights on; from its own for None."""
    params = workload.make_params() if params is None else jax.tree.map(jnp.array, params)
    return params, workload.make_statistics(), optax.adam(LEARNING_RATE).init(params)


def make_update(workload: Workload) -> Update:
    """Returns one step of Adam, not compiled: it takes a state and a batch, and returns the next state and the loss."""

    def update(state: State, x: jax.Array, y: jax.Array) -> tuple[State, jax.Array]:
        params, statistics, slots = state
        losses = jax.value_and_grad(workload.loss, has_aux=True)
        (loss, statistics), gradients = losses(params, statistics, x, y)
        updates, slots = optax.adam(LEARNING_RATE).update(gradients, slots, params)
        return (optax.apply_updates(params, updates), statistics, slots), loss

    return update


@functools.cache
def jitted(workload: Workload) -> Any:
    """Returns the compiled step, the same function for each call, so that it is compiled once in a process."""
    return jax.jit(make_update(workload), donate_argnums=0)


def make_step(workload: Workload, params: Params | None) -> Step:
    """Returns a compiled step that keeps its state."""
    update, state = jitted(workload), make_state(workload, params)

    def step(x: Any, y: Any) -> jax.Array:
        nonlocal state
        state, loss = update(state, x, y)
        return loss

    return step


def compiled(workload: Workload, x: Any, y: Any) -> jax.stages.Compiled:
    """Returns the compiled program."""
    lowered = jitted(workload).lower(make_state(workload, None), x, y)
    program: jax.stages.Compiled = lowered.compile()
    return program


CONTENDER = Stepwise("jax", "jax, optax", make_step, compiled=compiled)
