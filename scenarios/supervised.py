"""Supervised learning: inputs, targets, a model and a loss."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import modulekit as mk
from modulekit.data import Arrays
from modulekit.losses import check_labels
from modulekit.metrics import correct
from scenarios.base.calling import call_model
from scenarios.base.scenario import Scenario

Loss = Callable[[Any, Any], jax.Array]


class Supervised(Scenario):
    """Trains a model to predict targets from inputs: `min E[loss(model(x), y)]`.

    `Supervised(steps, ...)(model, optimizer, loss, data=(inputs, targets), eval_data=(inputs, targets))`. The loss gets
    the model's outputs and the targets, and returns one value per example, `[batch]`. A model that needs to know whether
    it trains is called with `is_training`. For integer targets the evaluation reports accuracy beside the loss.

    Args:
      steps: the number of updates.
      **settings: see `scenarios.Settings`.

    >>> import jax.numpy as jnp, modulekit as mk
    >>> x = jnp.linspace(-1, 1, 32)[:, None]
    >>> fit = Supervised(200, batch_size=32, progress=False)
    >>> result = fit(mk.Linear(1), mk.optimizers.SGD(0.3), mk.losses.squared_error, data=(x, 5 * x), eval_data=(x, 5 * x))
    >>> result.metrics["loss"] < 1e-3
    True
    """

    def update(self, batch: Any, *, model: Any, optimizer: mk.Optimizer, loss: Loss) -> Mapping[str, Any]:
        """Takes one step down the gradient of the mean loss; returns the loss before it."""
        inputs, targets = pair(batch, "data")
        mean = lambda: loss(call_model(model, inputs, True), targets).mean()  # noqa: E731
        return {"loss": optimizer.minimize(mean, model, weight=len(targets))}

    def evaluate(self, batch: Any, *, model: Any, optimizer: mk.Optimizer, loss: Loss) -> Mapping[str, Any]:
        """Returns the loss of each example, and for integer targets whether the largest output is theirs."""
        inputs, targets = batch
        outputs = call_model(model, inputs, False)
        values = {"loss": loss(outputs, targets)}
        if jnp.issubdtype(targets.dtype, jnp.integer) and outputs.ndim == 2 and targets.ndim == 1:
            values["accuracy"] = correct(outputs, targets)
        return values

    def check(self, data: Arrays, eval_data: Arrays | None, *, model: Any, optimizer: mk.Optimizer, loss: Loss) -> None:
        """Raises `ValueError` where an integer target is no class of the model."""
        check_classes(model, loss, data, eval_data)


def check_classes(model: Any, loss: Loss, data: Arrays | None, eval_data: Arrays | None) -> None:
    """Raises `ValueError` where data is no pair (inputs, targets), or an integer target is no class of the model."""
    for which, examples in (("data", data), ("eval_data", eval_data)):
        if examples is None:
            continue
        inputs, targets = pair(examples.arrays, which)
        if loss is not mk.losses.softmax_cross_entropy or not np.issubdtype(targets.dtype, np.integer):
            continue
        example = jax.ShapeDtypeStruct((1, *inputs.shape[1:]), inputs.dtype)
        outputs = mk.build(lambda x: call_model(model, x, False), example)
        try:
            check_labels(targets, outputs.shape[-1])
        except ValueError as error:
            raise ValueError(f"{which}[1]: {error}") from None


def pair(arrays: Any, which: str) -> tuple[Any, Any]:
    """Returns `(inputs, targets)`, or raises `ValueError` if that is not what the data is."""
    if not isinstance(arrays, tuple | list) or len(arrays) != 2:
        found = (
            f"a {type(arrays).__name__} of {len(arrays)}" if isinstance(arrays, tuple | list | dict) else "one array"
        )
        raise ValueError(f"{which} must be a pair (inputs, targets), not {found}")
    return arrays[0], arrays[1]
