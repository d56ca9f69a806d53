"""What is minimized: the losses of the examples of a batch as one number, and a penalty on the model."""

from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

from scenarios.base.calling import call_model

Loss = Callable[[Any, Any], jax.Array]
Penalty = Callable[[Any], Any]
Reduction = Literal["mean", "sum"]


def checked_reduction(reduction: str) -> str:
    """Returns how losses become one number, or raises `ValueError`."""
    if reduction not in get_args(Reduction):
        raise ValueError(f"reduction={reduction!r} is none of {', '.join(map(repr, get_args(Reduction)))}")
    return reduction


def objective(model: Any, inputs: Any, targets: Any, loss: Loss, penalty: Penalty | None, reduction: str) -> jax.Array:
    """Returns `sum_i loss(model(x), y)_i + penalty(model)`, or the same with the mean over the examples.

    Args:
      model: is called as in training.
      inputs: `[batch, ...]`.
      targets: `[batch, ...]`.
      loss: of the outputs and the targets; one value per example, `[batch]`.
      penalty: of the model, a number; None for none.
      reduction: "mean" or "sum".

    Returns:
      A scalar.
    """
    values = loss(call_model(model, inputs, True), targets)
    value = jnp.sum(values) if reduction == "sum" else jnp.mean(values)
    return value if penalty is None else value + penalty(model)
