"""How scenarios call a model: one that needs to know whether it trains is told."""

import inspect
from typing import Any


def call_model(model: Any, inputs: Any, is_training: bool) -> Any:
    """Returns the model's outputs, `[batch, ...]`."""
    return model(inputs, is_training=is_training) if needs_is_training(model) else model(inputs)


def needs_is_training(model: Any) -> bool:
    """Returns whether a call must say if it is training.

    So it is if the model's attribute `needs_is_training` says so; where there is none, if a call takes an argument
    `is_training` whose default is not None.
    """
    said = getattr(model, "needs_is_training", None)
    if said is not None:
        return bool(said)
    try:
        parameter = inspect.signature(model).parameters.get("is_training")
    except (TypeError, ValueError):
        return False
    return parameter is not None and parameter.default is not None
