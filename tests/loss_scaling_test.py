"""Laws of loss scaling: float16 trains as float32 does, what overflows is left out, and the scale follows."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import modulekit as mk
from modulekit import optimizers

HALF = mk.mixed_precision.Policy(jnp.float16)
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(64, 8)).astype(np.float32), RNG.normal(size=(64, 1)).astype(np.float32)


def network(policy: Any = None) -> mk.nets.MLP:
    mk.seed(0)
    net = mk.nets.MLP([16, 1])
    mk.build(net, [1, 8])
    mk.mixed_precision.set_policy(net, policy)
    return net


def losses(net: mk.Module, optimizer: Any, steps: int = 30) -> list[float]:
    """Trains on losses that are so small that their gradients are below what float16 holds."""

    @mk.jit
    def step() -> Any:
        return optimizer.minimize(lambda: 1e-7 * ((net(X) - Y) ** 2).mean(), net)

    return [float(step()) * 1e7 for _ in range(steps)]


def test_float16_trains_as_float32_does_and_does_not_without_a_scale() -> None:
    rate = 0.05 * 1e7
    exact = losses(network(), optimizers.SGD(rate))
    scaled = losses(network(HALF), optimizers.LossScaled(optimizers.SGD(rate), initial_scale=2.0**20))
    unscaled = losses(network(HALF), optimizers.SGD(rate))
    assert exact[-1] < 0.8 * exact[0]
    np.testing.assert_allclose(scaled, exact, rtol=2e-2)  # of float16, as for the recorded cases
    assert abs(unscaled[-1] - exact[-1]) > 0.1 * exact[-1]


@pytest.mark.parametrize("wrap", [
    lambda scaled: scaled,
    lambda scaled: optimizers.Clipped(scaled, max_norm=1e9),
    lambda scaled: optimizers.Accumulated(scaled, every=1),
    lambda scaled: optimizers.Scheduled(scaled, learning_rate=lambda count: jnp.full_like(count, 0.1, jnp.float32)),
])  # fmt: skip
def test_in_float32_a_scale_of_a_power_of_two_changes_no_bit(wrap: Callable[[Any], Any]) -> None:
    plain, scaled = network(), network()
    expected = losses(plain, wrap(optimizers.SGD(0.1)))
    assert losses(scaled, wrap(optimizers.LossScaled(optimizers.SGD(0.1)))) == expected
    for ours, theirs in zip(scaled.variables, plain.variables, strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy())


def reference(finite: list[bool], scale: float, interval: int, factor: float) -> list[float]:
    """Returns the scale after each update."""
    scales, good = [], 0
    for is_finite in finite:
        good = good + 1 if is_finite else 0
        if not is_finite:
            scale = max(scale / factor, 1.0)
        elif good >= interval:
            scale, good = min(scale * factor, 2.0**24), 0
        scales.append(scale)
    return scales


@settings(deadline=None, max_examples=15)
@given(
    finite=st.lists(st.booleans(), min_size=1, max_size=8),
    power=st.integers(0, 24),
    interval=st.integers(1, 4),
    factor=st.sampled_from([2.0, 4.0]),
)
def test_the_scale_is_its_recursion_and_updates_that_are_not_finite_change_nothing_else(
    finite: list[bool], power: int, interval: int, factor: float
) -> None:
    w, v = mk.Variable([1.0, 1.0], name="w"), mk.Variable(2.0, name="v")
    scaled = optimizers.LossScaled(optimizers.Adam(0.1), 2.0**power, interval, factor)
    alone, twin = optimizers.Adam(0.1), [mk.Variable([1.0, 1.0], name="w"), mk.Variable(2.0, name="v")]
    found = []
    for index, is_finite in enumerate(finite):
        gradients = [jnp.array([1.0, index]), jnp.array(0.5 if is_finite else [jnp.inf, jnp.nan][index % 2])]
        scaled.apply(gradients, [w, v])
        if is_finite:
            alone.apply(gradients, twin)
        found.append(float(scaled.scale))
    assert found == reference(finite, 2.0**power, interval, factor)
    assert w.numpy().tolist() == twin[0].numpy().tolist() and float(v) == float(twin[1])


def test_a_loss_that_overflows_is_left_out_and_the_next_one_is_not() -> None:
    net = network(HALF)
    optimizer = optimizers.LossScaled(optimizers.SGD(0.05), initial_scale=2.0**24)
    before = [variable.numpy() for variable in net.variables]
    step = mk.jit(lambda: optimizer.minimize(lambda: ((net(X) - Y) ** 2).mean(), net))
    first = float(step())
    for ours, theirs in zip(net.variables, before, strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs)
    assert float(optimizer.scale) == 2.0**23
    found = [float(step()) for _ in range(40)]
    assert found[0] == first and found[-1] < 0.9 * first and np.isfinite(found).all()


def test_what_a_loss_returns_beside_it_comes_back_and_pairs_are_unscaled() -> None:
    w = mk.Variable(3.0, name="w")
    optimizer = optimizers.LossScaled(optimizers.SGD(0.0))
    value, told = optimizer.minimize(lambda: (w**2, {"told": 5}), [w], has_aux=True)
    assert (float(value), told) == (9.0, {"told": 5})
    ((gradient, variable),) = optimizer.compute_gradients(lambda: w**2, [w])
    assert float(gradient) == 6.0 and variable is w
    with pytest.raises(TypeError, match="a gradient needs a scalar floating-point loss"):
        optimizer.minimize(lambda: jnp.zeros([2]) * w, [w])
    with pytest.raises(TypeError, match="a gradient needs a scalar floating-point loss"):
        optimizer.minimize(lambda: jnp.int32(3), [w])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"initial_scale": 0.5}, r"^initial_scale=0\.5: expected at least 1$"),
        ({"growth_interval": 0}, r"^growth_interval=0: expected at least 1$"),
        ({"factor": 1.0}, r"^factor=1\.0: expected a number above 1$"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        optimizers.LossScaled(optimizers.SGD(0.1), **arguments)
