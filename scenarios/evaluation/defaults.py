"""Which metrics an evaluation has if none are named."""

from typing import Any

import jax
import numpy as np

from modulekit import metrics as m
from modulekit.core.explain import summarize
from modulekit.metrics import ExampleMetric
from modulekit.metrics.similarity import WINDOW

TOP = 5
COLORS = (1, 3, 4)  # channels of an image


def default_metrics(outputs: Any, targets: Any) -> dict[str, ExampleMetric]:
    """Returns metrics for the shapes of outputs and targets.

    Integer targets `[batch]` and logits `[batch, classes]`: classification. Targets of the outputs' shape: squared error,
    for images also PSNR, and SSIM if its window fits. Outputs that are a pair of the targets' shape: intervals.

    Args:
      outputs: the model's, as `jax.ShapeDtypeStruct`s.
      targets: likewise.

    Raises:
      ValueError: there are no metrics for such a pair.
    """
    if isinstance(targets, jax.ShapeDtypeStruct):
        if _classified(outputs, targets):
            return _classification(outputs.shape[1])
        if _alike(outputs, targets):
            return _regression(targets)
        if isinstance(outputs, tuple | list) and len(outputs) == 2 and all(_alike(o, targets) for o in outputs):
            return {"coverage": m.Coverage()}
    raise ValueError(
        f"no metrics are known for outputs {summarize(outputs)} and targets {summarize(targets)}: integer targets [batch] "
        "want logits [batch, classes], others want outputs of their shape; or name them, Evaluate(metrics={...})"
    )


def is_image(shape: tuple[int, ...]) -> bool:
    """Returns whether arrays of a shape can be drawn: `[batch, height, width, channels]`."""
    return len(shape) == 4 and shape[3] in COLORS and min(shape[1:3]) > 1


def _classified(outputs: Any, targets: Any) -> bool:
    if not isinstance(outputs, jax.ShapeDtypeStruct) or not np.issubdtype(targets.dtype, np.integer):
        return False
    return len(outputs.shape) == 2 and targets.shape == outputs.shape[:1]


def _alike(outputs: Any, targets: Any) -> bool:
    return isinstance(outputs, jax.ShapeDtypeStruct) and outputs.shape == targets.shape


def _classification(classes: int) -> dict[str, ExampleMetric]:
    ranked: dict[str, ExampleMetric] = {f"top_{TOP}_accuracy": m.TopKAccuracy(TOP)} if classes > TOP else {}
    return {
        "accuracy": m.Accuracy(),
        **ranked,
        "nll": m.NegativeLogLikelihood(),
        "brier": m.BrierScore(),
        "ece": m.CalibrationError(),
        "auroc": m.AreaUnderROC(),
        "confusion": m.ConfusionMatrix(classes),
    }


def _regression(targets: Any) -> dict[str, ExampleMetric]:
    chosen: dict[str, ExampleMetric] = {"mse": m.MeanSquaredError()}
    if is_image(targets.shape):
        max_value = 255.0 if np.issubdtype(targets.dtype, np.integer) else 1.0
        chosen["psnr"] = m.PSNR(max_value)
        if min(targets.shape[1:3]) >= WINDOW:
            chosen["ssim"] = m.SSIM(max_value)
    return chosen
