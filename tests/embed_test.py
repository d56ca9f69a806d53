"""`Embed` and its transpose."""

import copy
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from references import HALF, deviation_of, difference_quotient, exact, normal

import modulekit as mk

TOKENS = np.array([[3, 0, 3], [1, 6, 2]], np.int32)


@pytest.fixture(autouse=True)
def _start() -> None:
    mk.seed(0)


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.int8, np.uint8], ids=lambda d: np.dtype(d).name)
def test_each_token_becomes_its_vector(dtype: Any) -> None:
    embed = mk.Embed(300, 4)
    tokens = TOKENS.astype(dtype)
    for call in (embed, mk.jit(embed)):
        np.testing.assert_array_equal(call(tokens), embed.embeddings.numpy()[TOKENS])
        assert call(tokens[0, 0]).shape == (4,)
        assert call(tokens[:0]).shape == (0, 3, 4)


def test_a_table_has_a_gradient_for_the_tokens_that_came_as_often_as_they_came() -> None:
    embed = mk.Embed(7, 2)
    weight = normal(2, 3, 2)
    for densify in (False, True):
        embed.densify_gradients = densify
        (gradient,) = mk.grad(lambda: jnp.sum(embed(TOKENS) ** 2 * weight), embed)()
        quotient = difference_quotient(
            lambda table: float((table[TOKENS] ** 2 * weight).sum()), exact(embed.embeddings)
        )
        np.testing.assert_allclose(gradient, quotient, rtol=1e-4, atol=1e-4)
        assert not gradient[4].any()


def test_transforms_change_nothing() -> None:
    embed = mk.Embed(7, 2)
    expected = embed.embeddings.numpy()[TOKENS]
    np.testing.assert_array_equal(mk.vmap(embed)(TOKENS), expected)
    np.testing.assert_array_equal(mk.scan(lambda _, x: (None, embed(x)), None, TOKENS)[1], expected)
    gradient = mk.grad(lambda x: jnp.sum(embed(x) ** 2), embed)
    np.testing.assert_allclose(mk.jit(gradient)(TOKENS)[0], gradient(TOKENS)[0], rtol=1e-6)


def test_the_table_is_there_from_the_start() -> None:
    embed = mk.Embed(1000, 30, name="words")
    assert [(v.name, v.shape, v.trainable) for v in embed.variables] == [("words/embeddings", (1000, 30), True)]
    deviation, error = deviation_of(embed.embeddings)
    assert abs(deviation - 0.87962566) < error
    assert (embed.vocab_size, embed.embed_dim) == (1000, 30)
    assert not mk.Embed(5, 2, trainable=False).trainable_variables
    assert mk.Embed(5, 2, initializer=mk.initializers.Ones())(TOKENS[0, :2]).tolist() == [[1, 1], [1, 1]]
    assert repr(embed) == "Embed(vocab_size=1000, embed_dim=30, name='words')"


@pytest.mark.parametrize(("vocab_size", "embed_dim"), [(1, 6), (10, 11), (100, 19), (50_000, 90)])
def test_the_default_size_grows_as_the_fourth_root(vocab_size: int, embed_dim: int) -> None:
    assert mk.Embed(vocab_size).embed_dim == embed_dim


@pytest.mark.parametrize("make", [np.array, jnp.asarray, mk.Variable, np.ndarray.tolist], ids=lambda f: f.__name__)
def test_existing_vectors_are_copied(make: Callable[[Any], Any]) -> None:
    given = normal(7, 2)
    existing = make(given)
    embed = mk.Embed(existing_vocab=existing)
    np.testing.assert_array_equal(embed(TOKENS), given[TOKENS])
    assert (embed.vocab_size, embed.embed_dim) == (7, 2)
    assert embed.embeddings is not existing


@pytest.mark.parametrize("dtype", [jnp.float32, *HALF], ids=lambda d: jnp.dtype(d).name)
def test_the_dtype_is_as_asked_for(dtype: Any) -> None:
    for embed in (mk.Embed(7, 2, dtype=dtype), mk.Embed(existing_vocab=normal(7, 2), dtype=dtype)):
        assert embed(TOKENS).dtype == embed.embeddings.dtype == dtype


@pytest.mark.parametrize("token", [-1, 7, 1000])
def test_a_token_out_of_range_is_an_error_and_in_compiled_code_nan(token: int) -> None:
    embed = mk.Embed(7, 2)
    with pytest.raises(ValueError) as caught:
        embed(jnp.array([1, token]))
    assert str(caught.value) == (
        f"Embed(vocab_size=7, embed_dim=2) has vectors for tokens from 0 to 6, got {token} among int32[2]: check the "
        "vocabulary, or make vocab_size larger"
    )
    vectors = mk.jit(embed)(jnp.array([1, token]))
    np.testing.assert_array_equal(vectors[0], embed.embeddings[1])
    assert jnp.isnan(vectors[1]).all()
    with pytest.raises(ValueError, match=r"path layers\[0\] in Sequential"):
        mk.Sequential([embed])(jnp.array([token]))


EXISTING = np.ones([3, 2], np.float32)
ERRORS: list[tuple[Callable[[], Any], str]] = [
    (lambda: mk.Embed(), "Must provide one of vocab_size or existing_vocab."),
    (lambda: mk.Embed(embed_dim=3), "Must provide one of vocab_size or existing_vocab."),
    (lambda: mk.Embed(-1), "Invalid vocab_size -1. Give the number of tokens, 1 or more"),
    (lambda: mk.Embed(0), "Invalid vocab_size 0. Give the number of tokens, 1 or more"),
    (lambda: mk.Embed(-1, 4), "vocab_size=-1 is below 1"),
    (lambda: mk.Embed(4, 0), "embed_dim=0 is below 1"),
    (
        lambda: mk.Embed(3, existing_vocab=EXISTING),
        "If `existing_vocab` is provided, none of `vocab_size`, `embedding_dim`, `initializer` are needed. Received: "
        "vocab_size=3, embed_dim=None, initializer=None",
    ),
    (
        lambda: mk.Embed(existing_vocab=EXISTING, initializer=mk.initializers.Ones()),
        "If `existing_vocab` is provided, none of `vocab_size`, `embedding_dim`, `initializer` are needed. Received: "
        "vocab_size=None, embed_dim=None, initializer=Ones()",
    ),
    (lambda: mk.Embed(existing_vocab=EXISTING[0]), "existing_vocab must be [vocab_size, embed_dim], got float32[2]"),
    (
        lambda: mk.Embed(3, 2)(jnp.ones([2])),
        "Embed(vocab_size=3, embed_dim=2) expects integers, got float32[2]: convert them, as in x.astype('int32')",
    ),
    (
        lambda: mk.Embed(3, 2).transpose(b_init=mk.initializers.Ones()),
        "When not using a bias the b_init must be None. Received: b_init=Ones()",
    ),
    (
        lambda: mk.Embed(3, 2).transpose()(jnp.ones([2, 3])),
        "TransposedEmbed(embed=Embed(vocab_size=3, embed_dim=2), name='embed_transpose') expects inputs of width 2, got "
        "float32[2,3]: a layer's input size is fixed when its weight is made; use another layer for another width",
    ),
]


@pytest.mark.parametrize(("call", "text"), ERRORS, ids=range(len(ERRORS)))
def test_errors(call: Callable[[], Any], text: str) -> None:
    with pytest.raises(ValueError) as caught:
        call()
    assert str(caught.value) == text


# The transpose.


def tied(with_bias: bool = True) -> tuple[mk.Embed, Any]:
    embed = mk.Embed(7, 3)
    return embed, embed.transpose(with_bias, mk.initializers.RandomNormal() if with_bias else None)


@pytest.mark.parametrize("with_bias", [False, True])
def test_the_transpose_multiplies_by_the_transposed_table(with_bias: bool) -> None:
    embed, logits = tied(with_bias)
    x = normal(2, 5, 3)
    expected = exact(x) @ exact(embed.embeddings).T + (exact(logits.b) if with_bias else 0)
    np.testing.assert_allclose(logits(jnp.asarray(x)), expected, rtol=1e-5, atol=1e-5)
    assert logits.embeddings is embed.embeddings
    assert logits.transpose() is embed
    assert not embed.transpose().with_bias


def test_names_and_ties() -> None:
    embed, logits = tied()
    assert [v.name for v in logits.variables] == ["embed/embed_transpose/b", "embed/embeddings"]
    model = mk.Sequential([embed, logits])
    assert len(model.variables) == 2
    assert [str(tie) for tie in model.ties()] == ["layers[0].embeddings = layers[1].embeddings (transposed)"]
    assert embed.transpose(name="logits").name == "logits"


def test_a_tied_table_has_one_gradient_the_sum_of_both_uses() -> None:
    embed, logits = tied()
    (_, table_gradient) = mk.grad(lambda: jnp.sum(jnp.sin(logits(embed(TOKENS)))), logits)()

    def loss(down: np.ndarray, up: np.ndarray) -> float:
        return float(np.sin(down[TOKENS] @ up.T + exact(logits.b)).sum())

    table = exact(embed.embeddings)
    both = difference_quotient(lambda t: loss(t, t), table)
    parts = difference_quotient(lambda t: loss(t, table), table) + difference_quotient(lambda t: loss(table, t), table)
    np.testing.assert_allclose(both, parts, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(table_gradient, both, rtol=1e-4, atol=1e-4)


def test_a_tied_table_stays_tied_through_updates_and_copies() -> None:
    embed, logits = tied()
    model, optimizer = mk.Sequential([embed, logits]), mk.optimizers.Adam(0.05)

    @mk.jit
    def step() -> Any:
        return optimizer.minimize(lambda: mk.losses.softmax_cross_entropy(model(TOKENS), TOKENS).mean(), model)

    losses = [float(step()) for _ in range(50)]
    assert losses[-1] < 0.1 * losses[0]
    assert len(optimizer.variables) == 2 * 2 + 1
    again = copy.deepcopy(model)
    assert again.layers[0].embeddings is again.layers[1].embeddings is not embed.embeddings
    assert again.layers[1].transpose() is again.layers[0]
    again.layers[0].embeddings.assign(jnp.zeros([7, 3]))
    np.testing.assert_allclose(again(TOKENS), np.broadcast_to(logits.b.numpy(), [2, 3, 7]))


def test_the_transpose_of_a_half_precision_table() -> None:
    embed = mk.Embed(7, 3, dtype=jnp.bfloat16)
    logits = embed.transpose(with_bias=True)
    assert logits(embed(TOKENS)).dtype == logits.b.dtype == jnp.bfloat16
    assert logits(jnp.ones([1, 3])).dtype == jnp.float32


def test_a_table_can_be_made_while_a_function_is_traced() -> None:
    made: list[mk.Embed] = []

    @mk.jit
    def first_use(x: jax.Array) -> Any:
        if not made:
            made.append(mk.Embed(7, 3))
        return made[0](x)

    np.testing.assert_array_equal(first_use(TOKENS), made[0].embeddings.numpy()[TOKENS])
