"""Laws of randomness: part of the state, the same sequence under every transform, independent of construction order."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from catalogue import X
from hypothesis import given, settings
from hypothesis import strategies as st

import modulekit as mk

ONES = jnp.ones([64])


def mask(_: Any = None) -> jax.Array:
    return mk.Dropout(0.5)(ONES, is_training=True)


def by_loop(draw: Callable[..., Any], count: int) -> Any:
    return jnp.stack([draw() for _ in range(count)])


def by_jit(draw: Callable[..., Any], count: int) -> Any:
    compiled = mk.jit(lambda: draw())
    return jnp.stack([compiled() for _ in range(count)])


def by_one_jit(draw: Callable[..., Any], count: int) -> Any:
    return mk.jit(lambda: by_loop(draw, count))()


def by_scan(draw: Callable[..., Any], count: int) -> Any:
    return mk.scan(lambda carry, _: (carry, draw()), None, length=count)[1]


def by_jit_of_scan(draw: Callable[..., Any], count: int) -> Any:
    return mk.jit(lambda: by_scan(draw, count))()


def by_fori_loop(draw: Callable[..., Any], count: int) -> Any:
    return mk.fori_loop(0, count, lambda i, out: out.at[i].set(draw()), jnp.zeros([count, 64]))


WAYS = [by_jit, by_one_jit, by_scan, by_jit_of_scan, by_fori_loop]
every_way = pytest.mark.parametrize("way", WAYS, ids=lambda f: f.__name__)


@every_way
def test_dropout_masks_differ_per_step_and_are_the_eager_ones(way: Any) -> None:
    mk.seed(5)
    expected = np.asarray(by_loop(mask, 4))
    after = jax.random.key_data(mk.next_key())
    mk.seed(5)
    actual = np.asarray(way(mask, 4))
    np.testing.assert_array_equal(actual, expected)
    np.testing.assert_array_equal(jax.random.key_data(mk.next_key()), after)
    assert len({row.tobytes() for row in actual}) == 4


@every_way
def test_a_stream_of_ones_own_gives_the_eager_sequence(way: Any) -> None:
    def drawn(how: Any) -> Any:
        stream = mk.RandomStream(3)
        return np.asarray(how(lambda: jax.random.normal(stream.next_key(), [64]), 3))

    np.testing.assert_allclose(drawn(way), drawn(by_loop), rtol=1e-5, atol=1e-6)


def test_the_same_seed_repeats_and_another_does_not() -> None:
    def draws(seed: int) -> tuple[Any, Any]:
        mk.seed(seed)
        layer = mk.Linear(3)
        layer(X)
        return layer.w.numpy(), np.asarray(mask())

    first, again, other = draws(1), draws(1), draws(2)
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert (first[0] != other[0]).any()
    assert (first[1] != other[1]).any()


@pytest.mark.parametrize("seed", [-1, 2**32, 1.5, True])
def test_what_is_no_seed_is_refused_with_its_value(seed: Any) -> None:
    with pytest.raises(ValueError, match="is no integer from 0"):
        mk.seed(seed)
    with pytest.raises(ValueError, match="is no integer from 0"):
        mk.RandomStream(seed)


def test_seeding_inside_a_transform_is_refused() -> None:
    with pytest.raises(RuntimeError, match="inside a transform"):
        mk.jit(lambda: mk.seed(1))()


def test_a_compiled_function_sees_a_new_seed() -> None:
    compiled = mk.jit(mask)
    mk.seed(1)
    first = np.asarray(compiled())
    compiled()
    mk.seed(1)
    np.testing.assert_array_equal(compiled(), first)


def weights(build: Callable[[], Any], seed: int = 4) -> dict[str, np.ndarray]:
    mk.seed(seed)
    net = build()
    net(X)
    return {v.name: v.numpy() for v in net.variables if v.ndim == 2}


def named(*names: str) -> Callable[[], Any]:
    return lambda: mk.Sequential([mk.Linear(5, name=name) for name in names])


@settings(deadline=None, max_examples=10)
@given(names=st.lists(st.sampled_from("abcdef"), min_size=1, max_size=4, unique=True), data=st.data())
def test_first_weights_do_not_depend_on_which_other_layers_there_are_or_their_order(
    names: list[str], data: Any
) -> None:
    order = data.draw(st.permutations([*names, "extra"]))
    fewer, more = weights(named(*names)), weights(named(*order))
    for name, value in fewer.items():
        np.testing.assert_array_equal(more[name], value)
    assert len({value.tobytes() for value in more.values()}) == len(more)


def test_siblings_of_one_name_differ() -> None:
    mk.seed(4)
    first, second = mk.Linear(5), mk.Linear(5)
    first(X)
    second(X)
    assert first.w.name == second.w.name
    assert (first.w.numpy() != second.w.numpy()).any()


def test_a_layer_built_later_or_under_a_transform_draws_the_same_weights() -> None:
    def pair(first: str) -> dict[str, np.ndarray]:
        mk.seed(4)
        layers = {name: mk.Linear(5, name=name) for name in ("a", "b")}
        mk.jit(layers[first])(X)
        for layer in layers.values():
            layer(X)
        return {name: layer.w.numpy() for name, layer in layers.items()}

    one, other = pair("a"), pair("b")
    for name, value in one.items():
        np.testing.assert_array_equal(other[name], value)


def test_training_draws_do_not_change_the_weights_of_layers_made_afterwards() -> None:
    mk.seed(4)
    expected = mk.Linear(5)
    expected(X)
    mk.seed(4)
    mk.jit(mask)()
    layer = mk.Linear(5)
    layer(X)
    np.testing.assert_array_equal(layer.w.numpy(), expected.w.numpy())


@pytest.mark.parametrize("copies", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
def test_a_copied_stream_goes_on_from_where_the_original_stood(copies: Any) -> None:
    stream = mk.RandomStream(3)
    mk.jit(lambda: jax.random.key_data(stream.next_key()))()
    twin = copies(stream)
    np.testing.assert_array_equal(jax.random.key_data(twin.next_key()), jax.random.key_data(stream.next_key()))
    assert int(twin.counter) == int(stream.counter) == 2


def test_a_stream_counts_its_draws_and_restarts() -> None:
    stream = mk.RandomStream(3)
    first = jax.random.key_data(stream.next_key())
    stream.next_key()
    stream.restart(jax.random.key(3))
    np.testing.assert_array_equal(jax.random.key_data(stream.next_key()), first)
    assert not stream.trainable_variables
    assert [v.name for v in stream.variables] == ["random_stream/counter", "random_stream/key"]


def test_no_key_is_drawn_twice() -> None:
    mk.seed(0)
    keys = mk.scan(lambda c, _: (c, jax.random.key_data(mk.next_key())), None, length=50)[1]
    more = [np.asarray(jax.random.key_data(mk.next_key())) for _ in range(5)]
    assert len({key.tobytes() for key in [*np.asarray(keys), *more]}) == 55


def test_dropout_scales_what_it_keeps_and_is_the_identity_outside_training() -> None:
    out = np.asarray(mk.Dropout(0.25)(jnp.ones([4000]), is_training=True))
    assert set(np.unique(out).tolist()) == {0.0, float(np.float32(1 / 0.75))}
    assert abs((out == 0).mean() - 0.25) < 0.03
    np.testing.assert_array_equal(mk.Dropout(0.25)(ONES, is_training=False), ONES)


def test_an_exception_after_a_draw_takes_the_draw_back() -> None:
    mk.seed(2)
    expected = jax.random.key_data(mk.next_key())
    mk.seed(2)

    def draw_and_raise() -> None:
        mk.next_key()
        raise KeyError("no")

    for run in (mk.jit(draw_and_raise), lambda: mk.scan(lambda c, _: draw_and_raise(), None, length=2)):
        with pytest.raises(KeyError):
            run()
    np.testing.assert_array_equal(jax.random.key_data(mk.next_key()), expected)
