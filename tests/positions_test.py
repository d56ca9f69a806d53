"""Positions: `rotary` makes scores depend on distances only, and `LearnedPositions` adds a table."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_reference import rotated
from hypothesis import given, settings
from hypothesis import strategies as st
from references import HALF, assert_gradients, assert_transforms, exact, normal

import modulekit as mk

X = normal(2, 5, 3, 6)
turned = jax.jit(mk.rotary)


@pytest.mark.parametrize("first", [0, 1, 100, 5000])
def test_pairs_of_neighbors_are_turned_by_the_angles_of_the_paper(first: int) -> None:
    # An angle of 5000 in float32 is known to 5000 eps, about 6e-4.
    np.testing.assert_allclose(turned(X, first), rotated(exact(X), first), rtol=0, atol=1e-5 + 5e-7 * first)
    np.testing.assert_allclose(mk.rotary(X, 2, base=100.0), rotated(exact(X), 2, base=100.0), rtol=1e-4, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 400), st.integers(0, 400), st.integers(0, 400), st.integers(0, 10))
def test_a_score_depends_on_the_distance_only(query_at: int, key_at: int, shift: int, seed: int) -> None:
    q, k = normal(1, 1, 1, 6, seed=seed), normal(1, 1, 1, 6, seed=seed + 100)

    def score(query_at: int, key_at: int) -> float:
        return float((turned(q, query_at) * turned(k, key_at)).sum())

    assert abs(score(query_at + shift, key_at + shift) - score(query_at, key_at)) < 2e-3


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 10))
def test_lengths_stay_and_the_first_position_is_not_turned(offset: int, seed: int) -> None:
    x = normal(1, 2, 1, 6, seed=seed)
    lengths = np.linalg.norm(x.reshape(-1, 2), axis=1)
    np.testing.assert_allclose(np.linalg.norm(np.reshape(turned(x, offset), (-1, 2)), axis=1), lengths, rtol=1e-5)
    np.testing.assert_array_equal(turned(x, 0)[:, 0], x[:, 0])


def test_each_sequence_may_have_an_offset_of_its_own() -> None:
    found = turned(X, jnp.array([0, 7]))
    np.testing.assert_allclose(found, np.stack([turned(X[:1], 0)[0], turned(X[1:], 7)[0]]), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", HALF, ids=lambda d: jnp.dtype(d).name)
def test_angles_are_exact_in_half_precision(dtype: Any) -> None:
    x = jnp.asarray(X, dtype)
    found = turned(x, 3001)  # no such number in either dtype
    assert found.dtype == dtype
    np.testing.assert_allclose(exact(found), rotated(exact(x), 3001), atol=4 * float(jnp.finfo(dtype).eps))


def test_gradients_turn_back() -> None:
    weight = normal(*X.shape, seed=1)
    gradient = jax.grad(lambda x: jnp.sum(mk.rotary(x, 3) * weight))(jnp.asarray(X))
    np.testing.assert_allclose(jnp.sum(gradient * X), jnp.sum(turned(X, 3) * weight), rtol=1e-4)
    np.testing.assert_allclose(mk.rotary(gradient, 3), weight, rtol=1e-4, atol=1e-5)


def test_rotary_refuses_what_it_cannot_pair() -> None:
    for shape in ((2, 5, 3, 5), (2, 5, 4)):
        with pytest.raises(ValueError) as caught:
            mk.rotary(np.ones(shape, np.float32))
        assert str(caught.value) == (
            f"rotary positions need [batch, time, heads, size] with an even size, got float32[{','.join(map(str, shape))}]: "
            "choose an even key_size"
        )


# Learned positions.

SEQUENCE = normal(2, 3, 4)


@pytest.fixture
def layer() -> mk.LearnedPositions:
    mk.seed(0)
    return mk.LearnedPositions(5)


def test_each_position_gets_its_vector(layer: mk.LearnedPositions) -> None:
    layer(SEQUENCE)
    table = layer.embeddings.numpy()
    assert [(v.name, v.shape) for v in layer.variables] == [("learned_positions/embeddings", (5, 4))]
    assert 0 < np.abs(table).max() < 0.05
    compiled = mk.jit(layer)
    for offset in (0, 2):
        expected = SEQUENCE + table[offset : offset + 3]
        for found in (layer(SEQUENCE, offset), layer(SEQUENCE, jnp.array(offset)), compiled(SEQUENCE, offset)):
            np.testing.assert_array_equal(found, expected)


def test_gradients_and_transforms(layer: mk.LearnedPositions) -> None:
    layer(SEQUENCE)
    assert_gradients(layer, SEQUENCE, layer.variables, lambda x, table: x + table[:3])
    assert_transforms(lambda: mk.LearnedPositions(3), SEQUENCE)


@pytest.mark.parametrize("dtype", HALF, ids=lambda d: jnp.dtype(d).name)
def test_the_table_has_the_dtype_of_the_first_inputs(layer: mk.LearnedPositions, dtype: Any) -> None:
    assert layer(jnp.asarray(SEQUENCE, dtype)).dtype == layer.embeddings.dtype == dtype


@pytest.mark.parametrize(("time", "offset"), [(6, 0), (3, 3), (1, -1)])
def test_a_position_past_the_table_is_an_error_and_in_compiled_code_nan(
    layer: mk.LearnedPositions, time: int, offset: int
) -> None:
    x = np.ones([1, time, 4], np.float32)
    with pytest.raises(ValueError) as caught:
        layer(x, offset)
    assert str(caught.value) == (
        f"LearnedPositions(max_length=5) has vectors for 5 positions, got float32[1,{time},4] from position {offset} on: "
        "make max_length larger, or the sequence shorter"
    )
    if time < 6:
        found = mk.jit(layer)(x, jnp.array(offset))
        inside = [0 <= offset + t < 5 for t in range(time)]
        np.testing.assert_array_equal(jnp.isfinite(found).all(axis=(0, 2)), inside)


def test_learned_positions_refuse_other_shapes(layer: mk.LearnedPositions) -> None:
    with pytest.raises(ValueError) as caught:
        layer(SEQUENCE[0])
    assert str(caught.value) == (
        "LearnedPositions(max_length=5) expects inputs of shape [batch, time, features], got float32[3,4]"
    )
    with pytest.raises(ValueError, match="max_length=0 is below 1"):
        mk.LearnedPositions(0)
