"""What is said when a run meets a value that is not finite."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import modulekit as mk
from modulekit.core.randomness import default_stream
from modulekit.core.variable import Variable


class NonFiniteError(FloatingPointError):
    """An update gave a metric or a weight that is not finite. The update was not applied: the variables are those before it.

    Args:
      message: what is said.
      step: the number of the update, the first one being 1.
      samples: the indices of the examples whose data or loss is not finite.
      variables: the paths of the variables that the update would have made non-finite.

    >>> import modulekit as mk, scenarios
    >>> x = jnp.array([[1.0], [jnp.nan]])
    >>> fit = scenarios.Supervised(1, batch_size=2, progress=False)
    >>> try:
    ...     fit(mk.Linear(1), mk.optimizers.SGD(0.1), mk.losses.squared_error, data=(x, x))
    ... except NonFiniteError as error:
    ...     print(error.step, error.samples)
    1 [1]
    """

    def __init__(self, message: str, step: int, samples: list[int], variables: list[str]) -> None:
        super().__init__(message)
        self.step = step
        self.samples = samples
        self.variables = variables


def examine(
    step: int,
    metrics: Mapping[str, float],
    indices: np.ndarray[Any, Any],
    batch: Any,
    update: Callable[[Any], Any],
    evaluate: Callable[[Any], Mapping[str, Any]] | None,
    variables: Mapping[str, Variable],
    used: Iterable[Variable],
) -> NonFiniteError:
    """Returns the error for an update that gave values that are not finite, from running it once more without applying it.

    Args:
      step: the number of the update, the first one being 1.
      metrics: its metrics.
      indices: `[batch]`, the indices of its examples.
      batch: its examples.
      update: the update.
      evaluate: gives values per example, if the scenario has it.
      variables: by path, those that the update writes.
      used: these and all others that it uses.
    """
    bad = np.zeros(len(indices), bool)
    for leaf in jax.tree.leaves(batch):
        if jnp.issubdtype(leaf.dtype, jnp.inexact):
            bad |= ~np.isfinite(np.asarray(leaf)).reshape(len(indices), -1).all(axis=1)
    in_data = bool(bad.any())
    if not in_data and evaluate is not None:
        for column in mk.jit(evaluate)(batch).values():
            bad |= ~np.isfinite(np.asarray(column))
    samples = sorted({int(index) for index in indices[bad]})
    known = dict.fromkeys([*variables.values(), *used, *default_stream().variables])
    pure, values = mk.functionalize(update, list(known))
    _, new = jax.jit(pure)(values, batch)
    broken = [path for path, value in zip(variables, new, strict=False) if not np.isfinite(np.asarray(value)).all()]
    values_text = ", ".join(f"{name} is {value}" for name, value in metrics.items() if not np.isfinite(value))
    values_text = values_text or "its metrics are finite, the new weights are not"
    if in_data:
        cause = f"the data of sample {_listed(samples)} is not finite"
    elif samples:
        cause = f"the loss of sample {_listed(samples)} is not finite"
    else:
        cause = f"its samples are {_listed([int(i) for i in indices])}"
    return NonFiniteError(
        f"update {step}: {values_text}; {cause}; it would make {_listed(broken) if broken else 'no variable'} non-finite. "
        "The update was not applied: all variables are as after the update before",
        step,
        samples,
        broken,
    )


def _listed(items: list[Any]) -> str:
    shown = ", ".join(str(item) for item in items[:10])
    return shown + (f" and {len(items) - 10} more" if len(items) > 10 else "")
