"""What is said, and kept, when a run meets a value that is not finite."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from modulekit.checkpoints import write_json

FOLDER = "nonfinite"  # of a run's directory


class NonFiniteError(FloatingPointError):
    """An update gave a metric, a weight or a slot that is not finite. It was not applied: the variables are those before it.

    Args:
      message: what is said.
      step: the number of the update, the first one being 1.
      samples: the indices of the examples whose data or loss is not finite; of a stream, their places in the batch.
      variables: the paths of the variables that the update would have made non-finite.
      losses: the first metric of the updates before, up to 50 of them, and of this one.

    >>> import modulekit as mk, scenarios
    >>> x = jnp.array([[1.0], [jnp.nan]])
    >>> fit = scenarios.Supervised(1, batch_size=2, progress=False)
    >>> try:
    ...     fit(mk.Linear(1), mk.optimizers.SGD(0.1), mk.losses.squared_error, data=(x, x))
    ... except NonFiniteError as error:
    ...     print(error.step, error.samples)
    1 [1]
    """

    def __init__(
        self, message: str, step: int, samples: list[int], variables: list[str], losses: Sequence[float] = ()
    ) -> None:
        super().__init__(message)
        self.step = step
        self.samples = samples
        self.variables = variables
        self.losses = list(losses)


def examine(
    step: int,
    metrics: Mapping[str, float],
    indices: np.ndarray[Any, Any] | None,
    batch: Any,
    values: Mapping[str, Any],
    evaluate: Callable[[Any], Mapping[str, Any]] | None,
    losses: Sequence[float],
) -> NonFiniteError:
    """Returns the error for an update that gave values that are not finite.

    Args:
      step: the number of the update, the first one being 1.
      metrics: its metrics.
      indices: `[batch]`, the indices of its examples; None where they are not known.
      batch: its examples.
      values: by path, of the variables if it were applied.
      evaluate: gives values per example, compiled, if the scenario has it.
      losses: of the updates before.
    """
    size = len(jax.tree.leaves(batch)[0])
    noun, names = ("place", np.arange(size)) if indices is None else ("sample", indices)
    bad, in_data = _bad_examples(batch, size), True
    if not bad.any() and evaluate is not None:
        in_data = False
        for column in evaluate(batch).values():
            bad |= ~np.isfinite(np.asarray(column))
    samples = sorted({int(index) for index in names[bad]})
    broken = [path for path, value in values.items() if not np.isfinite(np.asarray(value)).all()]
    values_text = ", ".join(f"{name} is {value}" for name, value in metrics.items() if not np.isfinite(value))
    values_text = values_text or "its metrics are finite, the new weights or slots are not"
    if samples:
        cause = f"the {'data' if in_data else 'loss'} of {noun} {_listed(samples)} is not finite"
    elif indices is None:
        cause = f"its {size} examples are those of a stream"
    else:
        cause = f"its samples are {_listed([int(i) for i in indices])}"
    return NonFiniteError(
        f"update {step}: {values_text}; {cause}; it would make {_listed(broken) if broken else 'no variable'} non-finite. "
        "The update was not applied: all variables are as after the update before",
        step,
        samples,
        broken,
        [*losses, next(iter(metrics.values()))],
    )


def keep(
    error: NonFiniteError, metrics: Mapping[str, float], indices: np.ndarray[Any, Any] | None, batch: Any, run: Path
) -> Path:
    """Writes what is known of a non-finite update, and its examples for a replay; returns the folder.

    Args:
      error: what was found.
      metrics: of the update.
      indices: `[batch]`, of its examples, where they are known.
      batch: its examples.
      run: the run's directory.
    """
    folder = run / FOLDER / f"step_{error.step}"
    folder.mkdir(parents=True, exist_ok=True)
    leaves = {f"batch{jax.tree_util.keystr(path)}": np.asarray(leaf) for path, leaf in jax.tree.leaves_with_path(batch)}
    if indices is not None:
        leaves["indices"] = indices
    with (folder / "batch.npz").open("wb") as file:
        np.savez(file, allow_pickle=False, **leaves)
    numbers = {name: _in_words(value) for name, value in metrics.items()}
    write_json(
        folder / "report.json",
        {
            "step": error.step,
            "message": str(error),
            "samples": error.samples,
            "variables": error.variables,
            "metrics": numbers,
            "losses": [_in_words(loss) for loss in error.losses],
        },
    )
    return folder


def _bad_examples(batch: Any, size: int) -> np.ndarray[Any, Any]:
    bad = np.zeros(size, bool)
    for leaf in jax.tree.leaves(batch):
        if jnp.issubdtype(leaf.dtype, jnp.inexact):
            bad |= ~np.isfinite(np.asarray(leaf)).reshape(size, -1).all(axis=1)
    return bad


def _in_words(value: float) -> float | str:
    """Returns a number as strict JSON can hold it."""
    return float(value) if np.isfinite(value) else str(value)


def _listed(items: list[Any]) -> str:
    shown = ", ".join(str(item) for item in items[:10])
    return shown + (f" and {len(items) - 10} more" if len(items) > 10 else "")
