"""Laws of `mk.untouched`: what modules do to their own variables inside has never happened, and everything else has."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from catalogue import assert_bitwise
from catalogue import state as state_of

import modulekit as mk

X = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
WAYS: dict[str, Callable[[Any], Any]] = {"eager": lambda function: function, "compiled": mk.jit}
either_way = pytest.mark.parametrize("way", WAYS)


class Writing(mk.Module):
    """A layer with everything that writes: statistics, a power iteration, dropout of the default stream and of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = mk.NormalizedWeight(mk.Linear(4), mk.SpectralNorm())
        self.norm = mk.BatchNorm(create_scale=True, create_offset=True, decay_rate=0.5)
        self.dropout = mk.Dropout(0.3)
        self.own = mk.Dropout(0.3, seed=5)

    def __call__(self, x: Any) -> Any:
        y = self.own(self.dropout(self.linear(x, is_training=True), is_training=True), is_training=True)
        return self.norm(y, is_training=True)


def states(module: mk.Module) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Returns what must stay, and the streams."""
    found = state_of(module)
    streams = {path: found.pop(path) for path in list(found) if path.startswith(("own", "default_stream"))}
    return found, streams


@either_way
def test_weights_and_statistics_stay_bitwise_and_random_streams_go_on(way: str) -> None:
    module = Writing()
    module(X)
    run = WAYS[way](lambda x: inside(module, x))
    before, streams = states(module)
    outputs = [np.asarray(run(X)) for _ in range(3)]
    after, streams_after = states(module)
    assert_bitwise(after, before)
    counts = [path for path in streams if path.endswith("counter")]
    assert len(counts) == 2
    assert [streams_after[path] - streams[path] for path in counts] == [3, 3]
    assert not np.array_equal(outputs[0], outputs[1]), "dropout draws anew"
    module(X)
    moved = {path for path, value in states(module)[0].items() if value.tobytes() != before[path].tobytes()}
    assert {"linear.norm.u", "norm.moving_mean.average", "norm.moving_variance.average"} <= moved


def inside(module: mk.Module, x: Any) -> Any:
    with mk.untouched(module):
        return module(x)


@either_way
def test_what_is_written_elsewhere_is_kept(way: str) -> None:
    kept, dropped = mk.ExponentialMovingAverage(0.5), mk.ExponentialMovingAverage(0.5)
    kept(0.0), dropped(0.0)

    def run(x: Any) -> Any:
        with mk.untouched(dropped):
            return dropped(kept(x) + 1)

    value = float(WAYS[way](run)(3.0))
    assert float(kept.value) == 2.0
    assert value == 2.0, "inside, the module sees what it wrote"
    assert float(dropped.value) == 0.0


@either_way
def test_gradients_pass_and_are_those_without_the_context(way: str) -> None:
    critic, other = Critic(), Critic()
    other.assign({path: v.numpy() for path, v in critic.paths().items()})
    w = mk.Variable(X[0], name="w")

    def slope(module: Critic, is_untouched: bool) -> Any:
        def loss() -> Any:
            if not is_untouched:
                return module(w * X).sum()
            with mk.untouched(module):
                return module(w * X).sum()

        return WAYS[way](lambda: mk.grad(loss, [w, module])())()

    for found, expected in zip(slope(critic, True), slope(other, False), strict=True):
        np.testing.assert_array_equal(found, expected)
    assert float(critic.calls) == 0
    assert float(other.calls) == 1


class Critic(mk.Module):
    """A weight, and a count of calls."""

    def __init__(self) -> None:
        super().__init__()
        self.v = mk.Variable(X[1], name="v")
        self.calls = mk.Variable(0.0, trainable=False, name="calls")

    def __call__(self, x: Any) -> Any:
        self.calls.assign_add(1)
        return jnp.tanh(x @ self.v)


@either_way
def test_a_module_first_called_inside_has_its_first_values(way: str) -> None:
    mk.seed(3)
    module = Writing()
    WAYS[way](lambda x: inside(module, x))(X)
    mk.seed(3)
    built = Writing()
    mk.build(built, X)
    assert_bitwise(states(module)[0], states(built)[0])


@pytest.mark.parametrize("loop", ["scan", "while_loop", "cond"])
def test_it_works_in_loops_and_branches(loop: str) -> None:
    critic, seen = Critic(), mk.Variable(0.0, name="seen")

    def step(x: Any) -> Any:
        with mk.untouched(critic):
            seen.assign_add(critic(x).sum() * 0 + 1)
        return x

    runs: dict[str, Callable[[], Any]] = {
        "scan": lambda: mk.scan(lambda carry, _: (step(carry), None), X, length=3),
        "while_loop": lambda: mk.while_loop(lambda s: s[0] < 3, lambda s: (s[0] + 1, step(s[1])), (0, X)),
        "cond": lambda: [mk.cond(taken, step, lambda x: x, X) for taken in (True, True, False, True)],
    }
    runs[loop]()
    assert float(seen) == 3
    assert float(critic.calls) == 0


def test_a_compiled_function_called_inside_changes_nothing() -> None:
    critic = Critic()
    run = mk.jit(critic)
    with mk.untouched(critic):
        run(X)
        run(X)
        assert float(critic.calls) == 2
    assert float(critic.calls) == 0
    run(X)
    assert float(critic.calls) == 1


@either_way
def test_contexts_nest(way: str) -> None:
    inner, outer = Critic(), Critic()

    def run(x: Any) -> Any:
        with mk.untouched(outer):
            outer(x)
            with mk.untouched(inner):
                inner(x), outer(x)
            return outer.calls + inner.calls * 10

    assert float(WAYS[way](run)(X)) == 2
    assert (float(inner.calls), float(outer.calls)) == (0, 0)


@either_way
def test_an_exception_leaves_everything_as_it_was(way: str) -> None:
    critic, other = Critic(), Critic()

    def run(x: Any) -> None:
        with mk.untouched(critic):
            critic(x), other(x)
            raise KeyError("no such thing")

    with pytest.raises(KeyError, match="no such thing"):
        WAYS[way](run)(X)
    assert (float(critic.calls), float(other.calls)) == (0, 0)


def test_no_flag_is_set_and_nothing_compiles_again() -> None:
    critic = Critic()
    train = mk.jit(lambda x: mk.grad(lambda: critic(x).sum(), critic)())
    train(X)
    with mk.untouched(critic):
        assert critic.v.trainable
        critic(X)
    train(X)
    assert len(train.traces) == 1


def test_what_is_no_module_is_refused() -> None:
    expected = pytest.raises(TypeError, match=r"^mk\.untouched takes modules, got <function .*> \(a function\)$")
    with expected, mk.untouched(lambda x: x):  # type: ignore[arg-type]
        pass


def test_each_lane_of_vmap_sees_its_own_writes() -> None:
    critic, seen = Critic(), mk.Variable(jnp.zeros([3]), name="seen")

    def lane(x: Any) -> Any:
        with mk.untouched(critic):
            outputs = critic(x)
            seen.assign(critic.calls.value)
        return outputs

    inputs = np.stack([X, 2 * X, 3 * X])
    np.testing.assert_allclose(mk.vmap(lane, stacked=[seen])(inputs), np.tanh(inputs @ X[1]), rtol=1e-5, atol=1e-6)
    assert seen.value.tolist() == [1, 1, 1]
    assert float(critic.calls) == 0
