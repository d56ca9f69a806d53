"""Laws of accumulation: batches of 4, 4 and 2 make the step of the batch of 10, and in between nothing changes."""

import copy
import functools
import pickle
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import modulekit as mk
import scenarios
from modulekit import optimizers

INNER: dict[str, Callable[[], mk.Optimizer]] = {
    "sgd": lambda: optimizers.SGD(0.1),
    "momentum": lambda: optimizers.Momentum(0.1, 0.9),
    "adam": lambda: optimizers.Adam(0.01),
}
RNG = np.random.default_rng(0)
INPUTS, TARGETS = (RNG.normal(size=[30, size]).astype(np.float32) for size in (4, 2))
SIZES = [4, 4, 2]


def net() -> mk.nets.MLP:
    mk.seed(0)
    model = mk.nets.MLP([5, 2], activation=jnp.tanh)
    model(INPUTS[:1])
    return model


def loss(model: Any, x: Any, y: Any) -> Any:
    return mk.losses.squared_error(model(x), y).mean()


def batches(sizes: list[int]) -> list[tuple[np.ndarray, np.ndarray]]:
    ends = np.cumsum(sizes)
    return [(INPUTS[end - size : end], TARGETS[end - size : end]) for end, size in zip(ends, sizes, strict=True)]


def train(optimizer: mk.Optimizer, sizes: list[int], compiled: bool = True) -> mk.nets.MLP:
    model = net()

    def step(x: Any, y: Any) -> Any:
        return optimizer.minimize(lambda: loss(model, x, y), model, weight=x.shape[0])

    step = mk.jit(step) if compiled else step
    for x, y in batches(sizes):
        step(x, y)
    return model


def state(*modules: mk.Module) -> list[np.ndarray]:
    return [v.numpy() for module in modules for v in module.paths().values()]


@pytest.mark.parametrize(("inner", "compiled"), [*((inner, True) for inner in INNER), ("adam", False)])
def test_uneven_batches_make_the_step_of_all_their_examples(inner: str, compiled: bool) -> None:
    parts = train(optimizers.Accumulated(INNER[inner](), every=3), SIZES * 3, compiled)
    whole = train(INNER[inner](), [10] * 3, compiled)
    for left, right in zip(state(parts), state(whole), strict=True):
        np.testing.assert_allclose(left, right, rtol=0, atol=1e-6)
    assert np.abs(state(parts)[0] - state(net())[0]).max() > 1e-3
    unweighted = optimizers.Accumulated(INNER["sgd"](), every=3)
    model = net()
    for x, y in batches(SIZES):
        unweighted.minimize(functools.partial(loss, model, x, y), model)
    assert (
        max(np.abs(a - b).max() for a, b in zip(state(model), state(train(INNER["sgd"](), [10])), strict=True)) > 1e-4
    )


@given(st.lists(st.tuples(st.integers(1, 100), st.floats(-10, 10, width=32)), min_size=1, max_size=6))
@settings(max_examples=30, deadline=None)
def test_the_mean_is_weighted_in_any_order(rows: list[tuple[int, float]]) -> None:
    expected = sum(w * g for w, g in rows) / sum(w for w, _ in rows)
    for order in (rows, rows[::-1]):
        p = mk.Variable(0.0, name="p")
        accumulated = optimizers.Accumulated(optimizers.SGD(1.0), every=len(rows))
        for weight, gradient in order:
            accumulated.apply([jnp.float32(gradient)], [p], weight=weight)
        np.testing.assert_allclose(-float(p), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("inner", "compiled"), [("adam", False), ("adam", True), ("momentum", True)])
def test_in_between_parameters_and_slots_stay_bitwise(inner: str, compiled: bool) -> None:
    model, wrapped = net(), INNER[inner]()
    accumulated = optimizers.Accumulated(wrapped, every=3)
    step = lambda x, y: accumulated.minimize(lambda: loss(model, x, y), model, weight=4)  # noqa: E731
    step = mk.jit(step) if compiled else step
    previous: list[np.ndarray] = []
    for count, (x, y) in enumerate(batches([4] * 7)):
        step(x, y)
        now = state(model, wrapped)
        assert int(accumulated.count) == (count + 1) % 3
        assert float(accumulated.weight) == 4 * ((count + 1) % 3)
        if count in (1, 3, 4, 6):
            for left, right in zip(previous, now, strict=True):
                np.testing.assert_array_equal(left, right)
        elif count:
            assert any((a != b).any() for a, b in zip(state(model), previous, strict=False))
        previous = now


def test_in_between_nothing_is_changed_from_the_start() -> None:
    model, wrapped = net(), optimizers.Adam(0.1)
    accumulated = optimizers.Accumulated(wrapped, every=5)
    step = mk.jit(lambda x, y: accumulated.minimize(lambda: loss(model, x, y), model))
    for x, y in batches([4] * 4):
        step(x, y)
    for left, right in zip(state(model), state(net()), strict=True):
        np.testing.assert_array_equal(left, right)
    assert all(not slot.any() for slot in state(wrapped))
    assert {v.name for v in accumulated.sums} == {f"accumulated/sums/{v.name}" for v in model.variables}


@pytest.mark.parametrize("way", ["scan", "while_loop"])
def test_accumulation_runs_in_loops(way: str) -> None:
    model, other = net(), net()
    first, second = (optimizers.Accumulated(optimizers.Adam(0.01), every=3) for _ in range(2))
    xs, ys = INPUTS.reshape(6, 5, 4), TARGETS.reshape(6, 5, 2)

    def step(x: Any, y: Any) -> Any:
        return first.minimize(lambda: loss(model, x, y), model, weight=5)

    @mk.jit
    def run(xs: Any, ys: Any) -> Any:
        if way == "scan":
            return mk.scan(lambda carry, pair: (carry, step(*pair)), 0, (xs, ys))
        return mk.while_loop(lambda i: i < 6, lambda i: (step(xs[i], ys[i]), i + 1)[1], 0)

    run(xs, ys)
    for x, y in zip(xs, ys, strict=True):
        second.minimize(functools.partial(loss, other, x, y), other, weight=5)
    for left, right in zip(state(model, first), state(other, second), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-6)
    assert int(first.optimizer.step) == 2


def test_one_update_for_a_step_is_the_optimizer_itself_bitwise() -> None:
    accumulated = optimizers.Accumulated(optimizers.Adam(0.01), every=1)
    for left, right in zip(
        state(train(accumulated, [7] * 4)), state(train(optimizers.Adam(0.01), [7] * 4)), strict=True
    ):
        np.testing.assert_array_equal(left, right)
    assert not accumulated.sums


def pair() -> list[mk.Variable]:
    return [mk.Variable(jnp.ones([2]), name=name) for name in "ab"]


def g(value: float) -> Any:
    return jnp.full([2], value)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "jit"])
def test_none_counts_as_zero_and_what_never_has_an_update_is_left_alone(compiled: bool) -> None:
    (a, b), momentum = pair(), optimizers.Momentum(1.0, 0.5)
    accumulated = optimizers.Accumulated(momentum, every=2)

    def apply(*updates: Any) -> None:
        run = lambda given: accumulated.apply(given, [a, b], weight=1)  # noqa: E731
        (mk.jit(run) if compiled else run)(list(updates))

    apply(g(2.0), None)
    apply(g(4.0), None)
    np.testing.assert_array_equal(a.numpy(), [-2.0, -2.0])
    np.testing.assert_array_equal(b.numpy(), [1.0, 1.0])
    assert len(accumulated.sums) == 1
    apply(None, g(6.0))
    apply(g(2.0), None)
    np.testing.assert_array_equal(a.numpy(), [-2.0 - (0.5 * 3 + 1)] * 2)
    np.testing.assert_array_equal(b.numpy(), [1.0 - 3.0] * 2)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "jit"])
def test_a_frozen_parameter_and_its_slots_stay_and_its_sum_is_dropped(compiled: bool) -> None:
    (a, b), momentum = pair(), optimizers.Momentum(1.0, 0.5)
    accumulated = optimizers.Accumulated(momentum, every=2)
    apply = lambda x, y: accumulated.apply([x, y], [a, b])  # noqa: E731
    apply = mk.jit(apply) if compiled else apply
    apply(g(2.0), g(2.0))
    apply(g(2.0), g(2.0))
    apply(g(2.0), g(100.0))
    b.freeze()
    kept = [b.numpy(), momentum.accumulated_momentum[1].numpy()]
    apply(g(2.0), g(100.0))
    for left, right in zip(kept, [b.numpy(), momentum.accumulated_momentum[1].numpy()], strict=True):
        np.testing.assert_array_equal(left, right)
    b.thaw()
    apply(g(0.0), g(4.0))
    apply(g(0.0), g(4.0))
    np.testing.assert_array_equal(b.numpy(), kept[0] - (0.5 * 2.0 + 4.0))
    a.freeze()
    b.freeze()
    before = state(accumulated)[:-2]
    apply(g(1.0), g(1.0))
    apply(g(1.0), g(1.0))
    assert int(accumulated.count) == 0
    assert all((x == y).all() for x, y in zip(before, state(accumulated)[:-2], strict=True))


def test_parameters_come_and_go_between_and_within_groups() -> None:
    a, b = pair()
    accumulated = optimizers.Accumulated(optimizers.SGD(1.0), every=2)
    accumulated.apply([g(2.0)], [a])
    accumulated.apply([g(4.0), g(4.0)], [a, b])
    np.testing.assert_array_equal(a.numpy(), [-2.0, -2.0])
    np.testing.assert_array_equal(b.numpy(), [-1.0, -1.0])
    accumulated.apply([g(0.0), g(100.0)], [a, b])
    accumulated.apply([g(0.0)], [a])
    accumulated.apply([g(0.0), g(1.0)], [a, b])
    accumulated.apply([g(0.0), g(1.0)], [a, b])
    np.testing.assert_array_equal(b.numpy(), [-2.0, -2.0])


def test_wrappers_go_around_each_other() -> None:
    inside = optimizers.Accumulated(optimizers.Clipped(optimizers.SGD(1.0), max_norm=1.0), every=2)
    outside = optimizers.Clipped(optimizers.Accumulated(optimizers.SGD(1.0), every=2), max_norm=1.0)
    results = []
    for optimizer in (inside, outside):
        p = mk.Variable(jnp.zeros([2]), name="p")
        for gradient, weight in ((jnp.array([30.0, 40.0]), 3), (jnp.array([0.0, 0.5]), 1)):
            optimizer.apply([gradient], [p], weight=weight)
        results.append(p.numpy())
    mean = np.array([22.5, 30.125])
    np.testing.assert_allclose(results[0], -mean / np.linalg.norm(mean), rtol=1e-6)
    np.testing.assert_allclose(results[1], [-0.45, -0.725], rtol=1e-6)
    nested = optimizers.Accumulated(optimizers.Accumulated(optimizers.SGD(1.0), every=2), every=2)
    p = mk.Variable(0.0, name="p")
    for value, weight in ((1.0, 1), (2.0, 2), (3.0, 3), (4.0, 4)):
        nested.apply([jnp.float32(value)], [p], weight=weight)
    np.testing.assert_allclose(float(p), -3.0, rtol=1e-6)


@pytest.mark.parametrize("scenario", [scenarios.Supervised, scenarios.TiedAutoencoder])
def test_scenarios_tell_how_many_examples_a_batch_has(scenario: Any) -> None:
    class Heard(optimizers.Wrapped):
        def _apply(self, updates: Any, parameters: Any, weight: Any) -> None:
            heard.append(weight)
            self._hand_on(updates, parameters, weight)

    heard: list[Any] = []
    layer, optimizer = mk.Linear(2), Heard(optimizers.SGD(0.1))
    if scenario is scenarios.Supervised:
        parts, data = (layer,), (INPUTS, TARGETS)
    else:
        parts, data = (layer, layer.transpose()), INPUTS
    scenario(2, batch_size=6, progress=False)(*parts, optimizer, mk.losses.squared_error, data=data)
    assert heard
    assert set(heard) == {6}


def test_a_scenario_with_small_batches_accumulated_trains_as_one_with_large_batches() -> None:
    states = []
    for optimizer, batch_size, steps in (
        (optimizers.Accumulated(optimizers.Momentum(0.1, 0.9), every=3), 2, 30),
        (optimizers.Momentum(0.1, 0.9), 6, 10),
    ):
        model = net()
        fit = scenarios.Supervised(steps, batch_size=batch_size, progress=False)
        fit(model, optimizer, mk.losses.squared_error, data=(INPUTS, TARGETS))
        states.append(state(model))
    for left, right in zip(*states, strict=True):
        np.testing.assert_allclose(left, right, rtol=0, atol=1e-6)


def test_pairs_and_gradients_by_path_have_weights_too() -> None:
    p = mk.Variable(0.0, name="p")
    accumulated = optimizers.Accumulated(optimizers.SGD(1.0), every=2)
    accumulated.apply_gradients([(np.float32(1.0), p)], weight=3)
    accumulated.apply_gradients([(np.float32(5.0), p)], weight=jnp.int32(1))
    assert float(p) == -2.0
    optimizers.SGD(1.0).minimize(lambda: p * 1.0, [p], weight=100)
    assert float(p) == -3.0


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_a_copy_goes_on_in_the_middle(copier: Callable[[Any], Any]) -> None:
    model, accumulated = net(), optimizers.Accumulated(optimizers.Adam(0.01), every=3)
    (x, y), *others = batches([4, 4, 2, 5])
    accumulated.minimize(functools.partial(loss, model, x, y), model, weight=4)
    twin, its_optimizer = copier((model, accumulated))
    for x, y in others:
        accumulated.minimize(functools.partial(loss, model, x, y), model, weight=len(x))
        its_optimizer.minimize(functools.partial(loss, twin, x, y), twin, weight=len(x))
    for left, right in zip(state(model, accumulated), state(twin, its_optimizer), strict=True):
        np.testing.assert_array_equal(left, right)


def test_half_precision_is_summed_in_single_precision() -> None:
    p = mk.Variable(jnp.zeros([1], jnp.float16), name="p")
    accumulated = optimizers.Accumulated(optimizers.SGD(1.0), every=4)
    for _ in range(4):
        accumulated.apply([jnp.full([1], 6e4, jnp.float16)], [p], weight=100)
    assert accumulated.sums[0].dtype == jnp.float32
    assert p.dtype == jnp.float16
    np.testing.assert_allclose(p.numpy(), [-6e4], rtol=1e-3)


def test_a_value_that_is_not_finite_reaches_the_optimizer() -> None:
    p = mk.Variable(0.0, name="p")
    accumulated = optimizers.Accumulated(optimizers.SGD(1.0), every=2)
    accumulated.apply([jnp.float32(np.inf)], [p])
    accumulated.apply([jnp.float32(1.0)], [p])
    assert not np.isfinite(float(p))


@pytest.mark.parametrize(
    ("call", "kind", "text"),
    [
        (
            lambda sgd: optimizers.Accumulated(sgd, every=0),
            ValueError,
            "^every=0: expected at least 1 update for a step$",
        ),
        (
            lambda sgd: optimizers.Accumulated(sgd, every=2.0),
            TypeError,
            r"^every=2\.0 is a float: expected an integer of at least 1$",
        ),
        (
            lambda sgd: optimizers.Accumulated(sgd, every=2).apply([g(1.0)], pair()[:1], weight=-1),
            ValueError,
            r"^weight=-1: expected the number of examples that the updates are the mean of",
        ),
        (
            lambda sgd: optimizers.Accumulated(sgd, every=2).apply([g(1.0)], pair()[:1], weight=jnp.ones([2])),
            ValueError,
            r"^weight=float32\[2\]: expected a scalar, the number of examples of the updates' mean",
        ),
    ],
)
def test_what_cannot_be_accumulated_is_said(call: Callable[[Any], Any], kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        call(optimizers.SGD(0.1))


def test_a_refused_apply_changes_nothing() -> None:
    (a, _), accumulated = pair(), optimizers.Accumulated(optimizers.SGD(0.1), every=2)
    accumulated.apply([g(1.0)], [a])
    before = state(accumulated)
    with pytest.raises(ValueError, match="Shape of update"):
        accumulated.apply([jnp.ones([3])], [a])
    with pytest.raises(ValueError, match="weight="):
        accumulated.apply([g(1.0)], [a], weight=-2)
    for left, right in zip(before, state(accumulated), strict=True):
        np.testing.assert_array_equal(left, right)
