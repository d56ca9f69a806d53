"""`Conv1D`, `Conv2D`, `Conv3D` against their sum in float64."""

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

LAYERS = {1: mk.Conv1D, 2: mk.Conv2D, 3: mk.Conv3D}
FIRST = {1: "NCW", 2: "NCHW", 3: "NCDHW"}
SPATIAL = {1: (9,), 2: (6, 7), 3: (3, 4, 5)}
SHAPES = {n: (2, *SPATIAL[n], 2) for n in LAYERS}


@pytest.fixture(autouse=True)
def _start() -> None:
    mk.seed(0)


def each(value: Any, n: int) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, list) else (value,) * n


def expected(layer: Any, x: np.ndarray, w: np.ndarray, b: np.ndarray | None = None) -> np.ndarray:
    """The layer's equation, with the padding worked out here."""
    n, sizes = x.ndim - 2, x.shape[1:-1]
    stride, rate = each(layer.stride, n), each(layer.rate, n)
    if isinstance(layer.padding, str):
        is_same = layer.padding.upper() == "SAME"
        padding = [same_padding(*sizes_of_axis) if is_same else (0, 0)
                   for sizes_of_axis in zip(sizes, w.shape, stride, rate, strict=False)]  # fmt: skip
    else:
        functions = layer.padding if isinstance(layer.padding, list) else [layer.padding] * n
        spans = [(w.shape[a] - 1) * rate[a] + 1 for a in range(n)]
        padding = [tuple(f(span)) if callable(f) else f for f, span in zip(functions, spans, strict=True)]
    return convolution(x, w, stride, rate, padding, layer.groups) + (0 if b is None else b)


CASES: list[tuple[int, dict[str, Any]]] = [
    *((n, {}) for n in LAYERS),
    *((n, {"padding": "VALID", "stride": 2}) for n in LAYERS),
    *((n, {"padding": "valid", "rate": 2, "kernel_shape": 2}) for n in LAYERS),
    (1, {"kernel_shape": [4], "stride": [3]}),
    (1, {"kernel_shape": 12}),
    (1, {"padding": pad.causal, "rate": 2}),
    (1, {"padding": [(2, 0)], "stride": 2}),
    (2, {"kernel_shape": [2, 3], "stride": [2, 1]}),
    (2, {"kernel_shape": 1, "stride": 2}),
    (2, {"kernel_shape": 2, "stride": 3}),
    (2, {"rate": [1, 2]}),
    (2, {"stride": 2, "rate": 2}),
    (2, {"padding": pad.same, "stride": 2}),
    (2, {"padding": [pad.causal, pad.reverse_causal]}),
    (2, {"padding": [pad.full, (1, 2)]}),
    (2, {"padding": "same", "with_bias": False}),
    (2, {"groups": 2}),
    (2, {"groups": 2, "stride": 2, "kernel_shape": [3, 2]}),
    (3, {"kernel_shape": [1, 2, 3], "stride": [1, 2, 2]}),
    (3, {"padding": [pad.full, pad.valid, pad.causal], "groups": 2}),
]


def make(n: int, **settings: Any) -> Any:
    settings = {"kernel_shape": 3} | settings
    b_init = mk.initializers.RandomNormal() if settings.get("with_bias", True) else None
    return LAYERS[n](4, b_init=b_init, **settings)


@pytest.mark.parametrize("first", [False, True], ids=["channels last", "channels first"])
@pytest.mark.parametrize(("n", "settings"), CASES, ids=summarize)
def test_a_convolution_is_its_equation(n: int, settings: dict[str, Any], first: bool) -> None:
    layer = make(n, **settings, **({"data_format": FIRST[n]} if first else {}))
    x = normal(*SHAPES[n])
    y = layer(jnp.asarray(channels_first(x) if first else x))
    w, b = exact(layer.w), exact(layer.b) if layer.with_bias else None
    assert w.shape == (*each(layer.kernel_shape, n)[-n:], 2 // layer.groups, 4)
    assert layer.input_channels == 2
    wanted = expected(layer, exact(x), w, b)
    np.testing.assert_allclose(channels_last(y) if first else y, wanted, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("data_format", ["NWC", "NCW"])
@pytest.mark.parametrize("settings", [{"stride": 2}, {"groups": 2, "padding": pad.causal}], ids=summarize)
def test_gradients_are_those_of_the_equation(data_format: str, settings: dict[str, Any]) -> None:
    layer = make(1, data_format=data_format, kernel_shape=2, **settings)
    turn: Callable[[Any], Any] = channels_first if data_format == "NCW" else np.asarray
    back: Callable[[Any], Any] = channels_last if data_format == "NCW" else np.asarray
    x = turn(normal(2, 4, 2))
    layer(jnp.asarray(x))
    assert_gradients(layer, x, [layer.w, layer.b], lambda x, w, b: turn(expected(layer, back(x), w, b)))


@pytest.mark.parametrize("n", LAYERS)
def test_transforms_change_nothing(n: int) -> None:
    assert_transforms(lambda: LAYERS[n](3, 2, stride=2), normal(*SHAPES[n]))


def by_hand(x: Any, w: Any, b: Any, layer: Any, padding: Any, spec: tuple[str, str, str]) -> Any:
    n = x.ndim - 2
    y = lax.conv_general_dilated(
        x, w, each(layer.stride, n), padding, rhs_dilation=each(layer.rate, n), dimension_numbers=spec,
        feature_group_count=layer.groups,
    )  # fmt: skip
    return y + (b.reshape(-1, *[1] * n) if spec[0][1] == "C" else b)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=lambda d: jnp.dtype(d).name)
@pytest.mark.parametrize(
    ("settings", "padding", "spec"),
    [
        ({}, "SAME", ("NHWC", "HWIO", "NHWC")),
        ({"data_format": "NCHW"}, "SAME", ("NCHW", "HWIO", "NCHW")),
        ({"padding": "VALID", "stride": 2}, "VALID", ("NHWC", "HWIO", "NHWC")),
        ({"padding": pad.causal, "rate": 2}, [(4, 0), (4, 0)], ("NHWC", "HWIO", "NHWC")),
        ({"groups": 2}, "SAME", ("NHWC", "HWIO", "NHWC")),
    ],
    ids=summarize,
)
def test_the_program_is_no_larger_than_one_by_hand(
    settings: dict[str, Any], padding: Any, spec: Any, dtype: Any
) -> None:
    layer = make(2, **settings)
    x = jnp.asarray(channels_first(normal(2, 5, 5, 2)) if "data_format" in settings else normal(2, 5, 5, 2), dtype)
    layer(x)
    hand = jax.jit(lambda x, w, b: by_hand(x, w, b, layer, padding, spec))
    np.testing.assert_array_equal(mk.jit(layer)(x), hand(x, layer.w.value, layer.b.value))
    assert op_count(mk.jit(layer), x) <= op_count(hand, x, layer.w.value, layer.b.value)
    loss, hand_loss = (
        (lambda f: lambda *args: jnp.sum(f(*args) ** 2))(layer),
        lambda x, w, b: jnp.sum(hand(x, w, b) ** 2),
    )
    gradient = mk.jit(lambda x: mk.value_and_grad(loss, layer)(x))
    hand_gradient = jax.jit(jax.value_and_grad(hand_loss, (2, 1)))
    assert op_count(gradient, x) <= op_count(hand_gradient, x, layer.w.value, layer.b.value)


@pytest.mark.parametrize("dtype", [jnp.float32, *HALF], ids=lambda d: jnp.dtype(d).name)
def test_weights_have_the_dtype_of_the_first_inputs(dtype: Any) -> None:
    layer = make(2)
    x = jnp.asarray(normal(*SHAPES[2]), dtype)
    y = layer(x)
    assert layer.w.dtype == layer.b.dtype == y.dtype == dtype
    wanted = expected(layer, exact(x), exact(layer.w), exact(layer.b))
    np.testing.assert_allclose(exact(y), wanted, atol=24 * float(jnp.finfo(dtype).eps), rtol=2 * jnp.finfo(dtype).eps)


def test_inputs_of_another_dtype_are_promoted_as_in_arithmetic() -> None:
    layer = make(2)
    x = jnp.asarray(normal(*SHAPES[2]), jnp.bfloat16)
    layer(x.astype(jnp.float32))
    y = layer(x)
    assert y.dtype == jnp.float32
    np.testing.assert_array_equal(y, layer(x.astype(jnp.float32)))


def test_numpy_arrays_and_variables_are_inputs() -> None:
    layer, x = make(2), normal(*SHAPES[2])
    y = layer(x)
    image = mk.Variable(x, name="image")
    np.testing.assert_array_equal(layer(image), y)
    (gradient,) = mk.grad(lambda: jnp.sum(layer(image)), [image])()
    assert np.abs(gradient).max() > 0


@pytest.mark.parametrize("groups", [1, 3])
def test_default_weights_have_the_deviation_of_their_inputs(groups: int) -> None:
    layer = mk.Conv2D(60, [5, 3], groups=groups)
    layer(jnp.ones([1, 4, 4, 30]))
    deviation, error = deviation_of(layer.w)
    assert abs(deviation - 0.87962566 / np.sqrt(15 * 30 // groups)) < error
    assert np.abs(exact(layer.w)).max() <= 2 / np.sqrt(15 * 30 // groups)
    assert (layer.b.numpy() == 0).all()


def test_groups_are_separate_convolutions_of_their_channels() -> None:
    layer = make(2, groups=2)
    x = jnp.asarray(normal(2, 5, 5, 2))
    y = layer(x)
    for g in range(2):
        one = mk.Conv2D(2, 3)
        one(x[..., :1])
        one.w.assign(layer.w[..., 2 * g : 2 * g + 2])
        one.b.assign(layer.b[2 * g : 2 * g + 2])
        np.testing.assert_allclose(one(x[..., g : g + 1]), y[..., 2 * g : 2 * g + 2], rtol=1e-5, atol=1e-6)


def test_names_and_order() -> None:
    for n, layer in LAYERS.items():
        module = layer(4, 3)
        module(jnp.ones(SHAPES[n]))
        assert [v.name for v in module.variables] == [f"conv{n}_d/b", f"conv{n}_d/w"]
    named = mk.Conv1D(4, 3, with_bias=False, name="stem")
    named(jnp.ones([1, 5, 1]))
    assert [v.name for v in named.variables] == ["stem/w"]
    assert repr(named) == "Conv1D(output_channels=4, kernel_shape=3, with_bias=False, name='stem')"


@pytest.mark.parametrize("last", ["NWC", "NHC", "BTD", "channels_last"])
def test_a_format_only_says_where_the_channels_are(last: str) -> None:
    x = jnp.ones([2, 9, 2])
    y = mk.Conv1D(3, 2, data_format=last, w_init=mk.initializers.Ones())(x)
    assert y.shape == (2, 9, 3)
    for first in ("NCW", "NCX", "channels_first"):
        turned = mk.Conv1D(3, 2, data_format=first, w_init=mk.initializers.Ones())(x.swapaxes(1, 2))
        np.testing.assert_array_equal(turned, y.swapaxes(1, 2))


def test_a_changed_stride_reaches_the_compiled_function() -> None:
    layer = mk.Conv1D(3, 2)
    compiled = mk.jit(layer)
    assert compiled(jnp.ones([2, 9, 2])).shape == (2, 9, 3)
    layer.stride = 3
    assert compiled(jnp.ones([2, 9, 2])).shape == (2, 3, 3)


def test_an_empty_batch_and_an_empty_sequence_give_empty_outputs() -> None:
    layer = mk.Conv1D(3, 4, padding=pad.causal)
    assert layer(jnp.ones([0, 9, 2])).shape == (0, 9, 3)
    assert layer(jnp.ones([2, 0, 2])).shape[1] == 0


def built(layer: Any, *shape: int) -> Any:
    layer(jnp.ones(shape))
    return layer


CONV = "Conv2D(output_channels=4, kernel_shape=3)"
ERRORS: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (
        lambda: mk.Conv2D(4, 3)(jnp.ones([5, 5, 2])),
        ValueError,
        f"{CONV}: inputs must have rank 4, [batch, height, width, channels], got float32[5,5,2]",
    ),
    (
        lambda: mk.Conv1D(4, 3, data_format="NCW")(jnp.ones([5, 5])),
        ValueError,
        "Conv1D(output_channels=4, kernel_shape=3, data_format='NCW'): inputs must have rank 3, "
        "[batch, channels, width], got float32[5,5]",
    ),
    (
        lambda: built(mk.Conv2D(4, 3), 1, 5, 5, 2)(jnp.ones([1, 5, 5, 3])),
        ValueError,
        f"{CONV} expects inputs with 2 channels on axis -1, got float32[1,5,5,3]: their number is fixed when the weight "
        "is made; use another layer for another number",
    ),
    (
        lambda: mk.Conv2D(4, 3)(jnp.ones([1, 5, 5, 2], jnp.int32)),
        ValueError,
        f"{CONV} expects floating-point inputs, got int32[1,5,5,2]: convert them, as in x.astype('float32')",
    ),
    (
        lambda: mk.Conv2D(4, 3, data_format="WRONG"),
        ValueError,
        "Unable to extract channel information from 'WRONG': use a spatial format (such as 'NHWC' or 'NCHW'), a "
        "sequential one (such as 'BTHWD'), 'channels_first' or 'channels_last'",
    ),
    (
        lambda: mk.Conv2D(4, 3, with_bias=False, b_init=mk.initializers.Ones()),
        ValueError,
        "When not using a bias the b_init must be None. Received: b_init=Ones()",
    ),
    (lambda: mk.Conv2D(0, 3), ValueError, "output_channels=0 is below 1"),
    (lambda: mk.Conv2D(4, 3, groups=3), ValueError, "groups=3 do not divide output_channels=4"),
    (
        lambda: mk.Conv2D(4, 3, groups=2)(jnp.ones([1, 5, 5, 3])),
        ValueError,
        "Conv2D(output_channels=4, kernel_shape=3, groups=2): groups=2 do not divide the 3 channels of the inputs",
    ),
    (
        lambda: mk.Conv2D(4, [3, 3, 3])(jnp.ones([1, 5, 5, 3])),
        TypeError,
        "kernel_shape must be a scalar or sequence of length 1 or sequence of length 2. Received: kernel_shape=[3, 3, 3]",
    ),
    (
        lambda: mk.Conv2D(4, 3, stride=[1, 2, 2])(jnp.ones([1, 5, 5, 3])),
        ValueError,
        "stride must be a scalar or sequence of length 1 or sequence of length 2. Received: stride=[1, 2, 2]",
    ),
    (
        lambda: mk.Conv2D(4, 3, padding=[pad.same] * 3)(jnp.ones([1, 5, 5, 3])),
        TypeError,
        "padding must be a scalar or sequence of length 1 or sequence of length 2. Received: padding=[same, same, same]",
    ),
    (
        lambda: mk.Conv2D(4, 3, padding="FULL")(jnp.ones([1, 5, 5, 3])),
        ValueError,
        "padding='FULL' is unknown: use 'SAME', 'VALID', a function such as mk.pad.causal, or [before, after] for each "
        "axis",
    ),
    (
        lambda: mk.Conv2D(4, [2, 3], rate=3, padding="VALID")(jnp.ones([1, 5, 5, 3])),
        ValueError,
        "a window that spans [4, 7] does not fit into inputs of [5, 5], padded to [5, 5]: use a smaller kernel or rate, "
        "or more padding",
    ),
]


@pytest.mark.parametrize(("call", "kind", "text"), ERRORS, ids=[text[:40] for *_, text in ERRORS])
def test_errors(call: Callable[[], Any], kind: type[Exception], text: str) -> None:
    with pytest.raises(kind) as caught:
        call()
    assert str(caught.value) == text


def test_an_error_names_the_path_of_the_layer() -> None:
    net = mk.Sequential([mk.Conv2D(4, 3), mk.Conv2D(2, 5, padding="VALID")])
    with pytest.raises(ValueError, match="a window that spans") as caught:
        net(jnp.ones([1, 4, 4, 1]))
    assert "layers[1] = Conv2D(output_channels=2" in "".join(caught.value.__notes__)
    net(jnp.ones([1, 5, 5, 1]))
    with pytest.raises(ValueError, match=r"Conv2D\(.*\) \(path layers\[0\] in Sequential\(") as caught:
        net(jnp.ones([1, 5, 5, 3]))


def test_variables_before_the_first_call() -> None:
    with pytest.raises(ValueError, match=r"^Conv2D\(output_channels=4, kernel_shape=3\) does not currently contain"):
        _ = mk.Conv2D(4, 3).variables


def test_padding_none_pads_nothing() -> None:
    x = jnp.arange(21.0).reshape(1, 7, 3)
    layer, valid = mk.Conv1D(2, 3, padding=None), mk.Conv1D(2, 3, padding="VALID")
    layer(x), valid(x)
    valid.w.assign(layer.w.value)
    np.testing.assert_array_equal(layer(x), valid(x))
