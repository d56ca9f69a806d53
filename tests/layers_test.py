"""Layers and networks against their equations in float64."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import modulekit as mk

GENERATOR_SEED = 11


@pytest.fixture(autouse=True)
def _start() -> None:
    mk.seed(0)


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng([GENERATOR_SEED, *shape]).normal(size=shape).astype(np.float32)


def exact(variable: mk.Variable) -> np.ndarray:
    return variable.numpy().astype(np.float64)


def difference_quotient(loss: Callable[[np.ndarray], float], at: np.ndarray, step: float = 1e-5) -> np.ndarray:
    """The gradient of a float64 function, by central differences."""
    result = np.zeros(at.shape)
    for index in np.ndindex(at.shape):
        up, down = at.copy(), at.copy()
        up[index] += step
        down[index] -= step
        result[index] = (loss(up) - loss(down)) / (2 * step)
    return result


# Linear.


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("shape", [(2, 5), (1, 1), (2, 3, 5), (2, 3, 4, 5), (0, 5)], ids=str)
def test_linear_is_its_equation(shape: tuple[int, ...], with_bias: bool) -> None:
    layer = mk.Linear(4, with_bias, b_init=mk.initializers.RandomNormal() if with_bias else None)
    x = normal(*shape)
    y = layer(jnp.asarray(x))
    expected = x.astype(np.float64) @ exact(layer.w) + (exact(layer.b) if with_bias else 0)
    assert y.shape == (*shape[:-1], 4)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    assert layer.w.shape == (shape[-1], 4)
    assert hasattr(layer, "b") == with_bias
    assert [v.name for v in layer.variables] == (["linear/b", "linear/w"] if with_bias else ["linear/w"])


def test_linear_default_weights_have_the_deviation_of_their_inputs() -> None:
    layer = mk.Linear(300)
    layer(jnp.ones([1, 400]))
    w, deviation = exact(layer.w), 1 / math.sqrt(400)
    assert np.abs(w).max() <= 2 * deviation
    assert w.std() == pytest.approx(0.87962566 * deviation, rel=5 / math.sqrt(2 * w.size))
    assert (layer.b.numpy() == 0).all()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16], ids=lambda d: jnp.dtype(d).name)
def test_linear_makes_weights_of_its_inputs_dtype(dtype: Any) -> None:
    layer = mk.Linear(4)
    x = jnp.asarray(normal(3, 5), dtype)
    y = layer(x)
    assert layer.w.dtype == layer.b.dtype == y.dtype == dtype
    expected = np.asarray(x).astype(np.float64) @ exact(layer.w)
    np.testing.assert_allclose(np.asarray(y).astype(np.float64), expected, atol=16 * float(jnp.finfo(dtype).eps))


LINEAR_ERRORS = [
    (
        lambda: mk.Linear(4)(jnp.ones([5])),
        "Linear(output_size=4) expects inputs of shape [batch, ..., input_size], rank >= 2, got float32[5]: "
        "add a batch axis, as in x[None]",
    ),
    (
        lambda: mk.Linear(4)(jnp.ones([2, 5], jnp.int32)),
        "Linear(output_size=4) expects floating-point inputs, got int32[2,5]: convert them, as in x.astype('float32')",
    ),
    (lambda: mk.Linear(0), "output_size=0 is below 1"),
    (
        lambda: mk.Linear(4, with_bias=False, b_init=mk.initializers.Zeros()),
        "When not using a bias the b_init must be None. Received: b_init=Zeros()",
    ),
]


@pytest.mark.parametrize(("call", "text"), LINEAR_ERRORS)
def test_linear_errors(call: Callable[[], Any], text: str) -> None:
    with pytest.raises(ValueError) as caught:
        call()
    assert str(caught.value) == text


def test_another_width_is_refused_with_the_layers_path() -> None:
    layer = mk.Linear(4)
    layer(jnp.ones([2, 5]))
    with pytest.raises(ValueError) as caught:
        layer(jnp.ones([2, 6]))
    assert str(caught.value) == (
        "Linear(output_size=4) expects inputs of width 5, got float32[2,6]: a layer's input size is fixed when its "
        "weight is made; use another layer for another width"
    )
    net = mk.Sequential([mk.Linear(4), layer])
    with pytest.raises(ValueError, match=r"Linear\(output_size=4\) \(path layers\[1\] in Sequential\("):
        net(jnp.ones([2, 7]))


# Linear.transpose.


def tied() -> tuple[mk.Linear, Any, np.ndarray]:
    encoder = mk.Linear(3, b_init=mk.initializers.RandomNormal())
    decoder = encoder.transpose(b_init=mk.initializers.RandomNormal())
    x = normal(4, 5)
    decoder(encoder(jnp.asarray(x)))
    return encoder, decoder, x


def test_transpose_multiplies_by_the_transposed_weight() -> None:
    encoder, decoder, _ = tied()
    code = normal(2, 6, 3)
    expected = code.astype(np.float64) @ exact(encoder.w).T + exact(decoder.b)
    np.testing.assert_allclose(decoder(jnp.asarray(code)), expected, rtol=1e-5, atol=1e-5)
    assert decoder.w is encoder.w
    assert decoder.b.shape == (5,)
    assert decoder.transpose() is encoder


def test_transpose_has_the_shared_weight_and_a_bias_of_its_own() -> None:
    encoder, decoder, _ = tied()
    assert decoder.variables == (decoder.b, encoder.w)
    assert [v.name for v in decoder.variables] == ["linear/linear_transpose/b", "linear/w"]
    both = mk.Sequential([encoder, decoder])
    assert len(both.variables) == 3
    assert len(set(both.variables)) == 3


def test_a_tied_weight_has_one_gradient_the_sum_of_both_uses() -> None:
    encoder, decoder, x = tied()
    variables = [encoder.w, encoder.b, decoder.b]
    gradients = mk.grad(lambda: ((decoder(jnp.tanh(encoder(x))) - x) ** 2).sum(), variables)()

    def loss(down: np.ndarray, up: np.ndarray) -> float:
        code = np.tanh(x.astype(np.float64) @ down + exact(encoder.b))
        return float(((code @ up.T + exact(decoder.b) - x) ** 2).sum())

    w = exact(encoder.w)
    both = difference_quotient(lambda value: loss(value, value), w)
    parts = difference_quotient(lambda v: loss(v, w), w) + difference_quotient(lambda v: loss(w, v), w)
    np.testing.assert_allclose(both, parts, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(gradients[0], both, rtol=1e-4, atol=1e-4)
    assert [g.shape for g in gradients] == [v.shape for v in variables]


def test_a_tied_weight_gets_one_update_and_stays_tied() -> None:
    encoder, decoder, x = tied()
    both = mk.Sequential([encoder, decoder])
    before = encoder.w.numpy()
    gradients = mk.grad(lambda: ((both(x) - x) ** 2).mean(), both)()
    mk.optimizers.SGD(0.5).apply(gradients, both.trainable_variables)
    place = both.trainable_variables.index(encoder.w)
    np.testing.assert_array_equal(encoder.w.numpy(), before - np.float32(0.5) * np.asarray(gradients[place]))
    assert decoder.w is encoder.w


def test_transpose_without_a_bias() -> None:
    encoder = mk.Linear(3, with_bias=False)
    decoder = encoder.transpose()
    x = normal(4, 5)
    y = decoder(encoder(jnp.asarray(x)))
    np.testing.assert_allclose(y, x.astype(np.float64) @ exact(encoder.w) @ exact(encoder.w).T, rtol=1e-4, atol=1e-5)
    assert decoder.variables == (encoder.w,)
    with pytest.raises(ValueError, match="When not using a bias"):
        encoder.transpose(b_init=mk.initializers.Zeros())


def test_transpose_before_the_first_call_says_what_to_call() -> None:
    encoder = mk.Linear(3)
    decoder = encoder.transpose()
    with pytest.raises(ValueError, match="uses the weight of") as caught:
        decoder(jnp.ones([2, 3]))
    assert str(caught.value).endswith(
        "uses the weight of Linear(output_size=3), which has not been called yet: call that one first"
    )
    encoder(jnp.ones([2, 5]))
    assert decoder(jnp.ones([2, 3])).shape == (2, 5)


def test_transpose_refuses_another_width() -> None:
    _, decoder, _ = tied()
    with pytest.raises(ValueError, match=r"expects inputs of width 3, got float32\[2,5\]"):
        decoder(jnp.ones([2, 5]))


# Sequential.


def test_sequential_calls_layers_in_order() -> None:
    net = mk.Sequential([mk.Linear(6), jnp.tanh, mk.Linear(3), lambda h: h * 2])
    x = normal(4, 5)
    y = net(jnp.asarray(x))
    first, second = net.layers[0], net.layers[2]
    hidden = np.tanh(x.astype(np.float64) @ exact(first.w) + exact(first.b))
    np.testing.assert_allclose(y, 2 * (hidden @ exact(second.w) + exact(second.b)), rtol=1e-5, atol=1e-5)
    assert set(net.paths()) == {"layers[0].w", "layers[0].b", "layers[2].w", "layers[2].b"}


def test_sequential_hands_further_arguments_to_the_first_layer() -> None:
    net = mk.Sequential([lambda x, factor, offset=0.0: x * factor + offset, lambda h: h + 1])
    assert float(net(2.0, 3.0, offset=4.0)) == 11.0


def test_an_empty_sequence_is_the_identity() -> None:
    for net in (mk.Sequential(), mk.Sequential([])):
        assert net("anything") == "anything"
        assert net.layers == []


def test_sequential_takes_any_iterable_once() -> None:
    net = mk.Sequential(mk.Linear(size) for size in (4, 3))
    assert net(jnp.ones([1, 2])).shape == (1, 3)
    assert net(jnp.ones([1, 2])).shape == (1, 3)


def test_sequential_names_what_is_no_layer() -> None:
    with pytest.raises(TypeError) as caught:
        mk.Sequential([jnp.tanh, 5])  # type: ignore[list-item]
    assert str(caught.value) == "layers[1] of Sequential is 5: expected a module or a function"


# Dropout.

ELEMENTS = 40_000


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_drops_its_share_and_scales_the_rest(rate: float) -> None:
    x = np.abs(normal(100, ELEMENTS // 100)) + 1
    y = np.asarray(mk.Dropout(rate)(jnp.asarray(x), is_training=True))
    kept = y != 0
    error = math.sqrt(rate * (1 - rate) / ELEMENTS)
    assert abs((~kept).mean() - rate) < 5 * error
    np.testing.assert_allclose(y[kept], x[kept].astype(np.float64) / (1 - rate), rtol=1e-6)
    ones = np.asarray(mk.Dropout(rate)(jnp.ones([ELEMENTS]), is_training=True), np.float64)
    assert abs(ones.mean() - 1) < 5 * error / (1 - rate)
    for left, right in ((kept[1:], kept[:-1]), (kept[:, 1:], kept[:, :-1])):
        assert abs(np.corrcoef(left.ravel(), right.ravel())[0, 1]) < 5 / math.sqrt(left.size)


def test_dropout_does_nothing_outside_of_training_and_at_rate_zero() -> None:
    x = jnp.asarray(normal(3, 4))
    assert mk.Dropout(0.9)(x, is_training=False) is x
    np.testing.assert_array_equal(mk.Dropout(0.0)(x, is_training=True), x)
    assert mk.Dropout(0.5).variables == ()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16], ids=lambda d: jnp.dtype(d).name)
def test_dropout_keeps_the_dtype(dtype: Any) -> None:
    assert mk.Dropout(0.5)(jnp.ones([8], dtype), is_training=True).dtype == dtype


def test_dropout_draws_anew_each_time_and_repeats_after_seeding() -> None:
    layer, x = mk.Dropout(0.5), jnp.ones([64])
    mk.seed(4)
    first, second = layer(x, True), layer(x, True)
    assert (first != second).any()
    mk.seed(4)
    np.testing.assert_array_equal(layer(x, True), first)
    compiled = mk.jit(lambda: layer(x, True))
    np.testing.assert_array_equal(compiled(), second)
    assert (compiled() != second).any()


def test_dropout_with_a_seed_has_a_stream_of_its_own() -> None:
    x = jnp.ones([64])
    first, second = mk.Dropout(0.5, seed=1), mk.Dropout(0.5, seed=1)
    expected = [first(x, True) for _ in range(2)]
    mk.next_key()
    np.testing.assert_array_equal([second(x, True) for _ in range(2)], expected)
    assert (expected[0] != expected[1]).any()
    assert (mk.Dropout(0.5, seed=2)(x, True) != expected[0]).any()
    assert sorted(v.name for v in first.variables) == ["dropout/random_stream/counter", "dropout/random_stream/key"]


def test_dropout_noise_shape_drops_whole_rows() -> None:
    y = np.asarray(mk.Dropout(0.5, noise_shape=[200, 1])(jnp.ones([200, 7]), is_training=True))
    assert (y == y[:, :1]).all()
    assert set(np.unique(y)) == {0.0, 2.0}


def test_dropout_lets_no_gradient_through_what_it_dropped() -> None:
    w = mk.Variable(jnp.ones([64]), name="w")
    layer = mk.Dropout(0.25, seed=3)
    repeat = mk.Dropout(0.25, seed=3)
    (gradient,) = mk.grad(lambda: layer(w.value, True).sum(), [w])()
    np.testing.assert_array_equal(gradient, repeat(jnp.ones([64]), True))


@pytest.mark.parametrize("rate", [-0.5, 1.0, 1.5])
def test_dropout_refuses_a_rate_in_training(rate: float) -> None:
    layer = mk.Dropout(rate)
    assert layer(jnp.ones([2]), is_training=False).tolist() == [1.0, 1.0]
    with pytest.raises(ValueError) as caught:
        layer(jnp.ones([2]), is_training=True)
    assert str(caught.value) == f"`rate` must be a float in the range [0, 1). Received: rate={rate}"


def test_a_changed_rate_reaches_the_compiled_function() -> None:
    layer = mk.Dropout(0.5)
    compiled = mk.jit(lambda x: layer(x, True))
    assert float((compiled(jnp.ones([1000])) == 0).mean()) > 0.3
    layer.rate = 0.0
    assert float((compiled(jnp.ones([1000])) == 0).mean()) == 0.0


# MLP.


def mlp_reference(mlp: mk.nets.MLP, x: np.ndarray, activate_final: bool = False) -> np.ndarray:
    hidden = x.astype(np.float64)
    for index, layer in enumerate(mlp.layers):
        hidden = hidden @ exact(layer.w) + (exact(layer.b) if mlp.with_bias else 0)
        if index < len(mlp.layers) - 1 or activate_final:
            hidden = np.maximum(hidden, 0)
    return hidden


@pytest.mark.parametrize("activate_final", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("sizes", [[3], [6, 3], [6, 5, 4, 3]], ids=str)
def test_mlp_is_linear_layers_with_activations_between(sizes: list[int], with_bias: bool, activate_final: bool) -> None:
    mlp = mk.nets.MLP(sizes, with_bias=with_bias, activate_final=activate_final, w_init=mk.initializers.RandomNormal())
    x = normal(4, 2, 5)
    y = mlp(jnp.asarray(x))
    np.testing.assert_allclose(y, mlp_reference(mlp, x, activate_final), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(mk.jit(mlp)(jnp.asarray(x)), y, rtol=1e-5, atol=1e-5)
    assert len(mlp.variables) == len(sizes) * (1 + with_bias)


def test_mlp_names() -> None:
    mlp = mk.nets.MLP(iter([4, 3]), name="tower")
    mlp(jnp.ones([1, 2]))
    assert [v.name for v in mlp.variables] == [
        "tower/linear_0/b", "tower/linear_0/w", "tower/linear_1/b", "tower/linear_1/w",
    ]  # fmt: skip


def test_mlp_activation_and_its_replacement() -> None:
    mlp = mk.nets.MLP([4, 3], activation=jnp.tanh)
    x = jnp.asarray(normal(2, 5))
    compiled = mk.jit(mlp)
    first, second = mlp.layers
    compiled(x)
    for activation, reference in ((jnp.tanh, np.tanh), (jnp.sin, np.sin)):
        mlp.activation = activation
        expected = reference(np.asarray(x, np.float64) @ exact(first.w)) @ exact(second.w)
        np.testing.assert_allclose(compiled(x), expected, rtol=1e-4, atol=1e-5)


def test_mlp_drops_out_before_the_activation() -> None:
    x = jnp.ones([1, 1])
    # The first layer turns 1 into 1000 ones; what is dropped is 0 before cos, hence 1 after it.
    mlp = mk.nets.MLP([1000], mk.initializers.Ones(), activation=jnp.cos, dropout_rate=0.5, activate_final=True)
    found = np.unique(np.asarray(mlp(x, is_training=True)).round(5))
    np.testing.assert_allclose(found, sorted([math.cos(2.0), 1.0]), atol=1e-5)
    np.testing.assert_allclose(mlp(x, is_training=False), math.cos(1.0), atol=1e-5)


def test_mlp_says_when_is_training_is_needed() -> None:
    with pytest.raises(ValueError) as caught:
        mk.nets.MLP([3], dropout_rate=0.5)(jnp.ones([1, 2]))
    assert str(caught.value) == "The `is_training` argument is required when dropout is used."
    for rate in (None, 0, 0.0):
        with pytest.raises(ValueError) as caught:
            mk.nets.MLP([3], dropout_rate=rate)(jnp.ones([1, 2]), is_training=True)
        assert str(caught.value) == "The `is_training` argument should only be used with dropout."
    with pytest.raises(ValueError) as caught:
        mk.nets.MLP([3], with_bias=False, b_init=mk.initializers.Ones())
    assert str(caught.value) == "When with_bias=False b_init must not be set. Received: b_init=Ones()"


def test_reverse_goes_from_outputs_to_inputs_with_weights_of_its_own() -> None:
    mlp = mk.nets.MLP([6, 4, 3], name="encoder", activate_final=True, activation=jnp.tanh)
    x = normal(2, 5)
    code = mlp(jnp.asarray(x))
    back = mlp.reverse()
    y = back(code)
    assert y.shape == (2, 5)
    assert [layer.output_size for layer in back.layers] == [4, 6, 5]
    assert back.activation is jnp.tanh and back.activate_final
    assert back.name == "encoder_reversed"
    assert not set(back.variables) & set(mlp.variables)
    assert back.variables[0].name == "encoder/encoder_reversed/linear_0/b"
    assert not mlp.reverse(activate_final=False).activate_final
    assert mlp.reverse(name="decoder").name == "decoder"


def test_reverse_before_the_first_call_is_refused() -> None:
    with pytest.raises(ValueError) as caught:
        mk.nets.MLP([6, 3]).reverse()
    assert str(caught.value) == (
        "MLP(output_sizes=[6, 3]) has not been called yet, and its input sizes are unknown: call it, then reverse it"
    )


def test_an_mlp_learns_a_function() -> None:
    x = np.linspace(-2, 2, 64, dtype=np.float32)[:, None]
    model, optimizer = mk.nets.MLP([32, 32, 1], activation=jnp.tanh), mk.optimizers.Adam(1e-2)

    @mk.jit
    def step() -> Any:
        return optimizer.minimize(lambda: mk.losses.squared_error(model(x), jnp.sin(2 * x)).mean(), model)

    losses = [float(step()) for _ in range(300)]
    assert losses[0] > 0.3
    assert losses[-1] < 0.01
    assert all(isinstance(v.value, jax.Array) for v in model.variables)


def test_dropout_of_integers_is_refused_in_training_only() -> None:
    x = jnp.ones([2, 3], jnp.int32)
    assert mk.Dropout(0.5)(x, is_training=False) is x
    with pytest.raises(ValueError, match=r"expects floating-point inputs, got int32\[2,3\]: convert them"):
        mk.Dropout(0.5)(x, is_training=True)
