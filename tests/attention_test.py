"""`MultiHeadAttention` is its equation, in values and gradients, under masks, groups and transforms."""

import itertools
import pickle
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_reference import multi_head, weights_of
from references import HALF, assert_gradients, assert_transforms, exact, normal, op_count

import modulekit as mk

BATCH, TIME, KEYS, FEATURES = 2, 3, 4, 3
X = normal(BATCH, TIME, FEATURES)
MEMORY = normal(BATCH, KEYS, 5)
CAUSAL = np.tri(TIME, dtype=bool)


@pytest.fixture(autouse=True)
def _start() -> None:
    mk.seed(0)


def make(**options: Any) -> mk.MultiHeadAttention:
    """Returns a layer whose biases are not zero."""
    options = {"b_init": mk.initializers.RandomNormal(), **options}
    return mk.MultiHeadAttention(**{"num_heads": 4, "key_size": 2, **options})


VARIANTS: list[dict[str, Any]] = [
    {},
    {"value_size": 3, "output_size": 5},
    {"value_size": 1},
    {"num_kv_heads": 2},
    {"num_kv_heads": 1, "value_size": 3},
    {"with_bias": False, "b_init": None},
    {"positions": mk.rotary},
    {"num_heads": 1, "key_size": 1},
]
variants = pytest.mark.parametrize("options", VARIANTS, ids=" ".join)


@variants
def test_self_attention_is_its_equation(options: dict[str, Any]) -> None:
    layer = make(**options)
    outputs = layer(X)
    assert outputs.shape == (BATCH, TIME, options.get("output_size", FEATURES))
    np.testing.assert_allclose(outputs, multi_head(layer, X), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(layer(X, is_causal=True), multi_head(layer, X, mask=CAUSAL), rtol=1e-5, atol=1e-5)


@variants
def test_queries_attend_to_other_keys_and_values(options: dict[str, Any]) -> None:
    layer = make(**options)
    value = normal(BATCH, KEYS, 2)
    np.testing.assert_allclose(layer(X, MEMORY, value), multi_head(layer, X, MEMORY, value), rtol=1e-5, atol=1e-5)
    same = make(**options)
    np.testing.assert_allclose(same(X, MEMORY), multi_head(same, X, MEMORY, MEMORY), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", [VARIANTS[1], VARIANTS[4], VARIANTS[6]], ids=" ".join)
def test_gradients_are_those_of_the_equation(options: dict[str, Any]) -> None:
    layer = make(**{"num_heads": 2, **options})
    mask = np.random.default_rng(0).random([BATCH, 2, TIME, TIME]) < 0.7
    mask[0, 1, 2] = False
    layer(X)
    names = list(weights_of(layer))

    def reference(x: np.ndarray, *weights: np.ndarray) -> np.ndarray:
        return multi_head(layer, x, mask=mask, weights=dict(zip(names, weights, strict=True)))

    assert_gradients(lambda x: layer(x, mask=mask), X, list(weights_of(layer).values()), reference)


def random_mask(*shape: int) -> np.ndarray:
    mask = np.random.default_rng(shape).random(shape) < 0.6
    mask[..., 0] |= ~mask.any(axis=-1)
    return mask


@pytest.mark.parametrize(
    "shape",
    [(BATCH, 4, TIME, KEYS), (BATCH, 1, 1, KEYS), (1, 4, TIME, 1), (4, 1, KEYS), (TIME, KEYS), (KEYS,)],
    ids=str,
)
@pytest.mark.parametrize("num_kv_heads", [4, 2])
def test_a_mask_broadcasts_as_in_numpy(shape: tuple[int, ...], num_kv_heads: int) -> None:
    layer, mask = make(num_kv_heads=num_kv_heads), random_mask(*shape)
    for given in (mask, jnp.asarray(mask), mk.Variable(mask, trainable=False)):
        outputs = layer(X, MEMORY, mask=given)
        np.testing.assert_allclose(outputs, multi_head(layer, X, MEMORY, mask=mask), rtol=1e-5, atol=1e-5)


def test_a_mask_and_causality_hold_together() -> None:
    layer, mask = make(), random_mask(BATCH, 1, TIME, TIME)
    outputs = layer(X, mask=mask, is_causal=True)
    np.testing.assert_allclose(outputs, multi_head(layer, X, mask=mask & CAUSAL), rtol=1e-5, atol=1e-5)


def test_what_is_masked_has_no_influence_and_no_gradient() -> None:
    layer = make()
    mask = np.arange(KEYS)[None, None, None] < np.array([2, 4])[:, None, None, None]
    other = MEMORY.copy()
    other[0, 2:] = 1e4
    np.testing.assert_array_equal(layer(X, MEMORY, mask=mask), layer(X, other, mask=mask))
    memory = mk.Variable(MEMORY, name="memory")
    (gradient,) = mk.grad(lambda: jnp.sum(layer(X, memory, mask=mask) ** 2), [memory])()
    assert not gradient[0, 2:].any()
    assert (np.abs(gradient[0, :2]) > 0).all() and (np.abs(gradient[1]) > 0).all()


@pytest.mark.parametrize("dtype", [jnp.float32, *HALF], ids=lambda d: jnp.dtype(d).name)
def test_a_query_that_may_attend_to_nothing_gets_zeros_before_the_output_projection(dtype: Any) -> None:
    layer = make()
    x = jnp.asarray(X, dtype)
    mask = np.ones([BATCH, 1, TIME, TIME], bool)
    mask[1, :, 2] = False
    outputs = layer(x, mask=mask)
    np.testing.assert_array_equal(outputs[1, 2], layer.output.b.value)
    np.testing.assert_array_equal(np.delete(outputs.reshape(6, -1), 5, 0), np.delete(layer(x).reshape(6, -1), 5, 0))


def test_a_query_that_may_attend_to_nothing_gives_gradients_to_the_output_bias_only() -> None:
    layer, nothing = make(), np.zeros([TIME, TIME], bool)
    gradients = mk.jit(mk.grad(lambda: jnp.sum(layer(X, mask=nothing) ** 2), layer))()
    for path, gradient in zip(layer.paths(), gradients, strict=True):
        assert gradient.any() == (path == "output.b"), path
        assert jnp.isfinite(gradient).all()


def test_groups_of_heads_share_keys_and_values() -> None:
    shared, full = make(num_kv_heads=2), make()
    full(X), shared(X)
    for path, variable in shared.paths().items():
        value = variable.numpy()
        if path.startswith(("key", "value")):
            value = np.repeat(value.reshape(-1, 2, 2), 2, axis=1).reshape(*value.shape[:-1], 8)
        full.paths()[path].assign(value)
    np.testing.assert_allclose(shared(X, is_causal=True), full(X, is_causal=True), rtol=1e-5, atol=1e-6)


def test_without_positions_the_order_of_keys_does_not_matter() -> None:
    layer, order = make(), np.array([2, 0, 3, 1])
    np.testing.assert_allclose(layer(X, MEMORY), layer(X, MEMORY[:, order]), rtol=1e-5, atol=1e-6)
    turned = make(positions=mk.rotary)
    assert np.abs(turned(X, MEMORY) - turned(X, MEMORY[:, order])).max() > 1e-3


@pytest.mark.parametrize("dtype", [jnp.float32, *HALF], ids=lambda d: jnp.dtype(d).name)
@pytest.mark.parametrize("positions", [None, mk.rotary])
def test_the_dtype_of_the_first_inputs_is_kept(dtype: Any, positions: Any) -> None:
    layer = make(positions=positions)
    x = jnp.asarray(X, dtype)
    outputs = layer(x, mask=CAUSAL)
    assert {v.dtype for v in layer.variables} == {outputs.dtype} == {jnp.dtype(dtype)}
    expected = multi_head(layer, x, mask=CAUSAL)
    accuracy = 24 * float(jnp.finfo(dtype).eps) * np.abs(expected).max()
    np.testing.assert_allclose(exact(outputs), expected, atol=accuracy)
    compiled = mk.jit(layer)(x, mask=CAUSAL)
    assert compiled.dtype == dtype
    np.testing.assert_allclose(exact(compiled), expected, atol=accuracy)


def test_mixed_dtypes_are_promoted_as_in_arithmetic() -> None:
    layer = make()
    layer(X)
    half = jnp.asarray(X, jnp.bfloat16)
    np.testing.assert_array_equal(layer(half), layer(half.astype(jnp.float32)))
    mixed = make()
    assert mixed(half, jnp.asarray(MEMORY)).dtype == jnp.float32


def test_transforms_change_nothing() -> None:
    assert_transforms(lambda: make(positions=mk.rotary, num_kv_heads=2), X)


def hand_written(x: jax.Array, weights: dict[str, jax.Array]) -> jax.Array:
    def heads(name: str) -> jax.Array:
        return (x @ weights[f"{name}.w"] + weights[f"{name}.b"]).reshape(*x.shape[:2], 4, 2)

    found = jax.nn.dot_product_attention(heads("query"), heads("key"), heads("value"), is_causal=True)
    return found.reshape(*x.shape[:2], -1) @ weights["output.w"] + weights["output.b"]


def test_the_program_is_that_of_hand_written_jax() -> None:
    layer, x = make(), jnp.asarray(X)
    layer(x)
    weights = {path: variable.value for path, variable in layer.paths().items()}
    compiled, by_hand = mk.jit(lambda x: layer(x, is_causal=True)), jax.jit(hand_written)
    np.testing.assert_array_equal(compiled(x), by_hand(x, weights))
    assert op_count(compiled, x) <= op_count(by_hand, x, weights)
    gradient = mk.jit(lambda x: mk.value_and_grad(lambda: jnp.sum(layer(x, is_causal=True) ** 2), layer)())
    hand_gradient = jax.jit(jax.value_and_grad(lambda w, x: jnp.sum(hand_written(x, w) ** 2)))
    assert op_count(gradient, x) <= op_count(hand_gradient, weights, x)


def test_names_shapes_and_copies() -> None:
    layer = make(value_size=3, num_kv_heads=2, name="attend")
    layer(X, MEMORY)
    assert [(v.name, v.shape) for v in layer.variables if v.name.endswith("w")] == [
        ("attend/key/w", (5, 4)), ("attend/output/w", (12, 3)), ("attend/query/w", (3, 8)), ("attend/value/w", (5, 6)),
    ]  # fmt: skip
    turned = make(positions=mk.rotary)
    outputs = turned(X)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(turned))(X), outputs)


def plain() -> mk.MultiHeadAttention:
    return mk.MultiHeadAttention(4, 2)


NAME = "MultiHeadAttention(num_heads=4, key_size=2)"
ERRORS: list[tuple[Callable[[], Any], str]] = [
    (lambda: mk.MultiHeadAttention(0, 2), "num_heads=0 is below 1"),
    (lambda: mk.MultiHeadAttention(2, 2, num_kv_heads=0), "num_kv_heads=0 is below 1"),
    (lambda: make(num_kv_heads=3), "num_heads=4 is no multiple of num_kv_heads=3"),
    (
        lambda: make(with_bias=False),
        "When not using a bias the b_init must be None. Received: b_init=RandomNormal(mean=0.0, stddev=1.0)",
    ),
    (
        lambda: plain()(X[0]),
        f"{NAME} expects query of shape [batch, time, features], with one batch for query, key and value, got "
        "float32[3,3] with a query float32[3,3]",
    ),
    (
        lambda: plain()(X, MEMORY[:1]),
        f"{NAME} expects key of shape [batch, time, features], with one batch for query, key and value, got "
        "float32[1,4,5] with a query float32[2,3,3]",
    ),
    (
        lambda: plain()(X, MEMORY, X),
        f"{NAME} expects a value for each key, got float32[2,3,3] with a key float32[2,4,5]",
    ),
    (
        lambda: plain()(X, MEMORY, is_causal=True),
        f"{NAME}: is_causal needs as many keys as queries, got float32[2,4,5] with a query float32[2,3,3]: say by a mask "
        "which keys a query may attend to, or decode with a cache",
    ),
    (
        lambda: plain()(X, mask=np.ones([TIME, TIME])),
        f"{NAME} expects a boolean mask, True where a query may attend to a key, got float32[3,3]: compare, as in mask > 0",
    ),
    (
        lambda: plain()(X, mask=np.ones([BATCH, TIME], bool)),
        f"{NAME} expects a mask that broadcasts to [batch, heads, query_time, key_time] = [2, 4, 3, 3], got bool[2,3]: "
        "give it all four axes, of size 1 where they share",
    ),
    (
        lambda: plain()(X, mask=np.ones([1, BATCH, 4, TIME, TIME], bool)),
        f"{NAME} expects a mask that broadcasts to [batch, heads, query_time, key_time] = [2, 4, 3, 3], got "
        "bool[1,2,4,3,3]: give it all four axes, of size 1 where they share",
    ),
    (
        lambda: make(key_size=3, positions=mk.rotary)(X),
        "rotary positions need [batch, time, heads, size] with an even size, got float32[2,3,4,3]: choose an even key_size",
    ),
    (
        lambda: plain()(np.ones([1, 2, 3], np.int32)),
        f"Linear(output_size=8, name='query') (path query in {NAME}) expects floating-point inputs, "
        "got int32[1,2,3]: convert them, as in x.astype('float32')",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("call", "text"), ERRORS, ids=range(len(ERRORS)))
def test_errors(call: Callable[[], Any], text: str) -> None:
    with pytest.raises(ValueError) as caught:
        call()
    assert str(caught.value) == text


def test_a_wrong_mask_is_refused_in_every_axis() -> None:
    layer = make()
    for axis, size in itertools.product(range(4), (2, 5)):
        shape = [BATCH, 4, TIME, KEYS]
        if shape[axis] != size:
            shape[axis] = size
            with pytest.raises(ValueError, match="expects a mask that broadcasts"):
                layer(X, MEMORY, mask=np.ones(shape, bool))


def test_no_sequences_and_no_positions_give_none() -> None:
    attention = mk.MultiHeadAttention(2, 4)
    for shape in ((0, 3, 8), (2, 0, 8)):
        assert attention(jnp.ones(shape)).shape == shape
