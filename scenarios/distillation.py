"""Distillation: a student learns what teachers say about inputs, and not only which answer is right."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import modulekit as mk
from modulekit.data import Arrays
from modulekit.losses import check_labels
from modulekit.metrics import correct
from scenarios.base.calling import call_model
from scenarios.base.parts import variables_by_path
from scenarios.base.scenario import Scenario
from scenarios.supervised import Loss


class Distillation(Scenario):
    """Trains a student to predict what teachers predict: `min E[(1 - hard_weight) T^2 KL(p || q) + hard_weight loss(z, y)]`.

    `Distillation(steps, ...)(student, teachers, optimizer, data=inputs or (inputs, labels), eval_data=...)`. All are
    called with inputs and return logits `[batch, classes]`: the student `z`, of which `q = softmax(z / T)`; each
    teacher `v`, and `p` is the mean of their `softmax(v / T)`. `T^2` keeps the size of the gradient as T grows.
    `teachers` is one or a list; they are called with `is_training=False` where a call says so, and none of their
    variables or statistics ever changes. Freeze them (`teacher.freeze()`), and they do not count as parameters of the
    run either.

    Labels are needed for a `hard_weight` above 0 alone. The last part, `loss(logits, labels)`, returns one value per
    example, `[batch]`; without it, it is the softmax cross-entropy. An evaluation reports the loss, the share of
    examples on which the student's largest output is that of the teachers' mean (`agreement`), and with labels both
    accuracies.

    Args:
      steps: the number of updates.
      temperature: `T`; the higher, the more the teachers' small probabilities count.
      hard_weight: the share of the loss on labels, in [0, 1].
      **settings: see `scenarios.Settings`.

    Raises:
      ValueError: a setting is out of range.

    Source: Hinton, Vinyals and Dean, Distilling the knowledge in a neural network, 2015, section 2; there the
    divergence is a cross-entropy, which is larger by the entropy of `p` and has the same gradient.

    >>> import jax, modulekit as mk
    >>> x = jax.random.normal(jax.random.key(0), [60, 4])
    >>> teacher, student = mk.Linear(3), mk.Linear(3)
    >>> result = Distillation(300, batch_size=60, progress=False)(
    ...     student, teacher, mk.optimizers.Adam(0.05), data=x, eval_data=x)
    >>> result.metrics["loss"] < 1e-2, result.metrics["agreement"] > 0.9
    (True, True)
    """

    def __init__(self, steps: int, temperature: float = 2.0, hard_weight: float = 0.0, **settings: Any) -> None:
        super().__init__(steps, **settings)
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature={temperature}: expected a number above 0, by which logits are divided")
        if not 0 <= hard_weight <= 1:
            raise ValueError(f"hard_weight={hard_weight} is outside [0, 1]: it is the share of the loss on labels")
        self.temperature = temperature
        self.hard_weight = hard_weight

    def update(
        self, batch: Any, *, student: Any, teachers: Any, optimizer: mk.Optimizer, loss: Loss | None = None
    ) -> Mapping[str, Any]:
        """Takes one step down the gradient in the student's variables; returns the loss before it."""
        inputs, labels = inputs_and_labels(batch)
        softened = teachers_log_probabilities(teachers, inputs, self.temperature)

        def mean() -> Any:
            return self._losses(call_model(student, inputs, True), softened, labels, loss).mean()

        return {"loss": optimizer.minimize(mean, student, weight=len(softened))}

    def evaluate(
        self, batch: Any, *, student: Any, teachers: Any, optimizer: mk.Optimizer, loss: Loss | None = None
    ) -> Mapping[str, Any]:
        """Returns the loss of each example, whether student and teachers agree, and with labels whether they are right."""
        inputs, labels = inputs_and_labels(batch)
        logits = call_model(student, inputs, False)
        softened = teachers_log_probabilities(teachers, inputs, self.temperature)
        taught = teachers_log_probabilities(teachers, inputs, 1.0)
        values = {
            "loss": self._losses(logits, softened, labels, loss),
            "agreement": correct(logits, taught.argmax(axis=1)),
        }
        if labels is not None:
            values |= {"accuracy": correct(logits, labels), "teacher_accuracy": correct(taught, labels)}
        return values

    def check(
        self,
        data: Arrays | None,
        eval_data: Arrays | None,
        *,
        student: Any,
        teachers: Any,
        optimizer: mk.Optimizer,
        loss: Loss | None = None,
    ) -> None:
        """Raises `ValueError` where the student shares variables with a teacher, or a label is no class."""
        named = {f"teachers[{index}]": teacher for index, teacher in enumerate(listed(teachers))}
        taught = variables_by_path(named)
        own = set(variables_by_path({"student": student}).values())
        shared = [path for path, variable in taught.items() if variable in own]
        if shared:
            raise ValueError(
                f"the student shares {', '.join(shared)} with a teacher, which would change with it: give the student "
                "variables of its own (copy.deepcopy)"
            )
        for which, examples in (("data", data), ("eval_data", eval_data)):
            inputs, labels = (None, None) if examples is None else inputs_and_labels(examples.arrays)
            if labels is not None and np.issubdtype(labels.dtype, np.integer):
                example = jax.tree.map(lambda a: jax.ShapeDtypeStruct((1, *a.shape[1:]), a.dtype), inputs)
                outputs = mk.eval_shape(lambda x: call_model(student, x, False), example)
                try:
                    check_labels(labels, outputs.shape[-1])
                except ValueError as error:
                    raise ValueError(f"{which}[1]: {error}") from None

    def _losses(self, logits: Any, softened: Any, labels: Any, loss: Loss | None) -> jax.Array:
        """Returns the loss of each example, `[batch]`."""
        if logits.shape != softened.shape:
            raise ValueError(
                f"the student returns logits {list(logits.shape)}, and the teachers {list(softened.shape)}: they must have "
                "the same classes, [batch, classes]"
            )
        soft = self.temperature**2 * divergence(softened, jax.nn.log_softmax(logits / self.temperature))
        if not self.hard_weight:
            return soft
        if labels is None:
            raise ValueError(
                f"hard_weight={self.hard_weight} needs labels: data=(inputs, labels), and eval_data likewise; or pass "
                "hard_weight=0"
            )
        hard = (mk.losses.softmax_cross_entropy if loss is None else loss)(logits, labels)
        return (1 - self.hard_weight) * soft + self.hard_weight * hard


def inputs_and_labels(batch: Any) -> tuple[Any, Any]:
    """Returns `(inputs, labels)` of a pair; of anything else, `(batch, None)`.

    >>> inputs_and_labels((1, 2)), inputs_and_labels({"x": 1})
    ((1, 2), ({'x': 1}, None))
    """
    if isinstance(batch, tuple | list) and len(batch) == 2:
        return batch[0], batch[1]
    return batch, None


def listed(teachers: Any) -> Sequence[Any]:
    """Returns the teachers, of which there is one or a list; raises `ValueError` if there is none."""
    if not isinstance(teachers, tuple | list):
        return [teachers]
    if not teachers:
        raise ValueError("teachers=[]: pass at least one teacher")
    return teachers


def teachers_log_probabilities(teachers: Any, inputs: Any, temperature: float) -> jax.Array:
    """Returns `log(1/n sum_i softmax(v_i / T))`, `[batch, classes]`, where `v_i` are the logits of teacher i.

    Args:
      teachers: one or a list.
      inputs: of all of them.
      temperature: `T`.

    Raises:
      ValueError: a teacher returns something else than the first, or there is none.

    >>> even, sure = lambda x: jnp.zeros([1, 2]), lambda x: jnp.array([[99.0, 0.0]])
    >>> jnp.exp(teachers_log_probabilities([even, sure], None, 1.0)).round(2).tolist()
    [[0.75, 0.25]]
    """
    outputs = [call_model(teacher, inputs, False) for teacher in listed(teachers)]
    for index, output in enumerate(outputs):
        if output.ndim != 2 or output.shape != outputs[0].shape:
            raise ValueError(
                f"teachers[{index}] returns {list(output.shape)}, and teachers[0] {list(outputs[0].shape)}: all must return "
                "logits [batch, classes] of the same classes"
            )
    each = jnp.stack([jax.nn.log_softmax(output / temperature) for output in outputs])
    return jax.scipy.special.logsumexp(each, axis=0) - math.log(len(outputs))


def divergence(log_p: Any, log_q: Any) -> jax.Array:
    """Returns `KL(p || q) = sum_c p_c (log p_c - log q_c)` of each example in nats, `[batch]`.

    Args:
      log_p: `[batch, classes]`.
      log_q: `[batch, classes]`.

    >>> divergence(jnp.log(jnp.array([[0.5, 0.5]])), jnp.log(jnp.array([[0.5, 0.5]]))).tolist()
    [0.0]
    """
    return (jnp.exp(log_p) * (log_p - log_q)).sum(axis=-1)
