"""modulekit by hand: `mk.jit` around a step."""

from typing import Any

import jax

import modulekit as mk
from scenarios.base.calling import call_model
from tests.benchmarks.contender import Stepwise
from tests.benchmarks.workloads.workload import LEARNING_RATE, Params, Workload


def step_of(model: Any) -> Any:
    """Returns a compiled step of a model."""
    optimizer = mk.optimizers.Adam(LEARNING_RATE)

    @mk.jit
    def step(x: Any, y: Any) -> jax.Array:
        mean = lambda: mk.losses.softmax_cross_entropy(call_model(model, x, True), y).mean()  # noqa: E731
        loss, gradients = mk.value_and_grad(mean, model)()
        optimizer.apply(gradients, model.trainable_variables)
        return loss

    return step


def make_step(workload: Workload, params: Params | None) -> Any:
    """Returns a compiled step of a workload."""
    return step_of(workload.model_with(params))


def compiled(workload: Workload, x: Any, y: Any) -> jax.stages.Compiled:
    """Returns the compiled program."""
    return make_step(workload, None).lower(x, y).compile()


CONTENDER = Stepwise("modulekit", "modulekit", make_step, compiled=compiled)
