"""Predictions: a model's outputs for all examples of a data set."""

from typing import Any, final

import jax
import numpy as np

from modulekit.data import Arrays
from scenarios.evaluation.forward import Forward


@final
class Predict:
    """Calls a model on all inputs, in batches: `outputs[i] = model(inputs[i])`.

    `Predict(...)(model, data=inputs)`. A model that needs to know whether it trains is called with `is_training=False`, and
    no variable changes. All batches have one shape, the last one filled up; what belongs to the filling is cut off.

    Args:
      batch_size: examples per call; it changes no output.
      devices: how many devices share each batch; None uses one.

    Raises:
      ValueError: a number is out of range.

    >>> import numpy as np
    >>> double = lambda x: 2 * x
    >>> Predict(batch_size=2)(double, data=np.arange(3.0)).tolist()
    [0.0, 2.0, 4.0]
    """

    def __init__(self, batch_size: int = 1000, devices: int | None = None) -> None:
        self._forward = Forward(batch_size, devices)

    def __call__(self, model: Any, data: Any) -> Any:
        """Returns the outputs, NumPy arrays `[examples, ...]` in the structure that the model returns.

        Args:
          model: a module, or a function that calls modules.
          data: its inputs: an array, or a tuple, list or dict of arrays that share their first axis.

        Raises:
          ValueError: there is no example, or an output has not one row per example.
        """
        inputs = Arrays(data)
        self._forward.shapes(model, inputs)
        with self._forward.of(model, inputs) as outputs:
            found = [batch.true(outputs(batch)) for batch in self._forward.batches(inputs.size)]
        return jax.tree.map(lambda *parts: np.concatenate(parts), *found)
