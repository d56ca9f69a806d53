"""Laws of distillation: the student follows what teachers say, and teachers stay as they are."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scenario_catalogue import assert_bitwise, exactly

import modulekit as mk
import scenarios
from scenarios.distillation import teachers_log_probabilities

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=[60, 4]).astype(np.float32)
Y = X[:, :3].argmax(axis=1).astype(np.int32)


class Normalized(mk.Module):
    """A teacher with batch normalization and dropout, which says what it was asked."""

    def __init__(self, name: str | None = None) -> None:
        super().__init__(name=name)
        self.linear = mk.Linear(3)
        self.norm = mk.BatchNorm(create_scale=True, create_offset=True)
        self.dropout = mk.Dropout(0.5)

    def __call__(self, x: Any, is_training: bool) -> Any:
        return self.dropout(self.norm(self.linear(x), is_training=is_training), is_training=is_training)


def linear(name: str, scale: float = 1.0) -> mk.Linear:
    layer = mk.Linear(3, name=name)
    mk.build(layer, [1, 4])
    layer.w.assign(scale * layer.w.value)
    return layer


def distill(student: Any, teachers: Any, data: Any = X, steps: int = 8, **settings: Any) -> scenarios.Result:
    options = {"batch_size": 20, "progress": False, "log_interval": 1, **settings}
    return scenarios.Distillation(steps, **options)(
        student, teachers, mk.optimizers.SGD(0.5), data=data, eval_data=data
    )


def softmax(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def logits(layer: mk.Linear) -> np.ndarray:
    return X.astype(np.float64) @ layer.w.numpy().astype(np.float64) + layer.b.numpy().astype(np.float64)


def state(*modules: mk.Module) -> dict[str, np.ndarray]:
    return {f"{n}.{path}": v.numpy() for n, module in enumerate(modules) for path, v in module.paths().items()}


@pytest.mark.parametrize("hard_weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("temperature", [0.5, 4.0])
def test_an_evaluation_is_its_formula_in_float64(temperature: float, hard_weight: float) -> None:
    student, teachers = linear("student"), [linear("first", 3.0), linear("second", 2.0)]
    metrics = distill(student, teachers, (X, Y), 0, temperature=temperature, hard_weight=hard_weight).metrics
    p = np.mean([softmax(logits(teacher) / temperature) for teacher in teachers], axis=0)
    q = softmax(logits(student) / temperature)
    soft = temperature**2 * (p * np.log(p / q)).sum(axis=1)
    hard = -np.log(softmax(logits(student)))[np.arange(60), Y]
    mean = np.mean([softmax(logits(teacher)) for teacher in teachers], axis=0)
    expected = {
        "loss": ((1 - hard_weight) * soft + hard_weight * hard).mean(),
        "agreement": (logits(student).argmax(axis=1) == mean.argmax(axis=1)).mean(),
        "accuracy": (logits(student).argmax(axis=1) == Y).mean(),
        "teacher_accuracy": (mean.argmax(axis=1) == Y).mean(),
    }
    assert metrics.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)


def test_training_equals_handwritten_jax() -> None:
    student, teacher, temperature, weight = linear("student"), linear("teacher", 3.0), 3.0, 0.25
    values = [jnp.asarray(student.w.numpy()), jnp.asarray(student.b.numpy())]
    v, c = jnp.asarray(teacher.w.numpy()), jnp.asarray(teacher.b.numpy())

    def loss(values: Any, x: Any, y: Any) -> Any:
        z = x @ values[0] + values[1]
        p = jax.nn.softmax((x @ v + c) / temperature)
        soft = -(temperature**2) * (p * jax.nn.log_softmax(z / temperature)).sum(
            axis=1
        )  # a cross-entropy: same gradient
        hard = optax.softmax_cross_entropy_with_integer_labels(z, y)
        return jnp.mean((1 - weight) * soft + weight * hard)

    for rows in mk.data.batch_indices(60, 20, 0, 0, 8):
        gradients = jax.grad(loss)(values, X[rows], Y[rows])
        values = [value - 0.5 * gradient for value, gradient in zip(values, gradients, strict=True)]
    distill(student, teacher, (X, Y), temperature=temperature, hard_weight=weight)
    np.testing.assert_allclose(student.w.numpy(), values[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(student.b.numpy(), values[1], rtol=1e-5, atol=1e-6)


def test_at_a_high_temperature_the_gradient_is_the_difference_of_centered_logits() -> None:
    """Hinton et al., eq. 4: with the factor T^2, `dC/dz = (z - v) / classes` for logits whose mean is zero."""
    student, teacher = linear("student"), linear("teacher", 2.0)
    before, b = logits(student), student.b.numpy()
    distill(student, teacher, steps=1, temperature=1000.0, batch_size=60)
    center = lambda values: values - values.mean(axis=1, keepdims=True)  # noqa: E731
    gradient = (center(before) - center(logits(teacher))).mean(axis=0) / 3
    np.testing.assert_allclose((b - student.b.numpy()) / 0.5, gradient, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("steps_per_call", [1, 50])
def test_teachers_and_their_statistics_stay_bitwise_as_they_are(steps_per_call: int) -> None:
    teachers = [Normalized("first"), Normalized("second")]
    for teacher in teachers:
        for _ in range(3):
            teacher(3 * X + 1, is_training=True)
    before = state(*teachers)
    assert any("norm" in path and value.size for path, value in before.items())
    student = Normalized("student")
    distill(student, teachers, (X, Y), hard_weight=0.5, steps_per_call=steps_per_call)
    assert_bitwise(state(*teachers), before)
    assert any((value != 0).any() for path, value in state(student).items() if "moving_mean" in path)


def test_teachers_do_not_drop_out() -> None:
    teacher = Normalized()
    teacher(X, is_training=True)
    expected = jax.nn.log_softmax(teacher(X, is_training=False))
    np.testing.assert_allclose(teachers_log_probabilities(teacher, X, 1.0), expected, rtol=1e-6)


def test_frozen_teachers_do_not_count_as_parameters() -> None:
    teacher = linear("teacher")
    teacher.freeze()
    assert distill(linear("student"), teacher, steps=1).parameters == 4 * 3 + 3


def test_one_teacher_is_a_list_of_one_bitwise() -> None:
    found = []
    for listed in (False, True):
        mk.seed(0)
        student, teacher = linear("student"), linear("teacher", 3.0)
        distill(student, [teacher] if listed else teacher)
        found.append(state(student))
    assert_bitwise(*found)


def test_the_order_of_teachers_does_not_matter() -> None:
    teachers = [linear(f"teacher_{index}", 2.0 + index) for index in range(3)]
    found = [teachers_log_probabilities(order, X, 2.0) for order in (teachers, teachers[::-1])]
    np.testing.assert_allclose(*found, rtol=1e-6, atol=1e-7)


def test_a_student_learns_to_agree_without_any_label() -> None:
    student, teacher = linear("student", 0.1), linear("teacher", 3.0)
    result = distill(student, teacher, steps=300)
    assert result.metrics.keys() == {"loss", "agreement"}
    assert result.metrics["agreement"] > 0.95
    assert result.metrics["loss"] < 0.02


def test_with_the_hard_loss_alone_it_is_supervised_learning() -> None:
    mk.seed(0)
    student, teacher, plain = linear("student"), linear("teacher"), linear("plain")
    plain.assign({path: v.numpy() for path, v in student.paths().items()})
    distill(student, teacher, (X, Y), hard_weight=1.0)
    run = scenarios.Supervised(8, batch_size=20, progress=False)
    run(plain, mk.optimizers.SGD(0.5), mk.losses.softmax_cross_entropy, data=(X, Y))
    np.testing.assert_allclose(student.w.numpy(), plain.w.numpy(), rtol=1e-6, atol=1e-7)


def test_the_hard_loss_may_be_another() -> None:
    student, teacher = linear("student"), linear("teacher")
    run = scenarios.Distillation(0, hard_weight=1.0, batch_size=20, progress=False)
    parts = (student, teacher, mk.optimizers.SGD(0.5), lambda z, y: jnp.square(z - jax.nn.one_hot(y, 3)).sum(axis=1))
    found = run(*parts, data=(X, Y), eval_data=(X, Y)).metrics["loss"]
    np.testing.assert_allclose(found, np.square(logits(student) - np.eye(3)[Y]).sum(axis=1).mean(), rtol=1e-5)


def test_a_temperature_must_be_positive() -> None:
    for temperature in (0.0, -1.0, math.inf, math.nan):
        message = f"temperature={temperature}: expected a number above 0, by which logits are divided"
        with pytest.raises(ValueError, match=exactly(message)):
            scenarios.Distillation(3, temperature=temperature)


def test_a_weight_is_a_share() -> None:
    message = "hard_weight=1.5 is outside [0, 1]: it is the share of the loss on labels"
    with pytest.raises(ValueError, match=exactly(message)):
        scenarios.Distillation(3, hard_weight=1.5)


def check_refused(message: str, *args: Any, **kwargs: Any) -> None:
    with pytest.raises(ValueError) as caught:
        distill(*args, **kwargs)
    assert message in str(caught.value)


def test_what_does_not_fit_is_refused() -> None:
    student = linear("student")
    needed = "hard_weight=0.5 needs labels: data=(inputs, labels), and eval_data likewise; or pass hard_weight=0"
    check_refused(needed, student, linear("teacher"), hard_weight=0.5)
    check_refused("teachers=[]: pass at least one teacher", student, [])
    check_refused(
        "the student returns logits [20, 3], and the teachers [20, 5]: they must have the same classes, [batch, classes]",
        student, mk.Linear(5),
    )  # fmt: skip
    check_refused(
        "teachers[1] returns [20, 5], and teachers[0] [20, 3]: all must return logits [batch, classes] of the same classes",
        student, [linear("teacher"), mk.Linear(5)],
    )  # fmt: skip
    check_refused(
        "data[1]: label 3 at index 0 is out of range: 3 classes are 0 .. 2", student, linear("t"), (X, Y * 0 + 3)
    )


def test_a_student_that_shares_a_variable_with_a_teacher_is_refused_and_it_is_named() -> None:
    student, teacher = linear("student"), linear("teacher")
    teacher.w = student.w
    check_refused(
        "the student shares teachers[1].w with a teacher, which would change with it: give the student variables of its own",
        student, [linear("other"), teacher],
    )  # fmt: skip
