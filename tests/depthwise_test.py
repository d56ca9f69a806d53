"""`DepthwiseConv2D` against its sum in float64."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from references import (
    HALF,
    assert_gradients,
    assert_transforms,
    channels_first,
    channels_last,
    convolution,
    deviation_of,
    exact,
    normal,
    op_count,
    same_padding,
)

import modulekit as mk
from modulekit import pad
from modulekit.core.explain import summarize

SHAPE = (2, 6, 5, 3)


@pytest.fixture(autouse=True)
def _start() -> None:
    mk.seed(0)


def expected(layer: mk.DepthwiseConv2D, x: np.ndarray, w: np.ndarray, b: np.ndarray | None = None) -> np.ndarray:
    """The layer's equation: channel i and its kernels alone, one after the other."""
    stride, rate = layer.stride, layer.rate
    padding: Any = [(0, 0), (0, 0)]
    if layer.padding == "SAME":
        padding = [same_padding(x.shape[1 + a], w.shape[a], stride[a], rate[a]) for a in range(2)]
    elif callable(layer.padding):
        padding = [layer.padding((w.shape[a] - 1) * rate[a] + 1) for a in range(2)]
    parts = [
        convolution(x[..., i : i + 1], w[:, :, i : i + 1], stride, rate, padding) for i in range(x.shape[-1])
    ]  # fmt: skip
    return np.concatenate(parts, axis=-1) + (0 if b is None else b)


def make(**settings: Any) -> mk.DepthwiseConv2D:
    settings = {"kernel_shape": 3} | settings
    b_init = mk.initializers.RandomNormal() if settings.get("with_bias", True) else None
    return mk.DepthwiseConv2D(b_init=b_init, **settings)


CASES: list[dict[str, Any]] = [
    {},
    {"channel_multiplier": 2},
    {"stride": 2, "channel_multiplier": 2},
    {"stride": [1, 2]},
    {"rate": [1, 2], "kernel_shape": 2, "padding": "VALID"},
    {"kernel_shape": [2, 3], "with_bias": False},
    {"padding": pad.causal, "channel_multiplier": 3},
]


@pytest.mark.parametrize("first", [False, True], ids=["channels last", "channels first"])
@pytest.mark.parametrize("settings", CASES, ids=summarize)
def test_a_depthwise_convolution_is_its_equation(settings: dict[str, Any], first: bool) -> None:
    layer = make(**settings, **({"data_format": "NCHW"} if first else {}))
    x = normal(*SHAPE)
    y = layer(jnp.asarray(channels_first(x) if first else x))
    w, b = exact(layer.w), exact(layer.b) if layer.with_bias else None
    assert w.shape[2:] == (3, settings.get("channel_multiplier", 1))
    wanted = expected(layer, exact(x), w, b)
    np.testing.assert_allclose(channels_last(y) if first else y, wanted, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("data_format", ["NHWC", "NCHW"])
def test_gradients_are_those_of_the_equation(data_format: str) -> None:
    layer = make(data_format=data_format, kernel_shape=2, channel_multiplier=2, stride=2)
    turn: Callable[[Any], Any] = channels_first if data_format == "NCHW" else np.asarray
    back: Callable[[Any], Any] = channels_last if data_format == "NCHW" else np.asarray
    x = turn(normal(1, 3, 3, 2))
    layer(jnp.asarray(x))
    assert_gradients(layer, x, [layer.w, layer.b], lambda x, w, b: turn(expected(layer, back(x), w, b)))


def test_transforms_change_nothing() -> None:
    assert_transforms(lambda: mk.DepthwiseConv2D(2, 2), normal(*SHAPE))


@pytest.mark.parametrize("spec", ["NHWC", "NCHW"])
def test_the_program_is_no_larger_than_one_by_hand(spec: str) -> None:
    layer = make(channel_multiplier=2, data_format=spec)
    x = jnp.asarray(channels_first(normal(*SHAPE)) if spec == "NCHW" else normal(*SHAPE))
    layer(x)

    def by_hand(x: Any, w: Any, b: Any) -> Any:
        y = lax.conv_general_dilated(
            x, w.reshape(3, 3, 1, 6), (1, 1), "SAME", dimension_numbers=(spec, "HWIO", spec), feature_group_count=3
        )
        return y + (b.reshape(-1, 1, 1) if spec == "NCHW" else b)

    arguments = (x, layer.w.value, layer.b.value)
    np.testing.assert_array_equal(mk.jit(layer)(x), jax.jit(by_hand)(*arguments))
    assert op_count(mk.jit(layer), x) <= op_count(jax.jit(by_hand), *arguments)


@pytest.mark.parametrize("dtype", [jnp.float32, *HALF], ids=lambda d: jnp.dtype(d).name)
def test_weights_have_the_dtype_of_the_first_inputs(dtype: Any) -> None:
    layer = make()
    x = jnp.asarray(normal(*SHAPE), dtype)
    y = layer(x)
    assert layer.w.dtype == layer.b.dtype == y.dtype == dtype
    wanted = expected(layer, exact(x), exact(layer.w), exact(layer.b))
    np.testing.assert_allclose(exact(y), wanted, atol=24 * float(jnp.finfo(dtype).eps), rtol=2 * jnp.finfo(dtype).eps)


def test_default_weights_have_the_deviation_of_their_window() -> None:
    layer = mk.DepthwiseConv2D([5, 3], channel_multiplier=20)
    layer(jnp.ones([1, 4, 4, 30]))
    deviation, error = deviation_of(layer.w)
    assert abs(deviation - 0.87962566 / np.sqrt(15)) < error
    assert (layer.b.numpy() == 0).all()


def test_names_shapes_and_text() -> None:
    layer = mk.DepthwiseConv2D([3, 2], 2)
    layer(np.ones(SHAPE, np.float32))
    assert [(v.name, v.shape) for v in layer.variables] == [
        ("depthwise_conv2_d/b", (6,)), ("depthwise_conv2_d/w", (3, 2, 3, 2)),
    ]  # fmt: skip
    assert repr(layer) == "DepthwiseConv2D(kernel_shape=[3, 2], channel_multiplier=2)"


LAYER = "DepthwiseConv2D(kernel_shape=3)"
ERRORS: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (
        lambda: mk.DepthwiseConv2D(3, stride=[1, 2, 3]),
        TypeError,
        "stride must be a scalar or sequence of length 1 or sequence of length 2. Received: stride=[1, 2, 3]",
    ),
    (
        lambda: mk.DepthwiseConv2D(3, rate=[1, 2, 3]),
        TypeError,
        "rate must be a scalar or sequence of length 1 or sequence of length 2. Received: rate=[1, 2, 3]",
    ),
    (
        lambda: mk.DepthwiseConv2D([3, 3, 3])(jnp.ones(SHAPE)),
        TypeError,
        "kernel_shape must be a scalar or sequence of length 1 or sequence of length 2. Received: kernel_shape=[3, 3, 3]",
    ),
    (lambda: mk.DepthwiseConv2D(3, channel_multiplier=0), ValueError, "channel_multiplier=0 is below 1"),
    (
        lambda: mk.DepthwiseConv2D(3, with_bias=False, b_init=mk.initializers.Ones()),
        ValueError,
        "When not using a bias the b_init must be None. Received: b_init=Ones()",
    ),
    (
        lambda: mk.DepthwiseConv2D(3, padding="same")(jnp.ones(SHAPE)),
        ValueError,
        "padding='same' is unknown: use 'SAME', 'VALID', a function such as mk.pad.causal, or [before, after] for each "
        "axis",
    ),
    (
        lambda: mk.DepthwiseConv2D(3)(jnp.ones(SHAPE[1:])),
        ValueError,
        f"{LAYER}: inputs must have rank 4, [batch, height, width, channels], got float32[6,5,3]",
    ),
]


@pytest.mark.parametrize(("call", "kind", "text"), ERRORS, ids=[text[:40] for *_, text in ERRORS])
def test_errors(call: Callable[[], Any], kind: type[Exception], text: str) -> None:
    with pytest.raises(kind) as caught:
        call()
    assert str(caught.value) == text


def test_an_unknown_format_and_a_changed_number_of_channels_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^Unable to extract channel information from 'XYZ'"):
        mk.DepthwiseConv2D(3, data_format="XYZ")
    layer = make()
    layer(jnp.ones(SHAPE))
    with pytest.raises(ValueError, match=r"expects inputs with 3 channels on axis -1, got float32\[2,6,5,4\]"):
        layer(jnp.ones([2, 6, 5, 4]))
