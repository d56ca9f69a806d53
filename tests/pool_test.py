"""Pooling against plain loops in float64."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from references import HALF, channels_first, channels_last, difference_quotient, exact, normal, positions, same_padding

import modulekit as mk
from modulekit import pad
from modulekit.core.explain import summarize

POOLS: dict[str, tuple[Any, Any, Callable[[np.ndarray], Any]]] = {
    "avg": (mk.avg_pool, mk.AvgPool, lambda elements: sum(elements) / len(elements)),
    "max": (mk.max_pool, mk.MaxPool, max),
}
every_pool = pytest.mark.parametrize("kind", POOLS)


def each(value: Any, n: int) -> Any:
    return value if isinstance(value, list) else [value] * n


def expected(kind: str, x: np.ndarray, window_shape: Any, strides: Any = 1, padding: Any = "VALID") -> np.ndarray:
    """Gathers what each window meets of `[batch, *spatial, channels]`, one element after the other."""
    sizes, reduce = x.shape[1:-1], POOLS[kind][2]
    n = len(sizes)
    window, steps = each(window_shape, n), each(strides, n)
    if padding == "SAME":
        pairs = [same_padding(sizes[a], window[a], steps[a]) for a in range(n)]
    else:
        pairs = (
            [(0, 0)] * n
            if padding == "VALID"
            else [p(w) if callable(p) else p for p, w in zip(each(padding, n), window, strict=True)]
        )
    counts = [(sizes[a] + sum(pairs[a]) - window[a]) // steps[a] + 1 for a in range(n)]
    y = np.zeros([len(x), *counts, x.shape[-1]])
    for p in positions(counts):
        starts = [p[a] * steps[a] - pairs[a][0] for a in range(n)]
        met = [tuple(s + k for s, k in zip(starts, offset, strict=True)) for offset in positions(window)]
        met = [at for at in met if all(0 <= i < size for i, size in zip(at, sizes, strict=True))]
        for example in range(len(x)):
            for channel in range(x.shape[-1]):
                y[(example, *p, channel)] = reduce([x[(example, *at, channel)] for at in met])
    return y


CASES: list[tuple[tuple[int, ...], dict[str, Any]]] = [
    ((2, 7, 2), {"window_shape": 3}),
    ((2, 7, 2), {"window_shape": 3, "strides": 2, "padding": "SAME"}),
    ((2, 7, 1), {"window_shape": 2, "strides": 3}),
    ((2, 7, 1), {"window_shape": 7}),
    ((2, 3, 1), {"window_shape": 5, "padding": "SAME"}),
    ((2, 7, 1), {"window_shape": 3, "padding": pad.causal}),
    ((2, 5, 4, 2), {"window_shape": 2, "strides": 2}),
    ((2, 5, 4, 2), {"window_shape": [3, 2], "strides": [2, 1], "padding": "SAME"}),
    ((1, 5, 4, 1), {"window_shape": 2, "padding": [(1, 0), pad.same]}),
    ((1, 3, 4, 3, 2), {"window_shape": [1, 2, 3], "strides": [1, 2, 1], "padding": "SAME"}),
]


@every_pool
@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
@pytest.mark.parametrize(("shape", "settings"), CASES, ids=summarize)
def test_pooling_is_the_reduction_of_what_each_window_meets(
    kind: str, shape: tuple[int, ...], settings: dict[str, Any], data_format: str
) -> None:
    function, module, _ = POOLS[kind]
    x = normal(*shape)
    first = data_format == "channels_first"
    turned = jnp.asarray(channels_first(x) if first else x)
    y = function(turned, **settings, data_format=data_format)
    wanted = expected(kind, exact(x), **settings)
    np.testing.assert_allclose(channels_last(y) if first else y, wanted, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(module(**settings, data_format=data_format)(turned), y)


@every_pool
def test_gradients_are_those_of_the_reduction(kind: str) -> None:
    x, settings = normal(2, 5, 4, 1), {"window_shape": [3, 2], "strides": [2, 1], "padding": "SAME"}
    weight = normal(2, 3, 4, 1, seed=1)
    gradient = jax.grad(lambda x: jnp.sum(POOLS[kind][0](x, **settings) * weight))(jnp.asarray(x))
    quotient = difference_quotient(lambda x: float((expected(kind, x, **settings) * weight).sum()), exact(x))
    np.testing.assert_allclose(gradient, quotient, rtol=1e-4, atol=1e-4)


@every_pool
def test_transforms_change_nothing(kind: str) -> None:
    module = POOLS[kind][1](2, 2, "SAME")
    steps = jnp.asarray(normal(3, 2, 5, 4, 1))
    wanted = jnp.stack([module(step) for step in steps])
    np.testing.assert_array_equal(mk.jit(module)(steps[0]), wanted[0])
    np.testing.assert_array_equal(mk.vmap(module)(steps), wanted)
    np.testing.assert_array_equal(mk.scan(lambda _, step: (None, module(step)), None, steps)[1], wanted)
    assert module.variables == ()


@every_pool
@pytest.mark.parametrize("dtype", [jnp.float32, *HALF], ids=lambda d: jnp.dtype(d).name)
def test_the_dtype_stays(kind: str, dtype: Any) -> None:
    x = jnp.asarray(normal(2, 6, 2), dtype)
    y = POOLS[kind][0](x, 3, padding="SAME")
    assert y.dtype == dtype
    np.testing.assert_allclose(exact(y), expected(kind, exact(x), 3, padding="SAME"), atol=float(jnp.finfo(dtype).eps))


def test_a_mean_in_half_precision_neither_overflows_nor_stalls() -> None:
    for dtype in HALF:
        x = jnp.full([1, 256, 256, 1], 3.0, dtype)
        assert float(mk.avg_pool(x, 256)[0, 0, 0, 0]) == 3.0


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.int8, jnp.uint8], ids=lambda d: jnp.dtype(d).name)
def test_the_largest_of_integers(dtype: Any) -> None:
    x = jnp.asarray([[3], [1], [2], [0]], dtype)[None] - jnp.asarray(0 if dtype == jnp.uint8 else 100, dtype)
    y = mk.max_pool(x, 3, padding="SAME")
    assert y.dtype == dtype
    np.testing.assert_array_equal(y, expected("max", np.asarray(x), 3, padding="SAME"))


def test_padding_is_never_the_largest_nor_part_of_a_mean() -> None:
    x = jnp.full([1, 3, 1], -5.0)
    for function in (mk.avg_pool, mk.max_pool):
        assert function(x, 3, padding="SAME").ravel().tolist() == [-5.0] * 3


def test_infinities_and_nans_stay_in_their_windows() -> None:
    x = jnp.asarray([-jnp.inf, -jnp.inf, 1.0, jnp.nan]).reshape(1, 4, 1)
    np.testing.assert_array_equal(mk.max_pool(x, 2).ravel(), [-jnp.inf, 1.0, jnp.nan])
    np.testing.assert_array_equal(mk.avg_pool(x, 2).ravel(), [-jnp.inf, -jnp.inf, jnp.nan])


def test_an_empty_batch_gives_an_empty_output() -> None:
    for function in (mk.avg_pool, mk.max_pool):
        assert function(jnp.ones([0, 4, 4, 2]), 2, 2).shape == (0, 2, 2, 2)


def test_text_names_the_settings() -> None:
    assert repr(mk.AvgPool(2, padding="SAME")) == "AvgPool(window_shape=2, padding='SAME')"
    assert repr(mk.MaxPool([2, 1], 2)) == "MaxPool(window_shape=[2, 1], strides=2)"


ERRORS: list[tuple[Callable[[], Any], str]] = [
    (
        lambda: mk.avg_pool(jnp.ones([1, 4, 4, 1], jnp.int32), 2),
        "avg_pool expects floating-point inputs, got int32[1,4,4,1]: convert them, as in x.astype('float32')",
    ),
    (
        lambda: mk.max_pool(jnp.ones([4, 4]), 2),
        "pooling expects inputs with batch, channels and at least one spatial axis, rank >= 3, got float32[4,4]",
    ),
    (
        lambda: mk.max_pool(jnp.ones([1, 4, 4, 1]), [2, 2, 1]),
        "window_shape must be a scalar or sequence of length 1 or sequence of length 2. Received: window_shape=[2, 2, 1]",
    ),
    (
        lambda: mk.avg_pool(jnp.ones([1, 4, 4, 1]), 2, [1, 1, 2]),
        "strides must be a scalar or sequence of length 1 or sequence of length 2. Received: strides=[1, 1, 2]",
    ),
    (
        lambda: mk.max_pool(jnp.ones([1, 4, 3, 1]), 4),
        "a window that spans [4, 4] does not fit into inputs of [4, 3], padded to [4, 3]: use a smaller kernel or rate, or "
        "more padding",
    ),
    (
        lambda: mk.max_pool(jnp.ones([1, 4, 1]), 2, padding=[(2, 0)]),
        "padding [(2, 0)] leaves windows of [2] that meet nothing of the inputs of [4]: pad by less than the window",
    ),
    (
        lambda: mk.avg_pool(jnp.ones([1, 4, 1]), 2, padding="FULL"),
        "padding='FULL' is unknown: use 'SAME', 'VALID', a function such as mk.pad.causal, or [before, after] for each axis",
    ),
]


@pytest.mark.parametrize(("call", "text"), ERRORS, ids=[text[:40] for _, text in ERRORS])
def test_errors(call: Callable[[], Any], text: str) -> None:
    with pytest.raises(ValueError) as caught:
        call()
    assert str(caught.value) == text


@every_pool
def test_an_unknown_format_is_refused_by_the_constructor(kind: str) -> None:
    with pytest.raises(ValueError, match=r"^Unable to extract channel information from 'HW'"):
        POOLS[kind][1](2, data_format="HW")
