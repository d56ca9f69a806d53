"""Which classes are taken for which: the confusion matrix, and what it says of each class."""

from typing import Any, NamedTuple, final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Integer, Shaped

from modulekit.core.explain import summarize
from modulekit.metrics.classes import classified, is_class
from modulekit.metrics.example_mean import counting
from modulekit.metrics.example_metric import ExampleMetric
from modulekit.metrics.total import Total


class ClassTable(NamedTuple):
    """What a confusion matrix says of each class; NaN where nothing can be said.

    With the true positives tp, `precision = tp / predicted`, `recall = tp / support`, `f1 = 2 tp / (predicted + support)`.

    Attributes:
      precision: `[classes]`; NaN for a class that was never predicted.
      recall: `[classes]`; NaN for a class without examples.
      f1: `[classes]`; NaN for a class that was neither there nor predicted.
      support: `[classes]`, how many examples each class has.

    Source: van Rijsbergen, Information Retrieval, 1979, chapter 7; scikit-learn, `precision_recall_fscore_support`.

    >>> confusion = ConfusionMatrix(3)
    >>> confusion.update(jnp.array([0, 0, 1]), jnp.array([0, 1, 1]))
    >>> confusion.per_class().recall.tolist()
    [1.0, 0.5, nan]
    """

    precision: np.ndarray[Any, Any]
    recall: np.ndarray[Any, Any]
    f1: np.ndarray[Any, Any]
    support: np.ndarray[Any, Any]


@final
class ConfusionMatrix(ExampleMetric):
    """How often each class is taken for each: `matrix[a, b] = #{i: labels_i = a, prediction_i = b}`.

    Args:
      num_classes: how many classes there are.
      name: the module's name.

    Raises:
      ValueError: num_classes < 1.

    Source: Stehman, Selecting and Interpreting Measures of Thematic Classification Accuracy, 1997; scikit-learn,
    `confusion_matrix`.

    >>> confusion = ConfusionMatrix(2)
    >>> confusion(jnp.array([[0.1, 0.9], [0.8, 0.2]]), jnp.array([1, 1])).tolist()
    [[0, 0], [1, 1]]
    """

    def __init__(self, num_classes: int, name: str | None = None) -> None:
        if num_classes < 1:
            raise ValueError(f"num_classes={num_classes}: expected at least one class")
        super().__init__(name=name)
        self.num_classes = num_classes
        self.matrix = Total([num_classes, num_classes], jnp.int32)
        self.examples = Total([], jnp.int32)

    def update(
        self, predictions: Shaped[Array, "batch ..."], labels: Integer[Array, " batch"], mask: Array | None = None
    ) -> None:
        """Adds a batch.

        Args:
          predictions: logits `[batch, classes]`, of which the largest counts; or classes `[batch]`, integers.
          labels: `[batch]`, integers.
          mask: `[batch]`, true for the examples that count; all of them if None.

        Raises:
          ValueError: the shapes do not fit.
        """
        predicted, labels = self._classes(predictions, labels)
        counted = counting(self, mask, labels.shape[0])
        known = is_class(labels, self.num_classes) & is_class(predicted, self.num_classes)
        empty = jnp.zeros([self.num_classes, self.num_classes], jnp.int32)
        entries = jnp.where(known, labels, 0), jnp.where(known, predicted, 0)
        self.matrix.add(empty.at[entries].add((known & counted).astype(jnp.int32))[None])
        self.examples.add(counted)

    @property
    def value(self) -> Integer[Array, "classes classes"]:
        """The counts so far; a row for each true class, a column for each predicted one.

        Raises:
          ValueError: a label or prediction was no class.
        """
        counts, examples = self.matrix.value, self.examples.value
        if not isinstance(counts, jax.core.Tracer):
            lost = int(examples) - int(np.asarray(counts).sum(dtype=np.int64))
            if lost:
                raise ValueError(
                    f"{lost} of {int(examples)} examples had a label or prediction outside of 0 .. {self.num_classes - 1}: "
                    "mask them, or raise num_classes"
                )
        return counts

    def per_class(self) -> ClassTable:
        """Returns precision, recall, F1 and support of each class."""
        counts = np.asarray(self.value).astype(np.float64)
        hits, predicted, support = counts.diagonal(), counts.sum(axis=0), counts.sum(axis=1)
        with np.errstate(invalid="ignore"):  # 0 / 0 is NaN, as it should be
            return ClassTable(
                hits / predicted, hits / support, 2 * hits / (predicted + support), support.astype(np.int64)
            )

    def _classes(self, predictions: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
        predictions = jnp.asarray(predictions)
        if predictions.ndim == 2:
            logits, labels = classified(predictions, labels)
            if logits.shape[1] != self.num_classes:
                raise ValueError(f"{self!r} expects logits [batch, {self.num_classes}], got {summarize(predictions)}")
            return logits.argmax(axis=1), labels
        labels = jnp.asarray(labels)
        both = (predictions, labels)
        if (
            predictions.shape != labels.shape
            or labels.ndim != 1
            or not all(jnp.issubdtype(a.dtype, jnp.integer) for a in both)
        ):
            raise ValueError(
                f"{self!r} expects logits [batch, classes] or integer predictions [batch], and integer labels [batch]; got "
                f"{summarize(predictions)} and {summarize(labels)}"
            )
        return predictions.astype(jnp.int32), labels.astype(jnp.int32)
