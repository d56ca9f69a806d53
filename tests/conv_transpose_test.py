"""`Conv1DTranspose`, `Conv2DTranspose`, `Conv3DTranspose` against their sum in float64."""

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
    deviation_of,
    exact,
    normal,
    op_count,
    same_padding,
    transposed_convolution,
)

import modulekit as mk
from modulekit.core.explain import summarize

LAYERS = {1: mk.Conv1DTranspose, 2: mk.Conv2DTranspose, 3: mk.Conv3DTranspose}
FORWARD = {1: mk.Conv1D, 2: mk.Conv2D, 3: mk.Conv3D}
FIRST = {1: "NCW", 2: "NCHW", 3: "NCDHW"}
SHAPES = {1: (2, 5, 2), 2: (2, 4, 3, 2), 3: (2, 2, 3, 2, 2)}


@pytest.fixture(autouse=True)
def _start() -> None:
    mk.seed(0)


def each(value: Any, n: int) -> tuple[int, ...]:
    return tuple(value) * (n // len(value)) if isinstance(value, list) else (value,) * n


def expected(layer: Any, x: np.ndarray, w: np.ndarray, b: np.ndarray | None = None) -> np.ndarray:
    """The layer's equation, with output sizes and padding worked out here."""
    n, sizes = x.ndim - 2, x.shape[1:-1]
    stride, rate = each(layer.stride, n), each(layer.rate, n)
    is_same = layer.padding == "SAME"
    outputs = [sizes[a] * stride[a] + (0 if is_same else (w.shape[a] - 1) * rate[a]) for a in range(n)]
    if layer.output_shape is not None:
        outputs = list(each(layer.output_shape, n))
    before = [same_padding(outputs[a], w.shape[a], stride[a], rate[a])[0] if is_same else 0 for a in range(n)]
    return transposed_convolution(x, w, stride, rate, before, outputs) + (0 if b is None else b)


CASES: list[tuple[int, dict[str, Any]]] = [
    *((n, {}) for n in LAYERS),
    *((n, {"stride": 2, "padding": "VALID"}) for n in LAYERS),
    (1, {"stride": 3, "kernel_shape": 2}),
    (1, {"stride": [3], "kernel_shape": [2], "padding": "VALID"}),
    (1, {"stride": 2, "output_shape": [9]}),
    (1, {"stride": 4, "output_shape": 17, "kernel_shape": 6}),
    (1, {"stride": 3, "output_shape": [15], "padding": "VALID"}),
    (1, {"rate": 2, "kernel_shape": 4}),
    (2, {"stride": [1, 2], "kernel_shape": [3, 2], "padding": "VALID"}),
    (2, {"stride": 2, "output_shape": [7, 6], "with_bias": False}),
    (2, {"stride": 2, "kernel_shape": 1}),
    (2, {"rate": [1, 2], "padding": "VALID"}),
    (2, {"rate": 2, "stride": 2}),
    (3, {"stride": [1, 2, 3], "kernel_shape": [1, 2, 3]}),
]


def make(n: int, **settings: Any) -> Any:
    settings = {"kernel_shape": 3} | settings
    b_init = mk.initializers.RandomNormal() if settings.get("with_bias", True) else None
    return LAYERS[n](3, b_init=b_init, **settings)


@pytest.mark.parametrize("first", [False, True], ids=["channels last", "channels first"])
@pytest.mark.parametrize(("n", "settings"), CASES, ids=summarize)
def test_a_transposed_convolution_is_its_equation(n: int, settings: dict[str, Any], first: bool) -> None:
    layer = make(n, **settings, **({"data_format": FIRST[n]} if first else {}))
    x = normal(*SHAPES[n])
    y = layer(jnp.asarray(channels_first(x) if first else x))
    w, b = exact(layer.w), exact(layer.b) if layer.with_bias else None
    assert w.shape == (*each(layer.kernel_shape, n), 3, 2)
    assert layer.input_channels == 2
    wanted = expected(layer, exact(x), w, b)
    np.testing.assert_allclose(channels_last(y) if first else y, wanted, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize(
    ("n", "settings"),
    [(n, s) for n, s in CASES if not ("rate" in s and "stride" in s) and s.get("with_bias", True)],
    ids=summarize,
)
def test_it_is_the_transpose_of_the_convolution_from_its_outputs_to_its_inputs(
    n: int, settings: dict[str, Any]
) -> None:
    layer = make(n, **settings)
    x = jnp.asarray(normal(*SHAPES[n]))
    y = layer(x) - layer.b
    forward_settings = {key: value for key, value in settings.items() if key != "output_shape"}
    forward = FORWARD[n](2, **{"kernel_shape": 3} | forward_settings, with_bias=False)
    assert forward(y).shape == x.shape
    forward.w.assign(layer.w)
    np.testing.assert_allclose(jax.vjp(forward, y)[1](x)[0], y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("data_format", ["NWC", "NCW"])
@pytest.mark.parametrize("settings", [{"stride": 2}, {"stride": 3, "padding": "VALID", "output_shape": [10]}], ids=str)
def test_gradients_are_those_of_the_equation(data_format: str, settings: dict[str, Any]) -> None:
    layer = make(1, data_format=data_format, kernel_shape=2, **settings)
    turn: Callable[[Any], Any] = channels_first if data_format == "NCW" else np.asarray
    back: Callable[[Any], Any] = channels_last if data_format == "NCW" else np.asarray
    x = turn(normal(2, 3, 2))
    layer(jnp.asarray(x))
    assert_gradients(layer, x, [layer.w, layer.b], lambda x, w, b: turn(expected(layer, back(x), w, b)))


@pytest.mark.parametrize("n", LAYERS)
def test_transforms_change_nothing(n: int) -> None:
    assert_transforms(lambda: LAYERS[n](3, 2, stride=2), normal(*SHAPES[n]))


@pytest.mark.parametrize("spec", ["NHWC", "NCHW"])
def test_the_program_is_smaller_than_that_of_jax(spec: str) -> None:
    layer = make(2, stride=2, data_format=spec)
    x = jnp.asarray(channels_first(normal(2, 4, 3, 2)) if spec == "NCHW" else normal(2, 4, 3, 2))
    layer(x)

    def by_hand(x: Any, w: Any, b: Any) -> Any:
        y = lax.conv_transpose(
            x, w, (2, 2), [(2, 1)] * 2, dimension_numbers=(spec, "HWIO", spec), transpose_kernel=True
        )  # fmt: skip
        return y + (b.reshape(-1, 1, 1) if spec == "NCHW" else b)

    arguments = (x, layer.w.value, layer.b.value)
    np.testing.assert_allclose(mk.jit(layer)(x), by_hand(*arguments), rtol=1e-5, atol=1e-5)
    assert op_count(mk.jit(layer), x) < op_count(jax.jit(by_hand), *arguments)


@pytest.mark.parametrize("dtype", [jnp.float32, *HALF], ids=lambda d: jnp.dtype(d).name)
def test_weights_have_the_dtype_of_the_first_inputs(dtype: Any) -> None:
    layer = make(2, stride=2)
    x = jnp.asarray(normal(*SHAPES[2]), dtype)
    y = layer(x)
    assert layer.w.dtype == layer.b.dtype == y.dtype == dtype
    wanted = expected(layer, exact(x), exact(layer.w), exact(layer.b))
    np.testing.assert_allclose(exact(y), wanted, atol=24 * float(jnp.finfo(dtype).eps), rtol=2 * jnp.finfo(dtype).eps)
    if dtype != jnp.float32:
        layer(x.astype(jnp.float32))
        assert layer(x.astype(jnp.float32)).dtype == jnp.float32


def test_default_weights_have_the_deviation_of_their_inputs() -> None:
    layer = mk.Conv2DTranspose(60, [5, 3])
    layer(jnp.ones([1, 4, 4, 30]))
    deviation, error = deviation_of(layer.w)
    assert abs(deviation - 0.87962566 / np.sqrt(15 * 30)) < error
    assert (layer.b.numpy() == 0).all()


def test_names_and_order() -> None:
    for n, layer in LAYERS.items():
        module = layer(4, 3)
        module(jnp.ones(SHAPES[n]))
        assert [v.name for v in module.variables] == [f"conv{n}_d_transpose/b", f"conv{n}_d_transpose/w"]
    named = mk.Conv1DTranspose(4, 3, with_bias=False, name="up")
    named(np.ones([1, 5, 1], np.float32))
    assert [v.name for v in named.variables] == ["up/w"]


def test_other_sizes_of_inputs_have_other_sizes_of_outputs() -> None:
    layer = make(1, stride=2)
    assert [layer(jnp.ones([1, size, 2])).shape[1] for size in (5, 3, 0)] == [10, 6, 0]


ERRORS: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (
        lambda: mk.Conv2DTranspose(4, 3, padding=mk.pad.same),  # type: ignore[arg-type]
        TypeError,
        "ConvNDTranspose only takes string padding, please provide either `SAME` or `VALID`. Received: padding=same",
    ),
    (
        lambda: mk.Conv2DTranspose(4, 3, padding="same"),
        TypeError,
        "ConvNDTranspose only takes string padding, please provide either `SAME` or `VALID`. Received: padding='same'",
    ),
    (
        lambda: mk.Conv2DTranspose(4, 3, with_bias=False, b_init=mk.initializers.Ones()),
        ValueError,
        "When not using a bias the b_init must be None. Received: b_init=Ones()",
    ),
    (
        lambda: mk.Conv2DTranspose(4, 3, output_shape=[5, 5, 5])(jnp.ones([1, 5, 5, 3])),
        ValueError,
        "Conv2DTranspose(output_channels=4, kernel_shape=3, output_shape=[5, 5, 5]): The output_shape must be of length 2 "
        "but instead was 3.",
    ),
    (
        lambda: mk.Conv3DTranspose(4, 3)(jnp.ones([1, 3, 3, 3])),
        ValueError,
        "Conv3DTranspose(output_channels=4, kernel_shape=3): inputs must have rank 5, "
        "[batch, depth, height, width, channels], got float32[1,3,3,3]",
    ),
    (
        lambda: mk.Conv1DTranspose(4, 3, output_shape=[12], stride=2)(jnp.ones([1, 5, 3])),
        ValueError,
        "output_shape=[12] cannot come from inputs of [5] with stride [2] and padding 'SAME': give sizes from [9] to [10], "
        "or leave it out for [10]",
    ),
    (
        lambda: mk.Conv1DTranspose(4, 3, output_shape=[10], stride=2, padding="VALID")(jnp.ones([1, 5, 3])),
        ValueError,
        "output_shape=[10] cannot come from inputs of [5] with stride [2] and padding 'VALID': give sizes from [11] to "
        "[12], or leave it out for [12]",
    ),
    (
        lambda: mk.Conv2DTranspose(4, [3, 3, 3])(jnp.ones([1, 5, 5, 3])),
        TypeError,
        "kernel_shape must be a scalar or sequence of length 1 or sequence of length 2. Received: kernel_shape=[3, 3, 3]",
    ),
    (
        lambda: mk.Conv2DTranspose(4, 3, stride=[1, 2, 3])(jnp.ones([1, 5, 5, 3])),
        TypeError,
        "stride must be a scalar or sequence of length 1 or sequence of length 2. Received: stride=[1, 2, 3]",
    ),
    (lambda: mk.Conv2DTranspose(-1, 3), ValueError, "output_channels=-1 is below 1"),
]


@pytest.mark.parametrize(("call", "kind", "text"), ERRORS, ids=[text[:40] for *_, text in ERRORS])
def test_errors(call: Callable[[], Any], kind: type[Exception], text: str) -> None:
    with pytest.raises(kind) as caught:
        call()
    assert str(caught.value) == text


def test_an_unknown_format_and_a_changed_number_of_channels_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^Unable to extract channel information from 'ABC'"):
        mk.Conv2DTranspose(4, 3, data_format="ABC")
    layer = make(1, data_format="NCW")
    layer(jnp.ones([1, 2, 5]))
    with pytest.raises(ValueError, match=r"expects inputs with 2 channels on axis 1, got float32\[1,3,5\]"):
        layer(jnp.ones([1, 3, 5]))
