"""Evaluation: what a trained model is worth on a data set."""

import time
from collections.abc import Callable, Mapping
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np

import modulekit as mk
from modulekit.data import Arrays
from modulekit.losses import check_labels
from modulekit.metrics import ExampleMetric, MeanSquaredError, NegativeLogLikelihood, PerExample
from scenarios.evaluation.defaults import default_metrics
from scenarios.evaluation.forward import Forward
from scenarios.evaluation.report import Report, report_of
from scenarios.evaluation.worst import worst_of

Metrics = dict[str, ExampleMetric]


@final
class Evaluate:
    """Measures a model on data: `metric = metric(model(inputs), targets)`, over all examples.

    `Evaluate(...)(model, data=(inputs, targets))`; `data=inputs` measures how well the model reproduces them. A model that
    needs to know whether it trains is called with `is_training=False`, and none of its variables changes. Batch size and
    devices change no metric: all batches have one shape, the last one filled up, and no filling counts.

    Args:
      metrics: modules of `modulekit.metrics` by name, `update(outputs, targets, mask=...)`; each call starts them anew, and
        they keep the call's value. None chooses by the targets: integers are classes, of which the outputs are logits;
        real numbers are compared with outputs of the same shape, images also by PSNR and SSIM.
      batch_size: examples per call of the model.
      devices: how many devices share each batch; None uses one.
      worst: how many of the worst examples the report shows.

    Raises:
      ValueError, TypeError: a setting is out of range.

    >>> import jax.numpy as jnp, modulekit as mk
    >>> x = jnp.linspace(-1, 1, 5)[:, None]
    >>> report = Evaluate(batch_size=2)(lambda x: 2 * x, data=(x, 2 * x + 1))
    >>> report.metrics, report.samples
    ({'mse': 1.0}, 5)
    """

    def __init__(
        self,
        metrics: Mapping[str, ExampleMetric] | None = None,
        batch_size: int = 1000,
        devices: int | None = None,
        worst: int = 16,
    ) -> None:
        for name, metric in (metrics or {}).items():
            if not isinstance(metric, ExampleMetric):
                raise TypeError(f"metrics[{name!r}] must be a modulekit.metrics.ExampleMetric, got {metric!r}")
        if metrics is not None and not metrics:
            raise ValueError("metrics={} names none: pass at least one, or None for those that the targets suggest")
        if worst < 0:
            raise ValueError(f"worst={worst}: expected how many examples to show, 0 for none")
        self._forward = Forward(batch_size, devices)
        self._given = None if metrics is None else dict(metrics)
        self._worst = worst
        self._updates: dict[str, tuple[Metrics, Callable[..., Any]]] = {}  # by what was chosen

    def __call__(self, model: Any, data: Any) -> Report:
        """Evaluates.

        Args:
          model: a module, or a function that calls modules.
          data: a pair (inputs, targets) of arrays or structures of arrays that share their first axis; or one array, which
            is both.

        Returns:
          The report.

        Raises:
          ValueError: there is no example, a label is no class, or shapes do not fit; before anything runs.
          RuntimeError: inside a transform.
        """
        inputs, targets = _pair(data)
        metrics, update = self._prepared(model, inputs, targets)
        began = time.perf_counter()
        scores = []
        for metric in metrics.values():
            metric.reset()
        with self._forward.of(model, inputs) as outputs_of:
            for batch in self._forward.batches(inputs.size):
                outputs, wanted = outputs_of(batch), targets.take(batch.indices)
                scores.append(batch.true(update(outputs, wanted, batch.mask)))
                for metric in metrics.values():
                    if metric.collects:
                        metric.update(outputs, wanted, mask=batch.mask)
            seconds = time.perf_counter() - began
            ranked = None if scores[0] is None else np.concatenate(scores)
            worst = worst_of(ranked, self._worst, inputs, targets, outputs_of, self._forward.batches(inputs.size))
        return report_of(metrics, inputs.size, seconds, worst)

    def _prepared(self, model: Any, inputs: Arrays, targets: Arrays) -> tuple[Metrics, Callable[..., Any]]:
        """Chooses metrics, and tries them on shapes alone."""
        outputs, wanted = self._forward.shapes(model, inputs), self._forward.specification(targets)
        _check_classes(outputs, targets.arrays)
        metrics = self._given if self._given is not None else default_metrics(outputs, wanted)
        metrics, update = self._updates.setdefault(repr(metrics), (metrics, _compiled(metrics)))
        mask = jax.ShapeDtypeStruct(jax.tree.leaves(outputs)[0].shape[:1], jnp.bool_)
        mk.eval_shape(update, outputs, wanted, mask)
        for metric in metrics.values():
            if metric.collects:  # has no shapes to try; nothing of these zeros stays
                metric.update(*jax.tree.map(_zeros, (outputs, wanted)), mask=_zeros(mask))
                metric.reset()
        return metrics, update


def _compiled(metrics: Metrics) -> Callable[..., Any]:
    """Returns one program that adds a batch to all metrics, and returns one score per example, the worst ones highest."""
    inside = [metric for metric in metrics.values() if not metric.collects]
    ranking = next(
        (m for kind in (NegativeLogLikelihood, MeanSquaredError) for m in inside if isinstance(m, kind)), None
    )

    @mk.jit
    def update(outputs: Any, targets: Any, mask: jax.Array) -> jax.Array | None:
        for metric in inside:
            metric.update(outputs, targets, mask=mask)
        return ranking.per_example(outputs, targets) if isinstance(ranking, PerExample) else None

    return update


def _zeros(shape: jax.ShapeDtypeStruct) -> np.ndarray[Any, Any]:
    return np.zeros(shape.shape, shape.dtype)


def _pair(data: Any) -> tuple[Arrays, Arrays]:
    data = data.arrays if isinstance(data, Arrays) else data
    if isinstance(data, tuple | list) and len(data) != 2:
        raise ValueError(
            f"data must be a pair (inputs, targets) or one array, not a {type(data).__name__} of {len(data)}"
        )
    if not isinstance(data, tuple | list):
        return Arrays(data), Arrays(data)
    Arrays(data)  # checks that both count the same examples
    return Arrays(data[0]), Arrays(data[1])


def _check_classes(outputs: Any, labels: Any) -> None:
    if not isinstance(labels, np.ndarray) or not np.issubdtype(labels.dtype, np.integer) or labels.ndim != 1:
        return
    if isinstance(outputs, jax.ShapeDtypeStruct) and len(outputs.shape) == 2:
        try:
            check_labels(jnp.asarray(labels), outputs.shape[1])
        except ValueError as error:
            raise ValueError(f"data[1]: {error}") from None
