"""The forms that convolution and pooling take on CPUs: equal to the compiler's own operations in value and derivatives."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from references import normal

import modulekit as mk
from modulekit.core import context
from modulekit.layers import matrix_convolution, pool

pytestmark = pytest.mark.skipif(jax.default_backend() != "cpu", reason="these forms are for CPUs")

IMAGES = (4, 9, 8, 6)
LAYERS = {
    "1d": (lambda: mk.Conv1D(6, 4), (3, 12, 4)),
    "1d, first axis strided and dilated": (lambda: mk.Conv1D(6, 3, rate=2, padding="VALID"), (3, 12, 4)),
    "2d": (lambda: mk.Conv2D(5, [3, 2]), IMAGES),
    "2d, strides": (lambda: mk.Conv2D(5, 3, stride=[2, 1]), IMAGES),
    "2d, rates": (lambda: mk.Conv2D(5, 3, rate=[1, 2]), IMAGES),
    "2d, strides and rates": (lambda: mk.Conv2D(5, 2, stride=2, rate=3, padding="VALID"), IMAGES),
    "2d, causal": (lambda: mk.Conv2D(5, 3, padding=[mk.pad.causal, mk.pad.same]), IMAGES),
    "2d, 1x1": (lambda: mk.Conv2D(5, 1), IMAGES),
    "2d, 1x1 with strides": (lambda: mk.Conv2D(5, 1, stride=2), IMAGES),
    "2d, groups": (lambda: mk.Conv2D(4, 3, groups=2), IMAGES),
    "2d, channels first": (lambda: mk.Conv2D(5, 3, data_format="NCHW"), (4, 6, 9, 8)),
    "3d": (lambda: mk.Conv3D(3, 2), (2, 5, 4, 3, 2)),
    "depthwise": (lambda: mk.DepthwiseConv2D(3, 2), IMAGES),
    "transposed": (lambda: mk.Conv2DTranspose(5, 3, stride=2), (4, 5, 4, 3)),
    "transposed, valid": (lambda: mk.Conv1DTranspose(5, 4, stride=3, padding="VALID"), (3, 5, 3)),
}


@pytest.fixture
def double():
    with jax.enable_x64(True):
        yield


@pytest.fixture
def at_once(monkeypatch):
    monkeypatch.setattr(matrix_convolution, "_LEAST_WORK", 0)
    monkeypatch.setattr(pool, "_LEAST_INPUTS", 0)


@pytest.fixture(params=["at once", "example by example", "tile by tile"])
def limits(request, monkeypatch, at_once):
    jax.clear_caches()  # the limit is no argument of the compiled function
    if request.param != "at once":
        monkeypatch.setattr(
            matrix_convolution, "_LARGEST_MATRIX", 10_000 if request.param == "example by example" else 1
        )
    yield
    jax.clear_caches()


def compiled_both_ways(f, *args):
    """Returns what the CPU's form computes, and what the compiler's own operations do."""
    ours = jax.jit(lambda *args: f(*args))(*args)
    with context.changed(portable=True):
        return ours, jax.jit(lambda *args: f(*args))(*args)


def assert_close(ours, theirs, rtol):
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert one.shape == other.shape and one.dtype == other.dtype
        np.testing.assert_allclose(one, other, rtol=rtol, atol=rtol * np.abs(other).max(initial=0))


def derivatives(f):
    """Returns a function that computes the value, the gradients, the forward derivatives, and values for two of all."""

    def all_of(*args):
        outputs, pull = jax.vjp(f, *args)
        gradients = pull(jnp.cos(outputs))
        tangents = jax.jvp(f, args, tuple(jnp.sin(arg) for arg in args))[1]
        mapped = jax.vmap(f)(*(jnp.stack([arg, jnp.cos(arg)]) for arg in args))
        return outputs, gradients, tangents, mapped

    return all_of


def made(name):
    """Returns a layer of the table as a function of its inputs and its variables, and values for all of them."""
    make, shape = LAYERS[name]
    layer, x = make(), jnp.asarray(normal(*shape), jnp.float64)
    layer(x)
    pure, values = mk.functionalize(layer, layer)
    leaves, tree = jax.tree.flatten(values)
    return lambda x, *leaves: pure(jax.tree.unflatten(tree, leaves), x)[0], (x, *leaves)


@pytest.mark.parametrize("name", LAYERS)
def test_a_convolution_equals_the_compilers_own(name, limits, double):
    f, args = made(name)
    assert_close(*compiled_both_ways(derivatives(f), *args), rtol=1e-12)


@pytest.mark.parametrize("name", ["2d", "transposed"])
def test_the_gradient_of_a_gradient_equals_the_compilers_own(name, limits, double):
    f, args = made(name)

    def penalty(x, *leaves):
        return (jax.grad(lambda x: (f(x, *leaves) ** 3).sum())(x) ** 2).sum()

    assert_close(*compiled_both_ways(jax.grad(penalty), *args), rtol=1e-12)


def test_a_convolution_of_usual_size_is_equal_to_1e_5_in_single_precision():
    layer, x = mk.Conv2D(64, 5), jnp.asarray(normal(64, 14, 14, 32))
    layer(x)

    def f(x, w):
        outputs, pull = jax.vjp(lambda x, w: mk.layers.convolution.convolve(x, w, data_format="NHWC"), x, w)
        return outputs, pull(jnp.cos(outputs))

    assert_close(*compiled_both_ways(f, x, layer.w.value), rtol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_a_gradient_in_half_precision_is_as_precise_as_the_compilers_own(dtype):
    x, w, cotangent = normal(64, 14, 14, 8), normal(3, 3, 8, 16), 1 + normal(64, 14, 14, 16)

    def gradient(*arrays):
        x, w, cotangent = arrays
        return jax.vjp(lambda w: mk.layers.convolution.convolve(x, w, data_format="NHWC"), w)[1](cotangent)[0]

    exact = np.asarray(gradient(x, w, cotangent))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matrix_convolution, "_LARGEST_MATRIX", 2 * 14 * 14 * 9 * 8)  # each example is a part
        ours, theirs = compiled_both_ways(gradient, *(jnp.asarray(array, dtype) for array in (x, w, cotangent)))
    errors = [np.abs(np.asarray(found, np.float32) - exact).mean() for found in (ours, theirs)]
    assert errors[0] < 1.25 * errors[1]


@pytest.mark.parametrize(
    "operation, window, strides, padding, data_format",
    [
        row
        for row in itertools.product(
            (mk.max_pool, mk.avg_pool), (1, 2, [3, 4]), (1, [2, 3]), ("SAME", "VALID"), ("NHWC", "NCHW")
        )
        if (row[2] == 1) != (row[4] == "NCHW")  # each stride with one format
    ],
)
def test_a_pooling_equals_the_compilers_own_where_values_are_equal_too(
    operation, window, strides, padding, data_format, at_once
):
    x = jnp.asarray(np.random.default_rng(0).integers(4, size=(2, 9, 8, 7)).astype(np.float32))

    def f(x):
        outputs, pull = jax.vjp(lambda x: operation(x, window, strides, padding, data_format), x)
        weights = jnp.cos(jnp.arange(outputs.size)).reshape(outputs.shape)
        return outputs, pull(weights)

    assert_close(*compiled_both_ways(f, x), rtol=1e-6)


def test_the_largest_of_a_window_with_a_nan_is_nan(at_once):
    x = jnp.asarray([1.0, np.nan, 3.0, 2.0]).reshape(1, 4, 1)
    assert mk.max_pool(x, 2).ravel().tolist()[2] == 3.0
    assert np.isnan(mk.max_pool(x, 2).ravel()[:2]).all()


def test_the_largest_of_integers_and_of_padding_alone_on_one_side(at_once):
    x = jnp.arange(-8, 0).reshape(1, 8, 1)
    assert mk.max_pool(x, 3, 3, "SAME").ravel().tolist() == [-6, -3, -1]


class TestPrograms:
    def net(self):
        net = mk.Sequential([mk.Conv2D(8, 3), jax.nn.relu, mk.MaxPool(2, 2), mk.Conv2D(8, 3)])
        mk.build(net, [8, 28, 28, 1])
        return net

    def test_a_large_convolution_is_a_product_of_matrices_and_a_small_one_is_not(self):
        text = mk.jit(self.net()).lower(jnp.ones([8, 28, 28, 1])).as_text()
        assert "stablehlo.convolution" not in text and "reduce_window" not in text
        text = mk.jit(self.net()).lower(jnp.ones([1, 6, 6, 1])).as_text()
        assert "stablehlo.convolution" in text and "reduce_window" in text

    def test_what_leaves_the_process_is_a_convolution(self, tmp_path):
        for axis in (0, None):
            mk.export.save(tmp_path / str(axis), self.net(), [8, 28, 28, 1], batch_axis=axis)
            assert (tmp_path / str(axis) / "program.stablehlo").read_text().count("stablehlo.convolution") == 2

    def test_a_convolution_outside_compiled_functions_is_compiled_once(self):
        layer, x = mk.Conv2D(8, 3), jnp.ones([8, 28, 28, 1])
        layer(x)
        with jax.log_compiles(True), pytest.MonkeyPatch.context() as patch:
            seen = []
            patch.setattr(matrix_convolution, "_product", lambda *args, **kwargs: seen.append(args))
            layer(x)
        assert not seen
