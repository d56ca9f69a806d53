"""Laws of `stack`: a loop over stacked layers is the unrolled loop over them."""

import copy
import functools
import pickle
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from catalogue import assert_near, variables_of

import modulekit as mk

X = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
N = 3


class Block(mk.Module):
    """A residual block with a tied pair, dropout and a moving average."""

    def __init__(self, seed: int | None = None) -> None:
        super().__init__()
        self.inner = mk.Linear(6)
        self.outer = self.inner.transpose()
        self.dropout = mk.Dropout(0.4, seed=seed)
        self.average = mk.Variable(jnp.zeros([6]), trainable=False, name="average")

    def __call__(self, x: Any, is_training: bool) -> Any:
        hidden = jnp.tanh(self.inner(x))
        self.average.assign(0.9 * self.average + 0.1 * hidden.mean(axis=0))
        return x + self.outer(self.dropout(hidden, is_training))


def unrolled(tower: Any, x: Any, is_training: bool) -> tuple[Any, list[Any]]:
    """Returns what a plain loop over the layers returns, and the layers."""
    layers = tower.unstacked()
    for layer in layers:
        x = layer(x, is_training=is_training)
    return x, layers


WAYS: dict[str, Callable[[Any, bool], Any]] = {
    "eager": lambda tower, training: tower(X, is_training=training),
    "jit": lambda tower, training: mk.jit(lambda x: tower(x, is_training=training))(X),
    "remat": lambda tower, training: mk.remat(lambda x: tower(x, is_training=training))(X),
    "scan": lambda tower, training: mk.scan(lambda c, x: (c, tower(x, is_training=training)), None, X[None])[1][0],
    "cond": lambda tower, training: mk.cond(True, lambda x: tower(x, is_training=training), lambda x: x, X),
    "grad": lambda tower, training: mk.value_and_grad(
        lambda: (jnp.float32(0.0), tower(X, is_training=training)), tower, has_aux=True
    )()[0][1],
    "jit of jit": lambda tower, training: mk.jit(lambda x: mk.jit(tower)(x, is_training=training))(X),
}


@pytest.mark.parametrize("seed", [None, 3], ids=["default stream", "own stream"])
@pytest.mark.parametrize("is_training", [True, False])
@pytest.mark.parametrize("way", WAYS)
def test_a_stack_is_the_unrolled_loop_from_its_first_call(way: str, is_training: bool, seed: int | None) -> None:
    mk.seed(1)
    reference = mk.stack(Block(seed), N)
    mk.build(reference, X, is_training=is_training)
    expected, layers = unrolled(reference, X, is_training)
    mk.seed(1)
    tower = mk.stack(Block(seed), N)
    assert_near(WAYS[way](tower, is_training), expected)
    for path, variable in tower.layer.paths().items():
        assert_near(variable.value, jnp.stack([layer.paths()[path].value for layer in layers]))
    assert [tie.paths for tie in tower.ties()] == [("layer.inner.w", "layer.outer.w")]


def test_the_gradient_is_that_of_the_unrolled_loop() -> None:
    tower = mk.stack(Block(), N)
    mk.build(tower, X, is_training=False)
    stacked = mk.grad(lambda: jnp.sum(tower(X, is_training=False) ** 2), tower)()
    layers = tower.unstacked()

    def loss() -> Any:
        x: Any = X
        for layer in layers:
            x = layer(x, is_training=False)
        return jnp.sum(x**2)

    each = [mk.grad(loss, layer)() for layer in layers]
    for index, gradient in enumerate(stacked):
        assert_near(gradient, jnp.stack([gradients[index] for gradients in each]))


@pytest.mark.parametrize("seed", [None, 3])
def test_layers_drop_different_elements_and_so_do_calls(seed: int | None) -> None:
    class Dropping(mk.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dropout = mk.Dropout(0.5, seed=seed)

        def __call__(self, carry: Any) -> Any:
            masks, index = carry
            mask = self.dropout(jnp.ones([64]), is_training=True)
            return jax.lax.dynamic_update_index_in_dim(masks, mask, index, 0), index + 1

    tower = mk.stack(Dropping(), N)
    run = mk.jit(lambda: tower((jnp.zeros([N, 64]), jnp.int32(0)))[0])
    first, second = run(), run()
    rows = {tuple(row.tolist()) for row in np.concatenate([first, second])}
    assert len(rows) == 2 * N


def test_first_weights_differ_from_layer_to_layer_and_follow_the_seed() -> None:
    towers = []
    for seed in (1, 1, 2):
        mk.seed(seed)
        towers.append(mk.stack(mk.Linear(5), N))
        towers[-1](X)
    first, again, other = (tower.layer.w.numpy() for tower in towers)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert len({layer.tobytes() for layer in first}) == N


def test_a_function_that_makes_layers_serves_as_well() -> None:
    tower = mk.stack(lambda: mk.Linear(5), N)
    assert_near(tower(X), functools.reduce(lambda x, layer: layer(x), tower.unstacked(), X))
    assert len({layer.tobytes() for layer in tower.layer.w.numpy()}) == N
    assert tower.layer.w.name == "stack/linear/w"


@pytest.mark.parametrize("unroll", [2, True])
def test_unrolling_changes_no_result(unroll: int | bool) -> None:
    mk.seed(0)
    plain = mk.stack(mk.Linear(5), 4)(X)
    mk.seed(0)
    assert_near(mk.stack(mk.Linear(5), 4, unroll)(X), plain)


def test_it_trains_and_survives_copies() -> None:
    tower, optimizer = mk.stack(Block(), N), mk.optimizers.Adam(1e-2)
    step = mk.jit(lambda x: optimizer.minimize(lambda: jnp.mean(tower(x, is_training=True) ** 2), tower))
    losses = [float(step(X)) for _ in range(60)]
    assert losses[-1] < 0.5 * losses[0]
    expected = tower(X, is_training=False)
    for other in (copy.deepcopy(tower), pickle.loads(pickle.dumps(tower))):
        np.testing.assert_allclose(other(X, is_training=False), expected, rtol=1e-6)
        assert [tie.paths for tie in other.ties()] == [("layer.inner.w", "layer.outer.w")]
    assert all(not isinstance(v.value, jax.core.Tracer) for v in variables_of(tower))


def test_compiling_many_layers_makes_no_larger_program_than_a_few() -> None:
    def lines(n: int) -> int:
        tower = mk.stack(mk.Linear(5), n)
        return len(mk.jit(lambda x: tower(x)).lower(X).as_text().splitlines())

    assert lines(40) == lines(4)


def test_errors_say_what_was_wrong() -> None:
    layer = mk.Linear(5)
    layer(X)
    with pytest.raises(ValueError) as raised:
        mk.stack(layer, 2)
    assert str(raised.value) == (
        "Linear(output_size=5) has been called and has its weights, and each layer of a stack has its own: give a fresh one"
    )
    with pytest.raises(ValueError) as raised:
        mk.stack(mk.Linear(3), 2)(X)
    assert str(raised.value) == (
        "Stack(layer=Linear(output_size=3), n=2) needs a layer that returns what it takes, and Linear(output_size=3) takes "
        "float32[4,5] and returns float32[4,3]"
    )
    with pytest.raises(ValueError, match="a stack of n=0 layers: give at least 1"):
        mk.stack(mk.Linear(3), 0)


# `scan` and `vmap` over variables that hold one value for each step or lane.


def test_scan_gives_each_step_its_slice_and_keeps_what_it_writes_in_its_place() -> None:
    w = mk.Variable(jnp.arange(6.0).reshape(3, 2), name="w")
    total = mk.Variable(jnp.zeros([2]), name="total")

    def step(carry: Any, x: Any) -> tuple[Any, Any]:
        assert w.shape == (2,)
        w.assign(w * x)
        total.assign_add(w.value)
        return carry + 1, w.sum() if hasattr(w, "sum") else w.value.sum()

    count, sums = mk.scan(step, 0, jnp.array([1.0, 10.0, 100.0]), stacked=[w])
    np.testing.assert_array_equal(w.value, [[0, 1], [20, 30], [400, 500]])
    np.testing.assert_array_equal(total.value, [420, 531])
    assert (int(count), sums.tolist()) == (3, [1.0, 50.0, 900.0])


def test_only_what_was_written_counts_as_written() -> None:
    read, written = mk.Variable(jnp.ones([3]), name="read"), mk.Variable(jnp.ones([3]), name="written")

    def lane() -> Any:
        written.assign(written * 2)
        return read.value

    mk.vmap(lane, stacked=[read, written])()
    mk.scan(lambda c, _: (c, lane()), None, length=3, stacked=[read, written])
    assert (read.version, written.version) == (0, 2)
