"""Normalization layers against float64 NumPy, and the laws of their statistics."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import modulekit as mk

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.normal(1.0, 2.0, size=(3, 4, 5, 6)).astype(np.float32)
ROWS = RANDOM.normal(1.0, 2.0, size=(7, 6)).astype(np.float32)
EPS = 1e-5


def standardized(x: Any, axes: tuple[int, ...], eps: float = EPS) -> np.ndarray:
    """The reference: `(x - mean) / sqrt(variance + eps)` in float64."""
    x = np.asarray(x, np.float64)
    return (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + eps)


def first(x: np.ndarray) -> np.ndarray:
    """Returns an array with the channels moved from last to right behind the batch."""
    return np.moveaxis(x, -1, 1)


CASES: dict[str, tuple[Callable[[], Any], np.ndarray, Callable[[], np.ndarray]]] = {
    "layer": (lambda: mk.LayerNorm(-1, True, True), IMAGES, lambda: standardized(IMAGES, (3,))),
    "layer over all": (lambda: mk.LayerNorm(slice(1, None), True, True), IMAGES, lambda: standardized(IMAGES, (1, 2, 3))),
    "layer over some": (lambda: mk.LayerNorm([1, 2], True, True), IMAGES, lambda: standardized(IMAGES, (1, 2))),
    "layer, channels first": (
        lambda: mk.LayerNorm(1, True, True, data_format="NCHW"), first(IMAGES), lambda: standardized(first(IMAGES), (1,)),
    ),
    "instance": (lambda: mk.InstanceNorm(True, True), IMAGES, lambda: standardized(IMAGES, (1, 2))),
    "instance, channels first": (
        lambda: mk.InstanceNorm(True, True, data_format="channels_first"), first(IMAGES),
        lambda: standardized(first(IMAGES), (2, 3)),
    ),
    "group": (
        lambda: mk.GroupNorm(2), IMAGES,
        lambda: standardized(IMAGES.reshape(3, 4, 5, 2, 3), (1, 2, 4)).reshape(IMAGES.shape),
    ),
    "group, channels first": (
        lambda: mk.GroupNorm(3, data_format="NCHW"), first(IMAGES),
        lambda: standardized(first(IMAGES).reshape(3, 3, 2, 4, 5), (2, 3, 4)).reshape(first(IMAGES).shape),
    ),
    "group over channels": (
        lambda: mk.GroupNorm(2, axis=-1 % 4), IMAGES,
        lambda: standardized(IMAGES.reshape(3, 4, 5, 2, 3), (4,)).reshape(IMAGES.shape),
    ),
    "rms": (
        lambda: mk.RMSNorm(), ROWS,
        lambda: ROWS / np.sqrt(np.mean(ROWS.astype(np.float64) ** 2, axis=-1, keepdims=True) + EPS),
    ),
    "rms, channels first": (
        lambda: mk.RMSNorm(1, data_format="NCHW"), first(IMAGES),
        lambda: first(IMAGES) / np.sqrt(np.mean(first(IMAGES).astype(np.float64) ** 2, axis=1, keepdims=True) + EPS),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_formula_in_float64(name: str) -> None:
    make, x, expected = CASES[name]
    np.testing.assert_allclose(make()(x), expected(), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("name", CASES)
def test_scale_and_offset_are_applied_per_channel(name: str) -> None:
    make, x, expected = CASES[name]
    module = make()
    module(x)
    channels = np.arange(1.0, 7.0, dtype=np.float32)
    shaped = channels if module.data_format == "channels_last" else channels.reshape(6, 1, 1)
    module.scale.assign(shaped)
    wanted = expected() * shaped
    if getattr(module, "offset", None) is not None:
        module.offset.assign(-shaped)
        wanted = wanted - shaped
    np.testing.assert_allclose(module(x), wanted, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_stays_half_and_takes_its_moments_in_float32(name: str, dtype: Any) -> None:
    make, x, expected = CASES[name]
    module = make()
    y = module(jnp.asarray(x, dtype))
    assert (y.dtype, module.scale.dtype) == (dtype, dtype)
    np.testing.assert_allclose(np.asarray(y, np.float32), expected(), atol=4e-2)
    large = make()(jnp.asarray(300.0 * np.sign(x), dtype))
    assert bool(jnp.isfinite(large).all())


@pytest.mark.parametrize("name", CASES)
def test_gradients_against_finite_differences(name: str) -> None:
    make, x, _ = CASES[name]
    x = x[:1]
    module = make()
    module(x)
    weights = RANDOM.normal(size=x.shape).astype(np.float32)
    gradient = mk.grad(lambda x: jnp.sum(module(x) * weights))(jnp.asarray(x))
    for _ in range(4):
        index = tuple(int(RANDOM.integers(size)) for size in x.shape)
        step = np.zeros_like(x)
        step[index] = 1e-2
        ends = [float(np.sum(np.asarray(module(x + sign * step), np.float64) * weights)) for sign in (1, -1)]
        np.testing.assert_allclose(gradient[index], (ends[0] - ends[1]) / 2e-2, rtol=2e-2, atol=2e-3)


# Batch normalization.

BATCHES: dict[str, tuple[np.ndarray, str, tuple[int, ...]]] = {
    "rank 2": (ROWS, "channels_last", (0,)),
    "rank 3": (IMAGES[:, 0], "NWC", (0, 1)),
    "rank 4, channels last": (IMAGES, "NHWC", (0, 1, 2)),
    "rank 4, channels first": (first(IMAGES), "NCHW", (0, 2, 3)),
    "rank 5": (IMAGES[..., None, :], "channels_last", (0, 1, 2, 3)),
}


@pytest.mark.parametrize("name", BATCHES)
def test_batch_normalization_in_training_and_after_it(name: str) -> None:
    x, data_format, axes = BATCHES[name]
    norm = mk.BatchNorm(True, True, decay_rate=0.9, data_format=data_format)
    wide = x.astype(np.float64)
    count = wide.size // 6
    unbiased = count / (count - 1) if name == "rank 4, channels last" else 1.0
    hidden = [0.0, 0.0]
    for step in range(1, 4):
        batch = (wide * step).astype(np.float32)
        np.testing.assert_allclose(norm(batch, is_training=True), standardized(batch, axes), rtol=2e-5, atol=2e-5)
        statistics = [batch.mean(axes, keepdims=True), batch.astype(np.float64).var(axes, keepdims=True) * unbiased]
        hidden = [0.9 * h + 0.1 * s for h, s in zip(hidden, statistics, strict=True)]
        mean, variance = (h / (1 - 0.9**step) for h in hidden)
        np.testing.assert_allclose(norm.moving_mean.value, mean, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(norm.moving_variance.value, variance, rtol=1e-4)
    before = [v.numpy() for v in norm.variables]
    expected = (wide - mean) / np.sqrt(variance + EPS)
    np.testing.assert_allclose(norm(x, is_training=False), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(norm(x, False, test_local_stats=True), standardized(x, axes), rtol=2e-5, atol=2e-5)
    for variable, value in zip(norm.variables, before, strict=True):
        np.testing.assert_array_equal(variable.value, value)


@pytest.mark.parametrize("is_training", [True, False])
@pytest.mark.parametrize("local", [True, False])
def test_a_traced_choice_is_the_known_one(is_training: bool, local: bool) -> None:
    results = []
    for as_array in (lambda flag: flag, jnp.asarray):
        norm = mk.BatchNorm(True, True, decay_rate=0.9)
        norm(ROWS, is_training=True)
        compiled = mk.jit(lambda x, a, b, norm=norm: norm(x, a, b))
        y = compiled(ROWS * 3, as_array(is_training), as_array(local))
        results.append([y, *(v.value for v in norm.variables)])
    for known, traced in zip(*results, strict=True):
        np.testing.assert_allclose(traced, known, rtol=1e-5, atol=1e-6)


def test_no_gradient_passes_through_the_moving_statistics() -> None:
    norm = mk.BatchNorm(True, True)
    loss = lambda x: (norm(x, is_training=True), norm.moving_mean.value.sum())[1]  # noqa: E731
    np.testing.assert_array_equal(mk.grad(loss)(jnp.asarray(ROWS)), np.zeros_like(ROWS))


def test_frozen_statistics_do_not_drift() -> None:
    norm = mk.BatchNorm(True, True)
    norm(ROWS, is_training=True)
    frozen = [v.numpy() for v in norm.variables]
    norm.freeze()
    mk.jit(norm)(ROWS * 5, is_training=True)
    for variable, value in zip(norm.variables, frozen, strict=True):
        np.testing.assert_array_equal(variable.value, value)


def test_scale_and_offset_are_there_but_not_trained_where_they_are_not_created() -> None:
    norm = mk.BatchNorm(False, False, name="norm")
    norm(ROWS, is_training=True, scale=jnp.full([6], 2.0), offset=jnp.ones([6]))
    assert [v.name for v in norm.variables if v.ndim == 1] == ["norm/offset", "norm/scale"]
    assert norm.trainable_variables == ()
    given = norm(ROWS, is_training=True, scale=jnp.full([6], 2.0), offset=jnp.ones([6]))
    np.testing.assert_allclose(given, 2 * standardized(ROWS, (0,)) + 1, rtol=2e-5, atol=2e-5)


ERRORS: dict[str, tuple[Callable[[], Any], str]] = {
    "scale_init": (
        lambda: mk.BatchNorm(False, True, scale_init=mk.initializers.Ones()),
        "Cannot set `scale_init` if `create_scale=False`. Received: scale_init=Ones()",
    ),
    "axis": (
        lambda: mk.LayerNorm("channels", True, True),  # type: ignore[arg-type]
        "`axis` should be an int, slice or iterable of ints. Received: 'channels'",
    ),
    "given scale": (
        lambda: mk.LayerNorm(-1, True, True)(ROWS, scale=jnp.ones([6])),
        "LayerNorm(axis=-1, create_scale=True, create_offset=True): Cannot pass `scale` at call time if "
        "`create_scale=True`.",
    ),
    "groups": (
        lambda: mk.GroupNorm(4)(ROWS),
        "GroupNorm(groups=4): The number of channels must be divisible by the number of groups, was channels = 6, "
        "groups = 4",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_a_wrong_choice_is_explained(name: str) -> None:
    run, text = ERRORS[name]
    with pytest.raises(ValueError) as raised:
        run()
    assert str(raised.value) == text


def test_another_rank_than_in_the_first_call_is_refused() -> None:
    norm = mk.LayerNorm(-1, True, True)
    norm(IMAGES)
    with pytest.raises(ValueError) as raised:
        norm(ROWS)
    assert str(raised.value) == (
        f"{norm!r}: The rank of the inputs cannot change between calls, the original call was rank=4 but this call "
        "was rank=2."
    )
    assert not isinstance(norm.scale.value, jax.core.Tracer)
