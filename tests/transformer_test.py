"""`Transformer` is its equation as encoder and decoder, with and without a memory, a cache, dropout and remat."""

import pickle
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_reference import multi_head
from references import HALF, exact, normal, op_count

import modulekit as mk

TOKENS = np.array([[3, 0, 3, 5], [1, 6, 2, 2]], np.int32)
MEMORY = normal(2, 3, 5)
CAUSAL = np.tri(4, dtype=bool)


@pytest.fixture(autouse=True)
def _start() -> None:
    mk.seed(0)


def make(**options: Any) -> mk.nets.Transformer:
    return mk.nets.Transformer(
        **{"num_layers": 2, "num_heads": 2, "key_size": 2, "hidden_size": 5, "vocab_size": 7, **options}
    )


def disturb(net: Any) -> None:
    """Gives all variables values that are neither zero nor one, so that none of them can be left out unnoticed."""
    for index, variable in enumerate(net.variables):
        variable.assign(0.5 * normal(*variable.shape, seed=index))


def gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def reference(net: Any, inputs: Any, mask: Any = True, memory: Any = None, memory_mask: Any = True) -> np.ndarray:
    """Returns the network's outputs in float64."""

    def norm(layer: Any, x: np.ndarray) -> np.ndarray:
        mean, variance = x.mean(axis=-1, keepdims=True), x.var(axis=-1, keepdims=True)
        return (x - mean) / np.sqrt(variance + 1e-5) * exact(layer.scale) + exact(layer.offset)

    def linear(layer: Any, x: np.ndarray) -> np.ndarray:
        return x @ exact(layer.w) + exact(layer.b)

    x = exact(inputs) if net.embed is None else exact(net.embed.embeddings)[inputs]
    if net.positions is not None:
        x = x + exact(net.positions.embeddings)[: x.shape[1]]
    for block in net.blocks:
        x = x + multi_head(block.attention, norm(block.attention_norm, x), mask=mask)
        if memory is not None:
            x = x + multi_head(block.memory_attention, norm(block.memory_norm, x), memory, mask=memory_mask)
        first, second = block.feed_forward.layers
        x = x + linear(second, gelu(linear(first, norm(block.feed_forward_norm, x))))
    x = norm(net.final_norm, x)
    return x if net.logits is None else x @ exact(net.embed.embeddings).T


DECODERS: dict[str, dict[str, Any]] = {
    "rotary": {},
    "learned": {"positions": "learned", "max_length": 6},
    "grouped": {"positions": None, "num_kv_heads": 1, "model_size": 3},
}
every_decoder = pytest.mark.parametrize("options", DECODERS.values(), ids=DECODERS)


@every_decoder
def test_a_decoder_is_its_equation(options: dict[str, Any]) -> None:
    net = make(**options)
    assert mk.build(net, TOKENS).shape == (2, 4, 7)
    disturb(net)
    np.testing.assert_allclose(mk.jit(net)(TOKENS), reference(net, TOKENS, CAUSAL), rtol=1e-4, atol=1e-4)


def test_an_encoder_takes_and_returns_vectors() -> None:
    net, x = make(vocab_size=None, causal=False), normal(2, 4, 4)
    assert mk.build(net, x).shape == (2, 4, 4)
    disturb(net)
    mask = np.array([[True, True, False, True], [True, False, False, False]])[:, None, None]
    np.testing.assert_allclose(mk.jit(net)(x, mask=mask), reference(net, x, mask), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(net(x), reference(net, x), rtol=1e-4, atol=1e-4)


def test_an_encoder_of_tokens_returns_vectors() -> None:
    net = make(num_layers=1, causal=False, with_logits=False)
    assert mk.build(net, TOKENS).shape == (2, 4, 4)
    disturb(net)
    np.testing.assert_allclose(mk.jit(net)(TOKENS), reference(net, TOKENS), rtol=1e-4, atol=1e-4)
    assert not net.ties()


def test_a_decoder_attends_to_a_memory() -> None:
    net = make(num_layers=1, cross_attention=True)
    mask = np.array([[True, True, False], [True, False, False]])[:, None, None]
    mk.build(net, TOKENS, memory=MEMORY)
    disturb(net)
    found = mk.jit(net)(TOKENS, memory=MEMORY, memory_mask=mask)
    np.testing.assert_allclose(found, reference(net, TOKENS, CAUSAL, MEMORY, mask), rtol=1e-4, atol=1e-4)


def test_a_later_token_changes_no_earlier_output_of_a_decoder() -> None:
    net, other = make(), TOKENS.copy()
    other[:, 2] = 4
    run = mk.jit(net)
    np.testing.assert_array_equal(run(other)[:, :2], run(TOKENS)[:, :2])
    assert (np.abs(run(other)[:, 2:] - run(TOKENS)[:, 2:]).max(axis=(0, 2)) > 1e-6).all()


@every_decoder
def test_decoding_by_tokens_gives_the_full_pass(options: dict[str, Any]) -> None:
    net = make(cross_attention=True, **options)
    mk.build(net, TOKENS, memory=MEMORY)
    disturb(net)
    full = mk.jit(lambda: net(TOKENS, memory=MEMORY))()

    @mk.jit
    def decode(begin: jax.Array, rest: jax.Array) -> Any:
        logits, cache = net(begin, memory=MEMORY, cache=net.initial_cache(2, 6))
        step = lambda cache, token: net(token[:, None], memory=MEMORY, cache=cache)[::-1]  # noqa: E731
        _, later = mk.scan(step, cache, rest.T)
        return jnp.concatenate([logits, later[:, :, 0].swapaxes(0, 1)], axis=1)

    np.testing.assert_allclose(decode(TOKENS[:, :2], TOKENS[:, 2:]), full, rtol=1e-5, atol=1e-5)


def test_dropout_drops_in_training_only_and_at_each_place() -> None:
    net = make(dropout_rate=0.5)
    evaluated = net(TOKENS, is_training=False)
    plain = make()
    mk.build(plain, TOKENS)
    plain.assign({path: variable.value for path, variable in net.paths().items()})
    np.testing.assert_array_equal(evaluated, plain(TOKENS))
    trained = [net(TOKENS, is_training=True) for _ in range(2)]
    assert all(np.abs(a - b).max() > 1e-3 for a, b in zip(trained, (evaluated, trained[0]), strict=True))
    compiled = mk.jit(net)
    mk.seed(1)
    first = compiled(TOKENS, is_training=True)
    mk.seed(1)
    np.testing.assert_allclose(net(TOKENS, is_training=True), first, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dropout_rate", [None, 0.5])
def test_remat_changes_no_value_and_no_gradient(dropout_rate: float | None) -> None:
    options = {} if dropout_rate is None else {"is_training": True}
    results = []
    for remat in (False, True):
        mk.seed(0)
        net = make(num_layers=1, remat=remat, dropout_rate=dropout_rate)
        loss = mk.value_and_grad(lambda net=net: jnp.sum(net(TOKENS, **options) ** 2), net)
        mk.build(net, TOKENS, **options)
        mk.seed(5)
        results.append(mk.jit(loss)())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *results)


def test_the_table_is_one_variable_with_the_gradients_of_both_uses() -> None:
    net = make()
    mk.build(net, TOKENS)
    disturb(net)
    assert [str(tie) for tie in net.ties()] == ["embed.embeddings = logits.embeddings (transposed)"]
    assert len(net.variables) == 1 + 2 + 2 * 16
    index = net.variables.index(net.embed.embeddings)
    gradient = mk.jit(mk.grad(lambda: jnp.sum(jnp.sin(net(TOKENS))), net))()[index]
    table = exact(net.embed.embeddings)
    for place in ((3, 1), (4, 2)):  # a token that comes, and one that is an output only
        step, sums = 1e-2, []
        for sign in (1, -1):
            changed = table.copy()
            changed[place] += sign * step
            net.embed.embeddings.assign(changed.astype(np.float32))
            sums.append(np.sin(reference(net, TOKENS, CAUSAL)).sum())
        net.embed.embeddings.assign(table.astype(np.float32))
        np.testing.assert_allclose(gradient[place], (sums[0] - sums[1]) / (2 * step), rtol=2e-2, atol=1e-2)


def test_a_small_decoder_learns_to_repeat_its_memory() -> None:
    encoder = make(num_layers=1, causal=False, with_logits=False, name="encoder")
    decoder = make(num_layers=1, cross_attention=True, positions="learned", max_length=4, name="decoder")
    optimizer = mk.optimizers.Adam(0.03)
    pair = mk.Sequential([encoder, decoder])
    shifted = np.pad(TOKENS[:, :-1], [(0, 0), (1, 0)])

    @mk.jit
    def step() -> Any:
        def loss() -> Any:
            logits = decoder(shifted, memory=encoder(TOKENS))
            return mk.losses.softmax_cross_entropy(logits.reshape(-1, 7), TOKENS.reshape(-1)).mean()

        return optimizer.minimize(loss, pair)

    losses = [float(step()) for _ in range(60)]
    assert losses[-1] < 0.2 * losses[0]
    again = pickle.loads(pickle.dumps(pair))
    assert again.layers[1].logits.embeddings is again.layers[1].embed.embeddings


@pytest.mark.parametrize("dtype", HALF, ids=lambda d: jnp.dtype(d).name)
def test_half_precision_is_kept(dtype: Any) -> None:
    net = make(dtype=dtype, positions="learned", max_length=4)
    logits, cache = mk.jit(net)(TOKENS, cache=net.initial_cache(2, 4))
    assert {logits.dtype, cache[0].keys.dtype, *(v.dtype for v in net.variables)} == {jnp.dtype(dtype)}
    np.testing.assert_allclose(exact(logits), reference(net, TOKENS, CAUSAL), atol=8 * float(jnp.finfo(dtype).eps))


def test_blocks_add_operations_of_their_own_only() -> None:
    one, three = make(num_layers=1), make(num_layers=3)
    mk.build(one, TOKENS), mk.build(three, TOKENS)
    block, x = one.blocks[0], jnp.zeros([2, 4, 4])
    alone = op_count(mk.jit(lambda x: block(x)[0]), x)
    assert op_count(mk.jit(three), TOKENS) - op_count(mk.jit(one), TOKENS) <= 2 * alone


NAME = "Transformer(num_layers=2, num_heads=2, key_size=2, hidden_size=5, vocab_size=7"
ERRORS: list[tuple[Callable[[], Any], str]] = [
    (lambda: make(num_layers=0), "num_layers=0 is below 1"),
    (lambda: make(vocab_size=0), "vocab_size=0 is below 1"),
    (lambda: make(positions="sine"), "positions='sine' is none of 'rotary', 'learned' and None"),
    (
        lambda: make(positions="learned"),
        "max_length belongs to positions='learned', got positions='learned' and max_length=None",
    ),
    (lambda: make(max_length=4), "max_length belongs to positions='learned', got positions='rotary' and max_length=4"),
    (
        lambda: make(key_size=3)(TOKENS),
        "rotary positions need [batch, time, heads, size] with an even size, got float32[2,4,2,3]: choose an even key_size",
    ),
    (lambda: make()(TOKENS[0]), f"{NAME}) expects tokens of shape [batch, time], got int32[4]"),
    (
        lambda: make(vocab_size=None)(normal(2, 3, 5)),
        f"{NAME.replace(', vocab_size=7', '')}) expects vectors of shape [batch, time, 4], got float32[2,3,5]",
    ),
    (lambda: make()(TOKENS, is_training=True), "The `is_training` argument should only be used with dropout."),
    (lambda: make(dropout_rate=0.1)(TOKENS), "The `is_training` argument is required when dropout is used."),
    (
        lambda: make(cross_attention=True)(TOKENS),
        f"{NAME}, cross_attention=True) attends to a memory: give it, as in decoder(tokens, memory=encoder(x))",
    ),
    (lambda: make()(TOKENS, memory=MEMORY), f"{NAME}) attends to no memory: make it with cross_attention=True"),
    (
        lambda: make(causal=False).initial_cache(2, 4),
        f"{NAME}, causal=False) is not causal, and so its later positions change what came before: no cache",
    ),
    (
        lambda: make(causal=False)(TOKENS, cache=make().initial_cache(2, 4)),
        f"{NAME}, causal=False) is not causal, and so its later positions change what came before: no cache",
    ),
    (
        lambda: make()(TOKENS, cache=make(num_layers=3).initial_cache(2, 4)),
        f"{NAME}) expects 2 caches, one for a block, got 3",
    ),
    (
        lambda: make(positions="learned", max_length=3).initial_cache(2, 4),
        f"{NAME}, positions='learned', max_length=3) has 3 learned positions, got max_length=4: make the cache shorter, or "
        "the network with a larger max_length",
    ),
    (
        lambda: make(positions="learned", max_length=3)(TOKENS),
        f"LearnedPositions(max_length=3, name='positions') (path positions in {NAME}, positions='learned', max_length=3)) "
        "has vectors for 3 positions, got float32[2,4,4] from position 0 on: make max_length larger, or the sequence "
        "shorter",
    ),
]


@pytest.mark.parametrize(("call", "text"), ERRORS, ids=range(len(ERRORS)))
def test_errors(call: Callable[[], Any], text: str) -> None:
    with pytest.raises(ValueError) as caught:
        call()
    assert str(caught.value) == text
