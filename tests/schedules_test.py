"""Laws of hyperparameters on a schedule: the values, where they are kept, and that no program is compiled anew."""

import copy
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import modulekit as mk
from modulekit import optimizers

STEPS = 12
GRADIENTS = [np.random.default_rng(seed).normal(size=[3]).astype(np.float32) for seed in range(STEPS)]
SCHEDULES: dict[str, Callable[[Any], Any]] = {
    "constant": optax.constant_schedule(0.1),
    "cosine": optax.cosine_decay_schedule(0.1, 8),
    "warm-up and cosine": optax.warmup_cosine_decay_schedule(0.0, 0.1, 3, 10),
    "pieces": optax.piecewise_constant_schedule(0.1, {3: 0.5, 6: 0.5}),
    "own": lambda count: 0.1 / (1 + count),
}


def weight() -> mk.Variable:
    return mk.Variable(jnp.ones([3]), name="w")


def train(optimizer: mk.Optimizer, w: mk.Variable, compiled: bool, steps: int = STEPS) -> Any:
    apply = lambda g: optimizer.apply([g], [w])  # noqa: E731
    step = mk.jit(apply, max_traces=1) if compiled else apply
    for gradient in GRADIENTS[:steps]:
        step(jnp.asarray(gradient))
    return step


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_each_update_has_the_value_for_the_updates_done(name: str, compiled: bool) -> None:
    ours, expected = weight(), np.ones([3], np.float64)
    scheduled = optimizers.Scheduled(optimizers.SGD(0.3), learning_rate=SCHEDULES[name])
    train(scheduled, ours, compiled)
    for count, gradient in enumerate(GRADIENTS):
        expected = expected - float(SCHEDULES[name](jnp.int32(count))) * gradient.astype(np.float64)
    np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-5, atol=1e-6)
    assert int(scheduled.count) == STEPS
    assert float(scheduled.learning_rate) == pytest.approx(float(SCHEDULES[name](STEPS - 1)), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("name", ["cosine", "warm-up and cosine", "pieces"])
def test_a_scheduled_rate_is_that_of_optax(name: str) -> None:
    ours, optaxs = weight(), weight()
    train(optimizers.Scheduled(optimizers.Adam(1.0), learning_rate=SCHEDULES[name]), ours, True)
    train(optimizers.Optax(optax.adam(SCHEDULES[name])), optaxs, True)
    np.testing.assert_allclose(ours.numpy(), optaxs.numpy(), rtol=2e-6)


KINDS: dict[str, tuple[Callable[..., mk.Optimizer], dict[str, float]]] = {
    "sgd": (optimizers.SGD, {"learning_rate": 0.1}),
    "momentum": (optimizers.Momentum, {"learning_rate": 0.1, "momentum": 0.8}),
    "adam": (optimizers.Adam, {"learning_rate": 0.1, "beta1": 0.8, "beta2": 0.9, "epsilon": 1e-3}),
    "rms_prop": (optimizers.RMSProp, {"learning_rate": 0.1, "decay": 0.8, "momentum": 0.5, "epsilon": 1e-3}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_hyperparameter_may_be_on_a_schedule(kind: str) -> None:
    make, values = KINDS[kind]
    schedules = {name: (lambda count, value=value: value / (1 + 0.1 * count)) for name, value in values.items()}
    ours, by_hand = weight(), weight()
    scheduled, plain = optimizers.Scheduled(make(**values), **schedules), make(**values)
    train(scheduled, ours, True)
    for count, gradient in enumerate(GRADIENTS):
        for name, schedule in schedules.items():
            setattr(plain, name, float(schedule(count)))
        plain.apply([jnp.asarray(gradient)], [by_hand])
    np.testing.assert_allclose(ours.numpy(), by_hand.numpy(), rtol=1e-5, atol=1e-6)
    for name, schedule in schedules.items():
        assert float(getattr(scheduled, name)) == pytest.approx(schedule(STEPS - 1), rel=1e-6)


def test_the_count_and_the_values_are_variables_of_the_optimizer() -> None:
    scheduled = optimizers.Scheduled(optimizers.Adam(), learning_rate=SCHEDULES["own"], beta1=SCHEDULES["constant"])
    assert not scheduled.trainable_variables
    assert {v.name for v in scheduled.variables} == {
        "scheduled/count", "scheduled/learning_rate", "scheduled/beta1", "adam/t",
    }  # fmt: skip
    assert (float(scheduled.learning_rate), float(scheduled.beta2)) == (pytest.approx(0.1), 0.999)


def test_a_copy_goes_on_from_the_same_count() -> None:
    first = weight()
    scheduled = optimizers.Scheduled(optimizers.Momentum(1.0, 0.9), learning_rate=SCHEDULES["own"])
    train(scheduled, first, True, 5)
    second, twin = copy.deepcopy((first, scheduled))
    for gradient in GRADIENTS[5:]:
        scheduled.apply([jnp.asarray(gradient)], [first])
        twin.apply([jnp.asarray(gradient)], [second])
    np.testing.assert_array_equal(first.numpy(), second.numpy())


def test_the_schedule_runs_in_loops() -> None:
    ours, other = weight(), weight()
    scheduled = optimizers.Scheduled(optimizers.SGD(1.0), learning_rate=SCHEDULES["cosine"])
    mk.jit(lambda gs: mk.scan(lambda carry, g: (carry, scheduled.apply([g], [ours])), 0, gs))(jnp.stack(GRADIENTS))
    train(optimizers.Scheduled(optimizers.SGD(1.0), learning_rate=SCHEDULES["cosine"]), other, True)
    np.testing.assert_allclose(ours.numpy(), other.numpy(), rtol=1e-6)


def test_a_variable_that_is_the_hyperparameter_takes_the_values() -> None:
    rate = mk.Variable(0.5, trainable=False, name="rate")
    train(optimizers.Scheduled(optimizers.SGD(rate), learning_rate=lambda count: 2.0**-count), weight(), True, 4)
    assert float(rate) == 0.125


def test_hyperparameters_of_wrappers_are_scheduled_and_set_through_wrappers() -> None:
    adam = optimizers.Adam(0.1)
    clipped = optimizers.Clipped(adam, max_norm=1.0)
    scheduled = optimizers.Scheduled(clipped, max_norm=lambda count: 1.0 / (1 + count), beta1=SCHEDULES["constant"])
    train(scheduled, weight(), True, 4)
    assert float(clipped.max_norm) == 0.25
    scheduled.learning_rate = 0.01
    assert (adam.learning_rate, clipped.learning_rate) == (0.01, 0.01)
    assert "learning_rate" not in vars(scheduled)
    scheduled.note = "its own"
    assert vars(scheduled)["note"] == "its own"
    with pytest.raises(AttributeError, match="'Scheduled' object has no attribute 'use_nesterov'"):
        _ = scheduled.use_nesterov
    step = mk.jit(lambda g: scheduled.apply([g], [w]))
    w = weight()
    step(jnp.ones([3]))
    before = w.numpy()
    scheduled.learning_rate = 0.0
    step(jnp.ones([3]))
    np.testing.assert_array_equal(w.numpy(), before)


def test_around_accumulation_batches_count_and_inside_of_it_steps() -> None:
    outer = optimizers.Scheduled(optimizers.Accumulated(optimizers.SGD(0.1), 3), learning_rate=SCHEDULES["own"])
    inner = optimizers.Accumulated(optimizers.Scheduled(optimizers.SGD(0.1), learning_rate=SCHEDULES["own"]), 3)
    for optimizer in (outer, inner):
        train(optimizer, weight(), True)
    assert (int(outer.count), int(inner.optimizer.count)) == (STEPS, STEPS // 3)


def test_a_refused_update_is_not_counted() -> None:
    scheduled = optimizers.Scheduled(optimizers.SGD(0.1), learning_rate=SCHEDULES["own"])
    with pytest.raises(ValueError, match="Shape of update"):
        scheduled.apply([jnp.ones([2])], [weight()])
    assert int(scheduled.count) == 0


class Step(mk.Optimizer):
    """Somebody else's optimizer: its rate is an argument and an attribute of the same name."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def apply(self, updates: Any, parameters: Any) -> None:
        for update, parameter in zip(updates, parameters, strict=True):
            parameter.assign_sub(jnp.sign(update) * self.rate)


def test_an_optimizer_of_ones_own_is_scheduled_too() -> None:
    w = weight()
    scheduled = optimizers.Scheduled(Step(1.0), rate=lambda count: count + 1)
    for _ in range(3):
        scheduled.apply([jnp.ones([3])], [w])
    assert w.numpy().tolist() == [-5.0] * 3


@pytest.mark.parametrize(
    ("make", "kind", "text"),
    [
        (
            lambda: optimizers.Scheduled(optimizers.Momentum(0.1, 0.9), beta1=SCHEDULES["own"]),
            ValueError,
            r"Momentum\(.*\) has no hyperparameter 'beta1' for a schedule; it has: learning_rate, momentum$",
        ),
        (
            lambda: optimizers.Scheduled(optimizers.Optax(optax.sgd(0.1)), learning_rate=SCHEDULES["own"]),
            ValueError,
            r"Optax\(.*\) has no hyperparameter 'learning_rate' for a schedule; it has: none$",
        ),
        (
            lambda: optimizers.Scheduled(
                optimizers.Scheduled(optimizers.SGD(0.1), learning_rate=SCHEDULES["own"]),
                learning_rate=SCHEDULES["own"],
            ),
            ValueError,
            r"learning_rate of Scheduled\(.*\) is on a schedule already: give it one schedule$",
        ),
        (
            lambda: optimizers.Scheduled(optimizers.SGD(0.1), learning_rate=0.2),
            TypeError,
            r"learning_rate=0\.2 is no schedule: expected a function from the number of updates done to a scalar; a con",
        ),
        (
            lambda: optimizers.Scheduled(optimizers.SGD(0.1), learning_rate=lambda count: jnp.ones([2])),
            TypeError,
            r"the schedule of learning_rate gave float32\[2\] for 0 updates done: expected a scalar$",
        ),
        (
            lambda: optimizers.Scheduled(0.1, learning_rate=SCHEDULES["own"]),
            TypeError,
            r"^Scheduled wraps an optimizer, such as mk\.optimizers\.Adam\(\), not 0\.1$",
        ),
    ],
)
def test_what_cannot_be_scheduled_is_said(make: Callable[[], Any], kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        make()


def test_a_scheduled_value_that_is_set_by_hand_is_refused() -> None:
    scheduled = optimizers.Scheduled(optimizers.SGD(0.1), learning_rate=SCHEDULES["own"])
    scheduled.learning_rate = 0.5
    with pytest.raises(
        ValueError, match=r"learning_rate of SGD\(.*\) is on a schedule, and was set to 0\.5: make the opt"
    ):
        scheduled.apply([jnp.ones([3])], [weight()])
    assert int(scheduled.count) == 0


def test_half_precision_is_kept() -> None:
    w = mk.Variable(jnp.ones([3], jnp.bfloat16), name="w")
    optimizers.Scheduled(optimizers.Adam(), learning_rate=SCHEDULES["own"]).apply([jnp.ones([3], jnp.bfloat16)], [w])
    assert w.dtype == jnp.bfloat16
    assert not isinstance(w.value, jax.core.Tracer)
