"""Decoding with a cache gives what one causal pass over the whole sequence gives, and never overflows in silence."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_reference import multi_head
from references import HALF, exact, normal, op_count

import modulekit as mk

BATCH, TIME, FEATURES, LENGTH = 2, 4, 3, 6
X = normal(BATCH, TIME, FEATURES)
VARIANTS: list[dict[str, Any]] = [{}, {"num_kv_heads": 1, "value_size": 3}, {"positions": mk.rotary}]
variants = pytest.mark.parametrize("options", VARIANTS, ids=" ".join)


@pytest.fixture(autouse=True)
def _start() -> None:
    mk.seed(0)


def make(**options: Any) -> mk.MultiHeadAttention:
    return mk.MultiHeadAttention(2, 2, **options)


def decoded(
    layer: Any, x: Any, chunks: list[int], cache: mk.KeyValueCache, compiled: bool = True, **options: Any
) -> jax.Array:
    """Returns the outputs for a sequence that comes in chunks."""

    def run(x: jax.Array, cache: Any) -> jax.Array:
        outputs = []
        for stop, size in zip(np.cumsum(chunks), chunks, strict=True):
            part, cache = layer(x[:, stop - size : stop], cache=cache, **options)
            outputs.append(part)
        return jnp.concatenate(outputs, axis=1)

    return mk.jit(run)(x, cache) if compiled else run(x, cache)


@variants
@pytest.mark.parametrize("chunks", [[1] * TIME, [TIME], [2, 1, 1]], ids=str)
def test_any_chunks_give_the_full_causal_pass(options: dict[str, Any], chunks: list[int]) -> None:
    layer = make(**options)
    outputs = decoded(layer, X, chunks, layer.initial_cache(BATCH, TIME), compiled=len(chunks) > 1)
    np.testing.assert_allclose(outputs, layer(X, is_causal=True), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(outputs, multi_head(layer, X, mask=np.tri(TIME, dtype=bool)), rtol=1e-5, atol=1e-5)


@variants
def test_decoding_in_a_compiled_loop_from_the_first_call_on(options: dict[str, Any]) -> None:
    layer = make(**options)

    @mk.jit
    def run(x: jax.Array, cache: mk.KeyValueCache) -> Any:
        return mk.scan(lambda cache, x: layer(x[:, None], cache=cache)[::-1], cache, x.swapaxes(0, 1))

    cache, outputs = run(X, layer.initial_cache(BATCH, LENGTH))
    np.testing.assert_allclose(outputs[:, :, 0].swapaxes(0, 1), layer(X, is_causal=True), rtol=1e-5, atol=1e-5)
    assert int(cache.length) == TIME
    step = mk.jit(lambda x, cache: layer(x, cache=cache))
    new = normal(BATCH, 2, FEATURES)
    outputs, cache = step(new, cache)
    whole = layer(np.concatenate([X, new], axis=1), is_causal=True)
    np.testing.assert_allclose(outputs, whole[:, TIME:], rtol=1e-5, atol=1e-5)


def test_gradients_through_a_cache_are_those_of_the_full_pass() -> None:
    layer = make(positions=mk.rotary)
    layer(X)
    weight = normal(BATCH, TIME, FEATURES, seed=5)
    full = mk.jit(mk.grad(lambda: jnp.sum(layer(X, is_causal=True) * weight), layer))()
    cache = layer.initial_cache(BATCH, LENGTH)
    found = mk.jit(mk.grad(lambda: jnp.sum(decoded(layer, X, [1, 3], cache) * weight), layer))()
    for a, b in zip(found, full, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_a_mask_hides_padding_in_front_of_a_sequence() -> None:
    layer = make(positions=mk.rotary)
    mask = (np.arange(LENGTH) >= np.array([[0], [2]]))[:, None, None]
    outputs = decoded(layer, X, [3, 1], layer.initial_cache(BATCH, LENGTH), mask=mask)
    alone = decoded(layer, X[1:, 2:], [1, 1], layer.initial_cache(1, LENGTH))
    np.testing.assert_allclose(outputs[:1], layer(X[:1], is_causal=True), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(outputs[1:, 2:], alone, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(outputs[1, :2], np.broadcast_to(layer.output.b, [2, FEATURES]))


def test_a_cache_is_a_value_from_which_several_continuations_start() -> None:
    layer = make()
    _, begun = layer(X[:, :2], cache=layer.initial_cache(BATCH, LENGTH))
    first, _ = layer(X[:, 2:3], cache=begun)
    layer(X[:, 3:4], cache=begun)
    again, _ = layer(X[:, 2:3], cache=begun)
    np.testing.assert_array_equal(first, again)
    assert int(begun.length) == 2


def test_sequences_of_different_lengths_by_vmap() -> None:
    layer = make(positions=mk.rotary)
    begin = mk.jit(lambda x: layer(x, cache=layer.initial_cache(1, LENGTH))[1])
    caches = [begin(X[i : i + 1, :n]) for i, n in enumerate((1, 3))]
    stacked = jax.tree.map(lambda *parts: jnp.stack(parts), *caches)
    news = jnp.stack([X[0:1, 1:2], X[1:2, 3:4]])
    outputs, _ = mk.vmap(lambda x, cache: layer(x, cache=cache))(news, stacked)
    full = layer(X, is_causal=True)
    np.testing.assert_allclose(outputs[:, 0, 0], [full[0, 1], full[1, 3]], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", HALF, ids=lambda d: jnp.dtype(d).name)
def test_a_cache_of_half_precision(dtype: Any) -> None:
    layer = make()
    x = jnp.asarray(X, dtype)
    cache = layer.initial_cache(BATCH, LENGTH, dtype)
    outputs = decoded(layer, x, [3, 1], cache)
    assert outputs.dtype == cache.keys.dtype == cache.values.dtype == dtype
    np.testing.assert_allclose(exact(outputs), exact(layer(x, is_causal=True)), atol=8 * float(jnp.finfo(dtype).eps))


# Overflow, and caches that do not fit.

NAME = "MultiHeadAttention(num_heads=2, key_size=2)"


def text_of(layer: Any, x: Any, cache: Any, **options: Any) -> str:
    with pytest.raises(ValueError) as caught:
        layer(x, cache=cache, **options)
    return str(caught.value)


def test_too_many_positions_are_an_error_wherever_their_number_is_known() -> None:
    layer = make()
    empty = layer.initial_cache(BATCH, 3)
    text = (
        f"{NAME} has a cache for 3 positions, of which 0 have come, got 4 more: make the cache with a larger max_length"
    )
    assert text_of(layer, X, empty) == text
    assert text_of(mk.jit(lambda x, cache: layer(x, cache=cache)), X, empty) == text
    _, full = layer(X[:, :3], cache=empty)
    text = (
        f"{NAME} has a cache for 3 positions, of which 3 have come, got 1 more: make the cache with a larger max_length"
    )
    assert text_of(layer, X[:, :1], full) == text


def test_too_many_positions_in_compiled_code_give_nan_from_there_on() -> None:
    layer = make()
    steps = jnp.asarray(X.swapaxes(0, 1))
    cache = layer.initial_cache(BATCH, 2)
    _, outputs = mk.scan(lambda cache, x: layer(x[:, None], cache=cache)[::-1], cache, steps)
    np.testing.assert_allclose(outputs[:2, :, 0].swapaxes(0, 1), layer(X, is_causal=True)[:, :2], rtol=1e-5, atol=1e-5)
    assert jnp.isnan(outputs[2:]).all()


def test_a_cache_that_does_not_fit_is_refused() -> None:
    layer = make()
    assert text_of(layer, X, layer.initial_cache(3, LENGTH)) == (
        f"{NAME} expects a cache of float32[2, 6, 2, 2], got float32[3,6,2,2]: make it with initial_cache(2, max_length, "
        "'float32')"
    )
    assert text_of(layer, X, layer.initial_cache(BATCH, LENGTH, jnp.bfloat16)) == (
        f"{NAME} expects a cache of float32[2, 6, 2, 2], got bfloat16[2,6,2,2]: make it with initial_cache(2, max_length, "
        "'float32')"
    )
    assert text_of(layer, X, layer.initial_cache(BATCH, LENGTH), key=X + 1) == (
        f"{NAME} takes a cache in self-attention only: give no key and no value"
    )
    with pytest.raises(ValueError, match="max_length=0 is below 1"):
        layer.initial_cache(BATCH, 0)
    mask = np.ones([1, 1, 1, TIME], bool)
    assert "= [2, 2, 4, 6], got bool[1,1,1,4]" in text_of(layer, X, layer.initial_cache(BATCH, LENGTH), mask=mask)


# The program of one step.


def hand_written(x: jax.Array, keys: jax.Array, values: jax.Array, length: jax.Array, w: dict[str, jax.Array]) -> Any:
    def heads(name: str) -> jax.Array:
        return (x @ w[f"{name}.w"] + w[f"{name}.b"]).reshape(BATCH, 1, 2, 2)

    keys = jax.lax.dynamic_update_slice_in_dim(keys, heads("key"), length, axis=1)
    values = jax.lax.dynamic_update_slice_in_dim(values, heads("value"), length, axis=1)
    mask = (jnp.arange(LENGTH) <= length)[None, None, None]
    found = jax.nn.dot_product_attention(heads("query"), keys, values, mask=mask)
    return found.reshape(BATCH, 1, -1) @ w["output.w"] + w["output.b"], keys, values, length + 1


def test_a_step_costs_little_more_than_hand_written_jax_without_any_checks() -> None:
    layer, x = make(), jnp.asarray(X[:, :1])
    cache = layer.initial_cache(BATCH, LENGTH)
    layer(x)
    weights = {path: variable.value for path, variable in layer.paths().items()}
    compiled, by_hand = mk.jit(lambda x, cache: layer(x, cache=cache)), jax.jit(hand_written)
    np.testing.assert_allclose(compiled(x, cache)[0], by_hand(x, *cache, weights)[0], rtol=1e-6)
    # Beyond it: the positions of a chunk, zeros for a query without keys, and NaN for a cache that is full.

    assert op_count(compiled, x, cache) <= op_count(by_hand, x, *cache, weights) + 24
