"""Losses against their formulas in float64, at the edges, and in what they refuse."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import modulekit as mk
from modulekit import losses

quick = settings(deadline=None, max_examples=40)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def per_example(values: np.ndarray) -> np.ndarray:
    return values.reshape(len(values), -1).mean(axis=1)


def softmax_reference(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """`-sum_c p_c log softmax(logits)_c`, in float64."""
    logs = log_softmax(np.asarray(logits, np.float64))
    if np.issubdtype(labels.dtype, np.integer):
        return per_example(-np.take_along_axis(logs, labels[..., None].astype(np.int64), axis=-1))
    return per_example(-(labels.astype(np.float64) * logs).sum(axis=-1))


def sigmoid_reference(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """`-t log s - (1 - t) log(1 - s)`, in float64."""
    logits, targets = np.asarray(logits, np.float64), np.asarray(targets, np.float64)
    return per_example(targets * np.logaddexp(0, -logits) + (1 - targets) * np.logaddexp(0, logits))


def squared_reference(predictions: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """`(prediction - target)^2`, in float64."""
    return per_example(np.square(np.asarray(predictions, np.float64) - np.asarray(targets, np.float64)))


def example(shape: tuple[int, ...], kind: str) -> np.ndarray:
    """Random inputs of one kind."""
    generator = np.random.default_rng([*map(ord, kind), *shape])
    if kind == "classes":
        return generator.integers(shape[-1], size=shape[:-1]).astype(np.int32)
    values = generator.normal(size=shape) * 2
    if kind == "distribution":
        values = np.exp(values) / np.exp(values).sum(axis=-1, keepdims=True)
    if kind == "shares":
        values = generator.uniform(size=shape)
    return values.astype(np.float32)


SHAPES = [(1, 2), (5, 4), (3, 6, 4), (2, 3, 2, 5)]
CASES: dict[str, tuple[Callable[..., Any], Callable[..., np.ndarray], str]] = {
    "integers": (losses.softmax_cross_entropy, softmax_reference, "classes"),
    "distributions": (losses.softmax_cross_entropy, softmax_reference, "distribution"),
    "sigmoid": (losses.sigmoid_cross_entropy, sigmoid_reference, "shares"),
    "squared": (losses.squared_error, squared_reference, "values"),
}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_values_are_those_of_the_formula(case: str, shape: tuple[int, ...]) -> None:
    loss, reference, kind = CASES[case]
    predictions, targets = example(shape, "predictions"), example(shape, kind)
    expected = reference(predictions, targets)
    for run in (loss, mk.jit(loss), jax.jit(loss)):
        values = run(jnp.asarray(predictions), jnp.asarray(targets))
        assert values.shape == shape[:1]
        assert values.dtype == jnp.float32
        np.testing.assert_allclose(values, expected, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_gradients_are_finite_differences_of_the_formula(case: str, shape: tuple[int, ...]) -> None:
    loss, reference, kind = CASES[case]
    predictions, targets = example(shape, "predictions"), example(shape, kind)
    weights = np.random.default_rng(0).normal(size=shape[0])
    given_weights = jnp.asarray(weights, jnp.float32)
    gradient = jax.grad(lambda p: (loss(p, targets) * given_weights).sum())(jnp.asarray(predictions))
    exact, step = predictions.astype(np.float64), 1e-5
    differences = np.zeros(shape)
    for index in np.ndindex(shape):
        moved = [exact.copy(), exact.copy()]
        moved[0][index] += step
        moved[1][index] -= step
        up, down = (float((reference(value, targets) * weights).sum()) for value in moved)
        differences[index] = (up - down) / (2 * step)
    np.testing.assert_allclose(gradient, differences, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("size", [1e4, 1e30])
def test_extreme_logits_do_not_overflow(size: float) -> None:
    logits = np.array([[size, -size, 0.0], [-size, size, 0.0]], np.float32)
    classes = np.array([1, 1], np.int32)
    spread = np.array([[0.25, 0.5, 0.25], [0.0, 1.0, 0.0]], np.float32)
    ones = np.array([[1.0, 0.0, 0.5], [0.0, 1.0, 0.5]], np.float32)
    for loss, reference, targets in (
        (losses.softmax_cross_entropy, softmax_reference, classes),
        (losses.softmax_cross_entropy, softmax_reference, spread),
        (losses.sigmoid_cross_entropy, sigmoid_reference, ones),
        (losses.sigmoid_cross_entropy, sigmoid_reference, 1 - ones),
    ):
        values, gradient = jax.value_and_grad(lambda z, f=loss, t=targets: f(z, t).sum())(jnp.asarray(logits))
        np.testing.assert_allclose(values, reference(logits, targets).sum(), rtol=1e-6)
        assert np.isfinite(gradient).all()
        assert np.abs(gradient).max() <= 1.0 + 1e-6


def test_impossible_classes_of_no_weight_cost_nothing() -> None:
    logits = jnp.array([[0.0, -jnp.inf, 0.0]])
    np.testing.assert_allclose(losses.softmax_cross_entropy(logits, jnp.array([[0.5, 0.0, 0.5]])), np.log(2), rtol=1e-6)
    np.testing.assert_allclose(losses.softmax_cross_entropy(logits, jnp.array([2])), np.log(2), rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.int32, np.uint32], ids=lambda d: d.__name__)
@pytest.mark.parametrize("classes", [10, 128, 256, 300, 40_000])
def test_labels_of_any_integer_dtype(classes: int, dtype: Any) -> None:
    labels = np.array([0, 7, min(classes, np.iinfo(dtype).max + 1) - 1], dtype)
    logits = example((3, classes), "predictions")
    expected = softmax_reference(logits, labels)
    np.testing.assert_allclose(losses.softmax_cross_entropy(logits, labels), expected, rtol=2e-6, atol=1e-6)
    np.testing.assert_allclose(mk.jit(losses.softmax_cross_entropy)(logits, labels), expected, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=lambda d: jnp.dtype(d).name)
@pytest.mark.parametrize("case", CASES)
def test_half_precision(case: str, dtype: Any) -> None:
    loss, reference, kind = CASES[case]
    predictions, targets = jnp.asarray(example((4, 5), "predictions"), dtype), example((4, 5), kind)
    if kind == "values":
        targets = jnp.asarray(targets, dtype)
    values = loss(predictions, targets)
    assert values.shape == (4,)
    expected = reference(np.asarray(predictions).astype(np.float64), np.asarray(targets).astype(np.float32)
                         if kind == "values" else targets)  # fmt: skip
    np.testing.assert_allclose(np.asarray(values).astype(np.float64), expected, rtol=4 * float(jnp.finfo(dtype).eps))


@pytest.mark.parametrize("wrong", [-1, 4, 1000])
def test_an_unknown_label_is_named(wrong: int) -> None:
    logits = jnp.zeros([3, 4])
    with pytest.raises(ValueError, match="label") as caught:
        losses.softmax_cross_entropy(logits, jnp.array([0, 3, wrong]))
    assert str(caught.value) == f"label {wrong} at index 2 is out of range: 4 classes are 0 .. 3"
    with pytest.raises(ValueError, match="label") as caught:
        losses.softmax_cross_entropy(jnp.zeros([2, 2, 4]), jnp.array([[0, 1], [wrong, wrong]]))
    assert str(caught.value) == f"label {wrong} at index (1, 0) is out of range: 4 classes are 0 .. 3"


@pytest.mark.parametrize("wrong", [-1, 4, 1000])
def test_an_unknown_label_is_not_a_number_in_compiled_code(wrong: int) -> None:
    for compiled in (mk.jit(losses.softmax_cross_entropy), jax.jit(losses.softmax_cross_entropy)):
        values = np.asarray(compiled(jnp.zeros([3, 4]), jnp.array([0, wrong, 3])))
        assert np.isnan(values).tolist() == [False, True, False]
        np.testing.assert_allclose(values[[0, 2]], np.log(4), rtol=1e-6)


SHAPE_ERRORS = [
    (
        lambda: losses.softmax_cross_entropy(jnp.zeros([4]), jnp.array(1)),
        "softmax_cross_entropy expects logits of shape [batch, ..., classes], got float32[4]",
    ),
    (
        lambda: losses.softmax_cross_entropy(jnp.zeros([3, 4]), jnp.array([1, 2])),
        "softmax_cross_entropy expects integer labels of shape [3] for logits of shape [3, 4], got int32[2]",
    ),
    (
        lambda: losses.softmax_cross_entropy(jnp.zeros([3, 4]), jnp.zeros([3, 4], jnp.int32)),
        "softmax_cross_entropy expects integer labels of shape [3] for logits of shape [3, 4], got int32[3,4]",
    ),
    (
        lambda: losses.softmax_cross_entropy(jnp.zeros([3, 4]), jnp.zeros([3, 1])),
        "softmax_cross_entropy expects predictions and targets of one shape, got float32[3,4] and float32[3,1]; "
        "the numbers of classes are integers",
    ),
    (
        lambda: losses.softmax_cross_entropy(jnp.zeros([3, 4]), jnp.zeros([3])),
        "softmax_cross_entropy expects predictions and targets of one shape, got float32[3,4] and float32[3]; "
        "the numbers of classes are integers",
    ),
    (
        lambda: losses.sigmoid_cross_entropy(jnp.zeros([3, 1]), jnp.zeros([3])),
        "sigmoid_cross_entropy expects predictions and targets of one shape, got float32[3,1] and float32[3]",
    ),
    (
        lambda: losses.squared_error(jnp.zeros([3, 1]), jnp.zeros([3])),
        "squared_error expects predictions and targets of one shape, got float32[3,1] and float32[3]",
    ),
]


@pytest.mark.parametrize(("call", "text"), SHAPE_ERRORS)
def test_shapes_that_do_not_fit_are_refused(call: Callable[[], Any], text: str) -> None:
    for run in (call, lambda: mk.jit(call)()):
        with pytest.raises(ValueError, match="expects") as caught:
            run()
        assert str(caught.value) == text


@pytest.mark.parametrize("loss", [losses.sigmoid_cross_entropy, losses.squared_error])
def test_a_scalar_has_no_batch_axis(loss: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="expects"):
        loss(jnp.array(1.0), jnp.array(0.5))


def test_targets_may_be_bytes() -> None:
    targets = np.array([[0, 1], [1, 1]], np.uint8)
    predictions = example((2, 2), "predictions")
    np.testing.assert_allclose(
        losses.sigmoid_cross_entropy(predictions, targets), sigmoid_reference(predictions, targets), rtol=1e-6
    )
    np.testing.assert_allclose(
        losses.squared_error(predictions, targets), squared_reference(predictions, targets), rtol=1e-6
    )


@st.composite
def matrices(draw: st.DrawFn) -> np.ndarray:
    """`[batch, classes]` of float32 from -50 to 50."""
    rows, columns = draw(st.integers(1, 4)), draw(st.integers(2, 4))
    entries = st.lists(st.floats(-50, 50, width=32), min_size=rows * columns, max_size=rows * columns)
    return np.array(draw(entries), np.float32).reshape(rows, columns)


@quick
@given(logits=matrices(), shift=st.floats(-50, 50, width=32), data=st.data())
def test_softmax_cross_entropy_obeys_its_laws(logits: np.ndarray, shift: float, data: st.DataObject) -> None:
    rows, classes = logits.shape
    labels = np.array(data.draw(st.lists(st.integers(0, classes - 1), min_size=rows, max_size=rows)), np.int32)
    values = np.asarray(losses.softmax_cross_entropy(logits, labels))
    assert (values >= 0).all()
    one_hot = np.eye(classes, dtype=np.float32)[labels]
    np.testing.assert_allclose(losses.softmax_cross_entropy(logits, one_hot), values, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(losses.softmax_cross_entropy(logits + shift, labels), values, rtol=1e-4, atol=1e-4)
    order = np.array(data.draw(st.permutations(range(classes))))
    renamed = np.argsort(order)[labels].astype(np.int32)
    np.testing.assert_allclose(losses.softmax_cross_entropy(logits[:, order], renamed), values, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(values, softmax_reference(logits, labels), rtol=1e-5, atol=1e-5)


@quick
@given(logits=matrices(), data=st.data())
def test_sigmoid_cross_entropy_obeys_its_laws(logits: np.ndarray, data: st.DataObject) -> None:
    shares = st.lists(st.floats(0, 1, width=32), min_size=logits.size, max_size=logits.size)
    targets = np.array(data.draw(shares), np.float32).reshape(logits.shape)
    values = np.asarray(losses.sigmoid_cross_entropy(logits, targets))
    assert (values >= 0).all()
    np.testing.assert_allclose(losses.sigmoid_cross_entropy(-logits, 1 - targets), values, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(values, sigmoid_reference(logits, targets), rtol=1e-5, atol=1e-6)


@quick
@given(first=matrices(), data=st.data())
def test_each_example_stands_alone(first: np.ndarray, data: st.DataObject) -> None:
    second = np.float32(data.draw(st.floats(-1, 1, width=32))) * first
    for loss in (losses.squared_error, lambda p, t: losses.sigmoid_cross_entropy(p, np.abs(t) / 50)):
        together = np.asarray(loss(first, second))
        alone = np.concatenate([loss(first[i : i + 1], second[i : i + 1]) for i in range(len(first))])
        np.testing.assert_allclose(together, alone, rtol=1e-6)
    np.testing.assert_array_equal(losses.squared_error(first, first), np.zeros(len(first)))
    np.testing.assert_array_equal(losses.squared_error(first, second), losses.squared_error(second, first))
