"""Losses of generators and discriminators against their equations in float64, and penalties against finite differences."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from references import exact, normal

import modulekit as mk
from scenarios.gan import LOSSES, gradient_penalty, r1_penalty
from scenarios.gan.losses import compares, shares_told_apart

Array = np.ndarray


def log_sigmoid(x: Array) -> Array:
    return -np.logaddexp(0, -x)


def of_minimax_d(r: Array, f: Array) -> Array:
    return -log_sigmoid(r) - log_sigmoid(-f)


def of_relativistic_d(r: Array, f: Array) -> Array:
    return -log_sigmoid(r - f.mean()) - log_sigmoid(-(f - r.mean()))


def of_relativistic_g(r: Array, f: Array) -> Array:
    return -log_sigmoid(f - r.mean()) - log_sigmoid(-(r - f.mean()))


EQUATIONS: dict[str, tuple[Callable[..., Array], Callable[..., Array]]] = {
    "non_saturating": (lambda r, f: -log_sigmoid(f), of_minimax_d),
    "minimax": (lambda r, f: log_sigmoid(-f), of_minimax_d),
    "least_squares": (lambda r, f: 0.5 * (f - 1) ** 2, lambda r, f: 0.5 * (r - 1) ** 2 + 0.5 * f**2),
    "hinge": (lambda r, f: -f, lambda r, f: -np.minimum(0, r - 1) - np.minimum(0, -f - 1)),
    "wasserstein": (lambda r, f: -f, lambda r, f: f - r),
    "relativistic": (of_relativistic_g, of_relativistic_d),
}
every_pair = pytest.mark.parametrize("name", LOSSES)


def called(loss_g: Any, real: Any, fake: Any) -> Any:
    return loss_g(fake, real) if compares(loss_g) else loss_g(fake)


@every_pair
def test_losses_are_their_equations(name: str) -> None:
    real, fake = 3 * normal(7, seed=1), 3 * normal(7, seed=2)
    (expected_g, expected_d), pair = EQUATIONS[name], LOSSES[name]
    found_d, found_g = (
        pair.loss_d(jnp.asarray(real), jnp.asarray(fake)),
        called(pair.loss_g, *map(jnp.asarray, (real, fake))),
    )
    assert found_d.shape == found_g.shape == (7,)
    np.testing.assert_allclose(found_d, expected_d(exact(real), exact(fake)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found_g, expected_g(exact(real), exact(fake)), rtol=1e-5, atol=1e-6)


@every_pair
def test_the_loss_of_an_example_is_the_mean_over_its_patches(name: str) -> None:
    real, fake = normal(5, 3, 2, 1, seed=1), normal(5, 3, 2, 1, seed=2)
    (expected_g, expected_d), pair = EQUATIONS[name], LOSSES[name]
    axes = (1, 2, 3)
    np.testing.assert_allclose(pair.loss_d(real, fake), expected_d(exact(real), exact(fake)).mean(axes), rtol=1e-5)
    np.testing.assert_allclose(
        called(pair.loss_g, real, fake), expected_g(exact(real), exact(fake)).mean(axes), rtol=1e-5, atol=1e-6
    )


@every_pair
def test_losses_are_finite_where_the_discriminator_is_sure(name: str) -> None:
    real, fake = jnp.array([1e4, -1e4]), jnp.array([-1e4, 1e4])
    pair = LOSSES[name]
    for loss in (pair.loss_d, lambda r, f: called(pair.loss_g, r, f)):
        values, slopes = loss(real, fake), jax.grad(lambda r, f, loss=loss: loss(r, f).sum(), (0, 1))(real, fake)
        assert all(bool(jnp.isfinite(found).all()) for found in (values, *slopes))


@every_pair
@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10**6))
def test_a_step_down_the_losses_moves_outputs_to_the_right_sides(name: str, seed: int) -> None:
    real, fake = jnp.asarray(normal(6, seed=seed)), jnp.asarray(normal(6, seed=seed + 1))
    pair = LOSSES[name]
    by_real, by_fake = jax.grad(lambda r, f: pair.loss_d(r, f).sum(), (0, 1))(real, fake)
    if name != "least_squares":  # which draws from both sides
        assert bool((by_real <= 0).all()) and bool((by_fake >= 0).all())
        assert bool((jax.grad(lambda f: called(pair.loss_g, real, f).sum())(fake) < 0).all())


def test_a_generators_loss_gets_the_real_outputs_where_it_takes_them() -> None:
    assert compares(lambda fake, real: fake)
    assert not compares(lambda fake: fake)
    assert not compares(lambda fake, scale=1.0: fake)
    assert not compares(np.negative)


def test_shares_on_the_right_sides() -> None:
    real, fake = jnp.array([1.0, 3.0, -1.0, 2.0]), jnp.array([-1.0, 0.5, -2.0, -3.0])
    assert [float(share) for share in shares_told_apart(real, fake, 0.0)] == [0.75, 0.75]
    assert [float(share) for share in shares_told_apart(real, fake, 1.5)] == [0.5, 1.0]
    for shift in (0.0, 100.0):  # a critic may add anything to all of its outputs
        assert [float(share) for share in shares_told_apart(real + shift, fake + shift, None)] == [0.75, 0.75]


def test_outputs_that_do_not_fit_are_refused() -> None:
    message = (
        "expected as many outputs for real as for fake examples, got [3, 1] and [3]: let the discriminator return "
        "[batch] or [batch, ...] for both"
    )
    for name, pair in LOSSES.items():
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            pair.loss_d(jnp.zeros([3, 1]), jnp.zeros([3]))
        if name != "relativistic":
            with pytest.raises(
                ValueError, match=r"^expected outputs \[batch\] or \[batch, \.\.\.\], got a scalar: leave the mean"
            ):
                pair.loss_g(jnp.zeros([]))


# Penalties.


class Critic(mk.Module):
    """Two layers, and outputs `[batch]` or one for each of two patches."""

    def __init__(self, patches: int | None = None) -> None:
        super().__init__()
        self.hidden, self.out = mk.Linear(5), mk.Linear(patches or 1)
        self.patches = patches

    def __call__(self, x: Any) -> Any:
        outputs = self.out(jnp.tanh(self.hidden(x)))
        return outputs if self.patches else outputs[:, 0]


def critic_of(patches: int | None = None) -> tuple[Critic, Callable[[Array], Array]]:
    """Returns a critic, and the mean of its outputs for each example in float64."""
    mk.seed(4)
    critic = Critic(patches)
    critic(normal(1, 3))
    for variable in critic.trainable_variables:
        variable.assign(normal(*variable.shape, seed=variable.size))
    (a, b), (c, d) = ((exact(layer.w), exact(layer.b)) for layer in (critic.hidden, critic.out))
    return critic, lambda x: (np.tanh(x @ a + b) @ c + d).mean(axis=1)


def slopes(function: Callable[[Array], Array], x: Array, step: float = 1e-5) -> Array:
    """Returns central differences of each example's output, `[batch, features]`."""
    moves = step * np.eye(x.shape[1])
    return np.stack([(function(x + move) - function(x - move)) / (2 * step) for move in moves], axis=1)


@pytest.mark.parametrize("patches", [None, 2])
def test_r1_is_the_squared_slope_by_finite_differences(patches: int | None) -> None:
    critic, reference = critic_of(patches)
    real = normal(6, 3, seed=8)
    expected = (slopes(reference, exact(real)) ** 2).sum(axis=1)
    np.testing.assert_allclose(r1_penalty(critic, jnp.asarray(real)), expected, rtol=1e-4)


@pytest.mark.parametrize("patches", [None, 2])
def test_the_gradient_penalty_is_its_equation_by_finite_differences(patches: int | None) -> None:
    critic, reference = critic_of(patches)
    real, fake, key = normal(6, 3, seed=8), normal(6, 3, seed=9), jax.random.key(2)
    share = exact(jax.random.uniform(key, (6, 1)))
    norms = np.linalg.norm(slopes(reference, share * exact(real) + (1 - share) * exact(fake)), axis=1)
    found = gradient_penalty(critic, jnp.asarray(real), jnp.asarray(fake), key)
    np.testing.assert_allclose(found, (norms - 1) ** 2, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", ["r1", "gradient"])
def test_gradients_of_penalties_are_finite_differences_of_penalties(kind: str) -> None:
    critic, _ = critic_of()
    real, fake = jnp.asarray(normal(6, 3, seed=8)), jnp.asarray(normal(6, 3, seed=9))

    def penalty() -> Any:
        if kind == "r1":
            return r1_penalty(critic, real).mean()
        return gradient_penalty(critic, real, fake, jax.random.key(2)).mean()

    with jax.enable_x64(True):
        wide = [jnp.asarray(v.numpy(), jnp.float64) for v in (critic.hidden.w, critic.hidden.b, critic.out.w)]

        def plain(a: Any, b: Any, c: Any) -> Any:
            def one(x: Any) -> Any:
                return (jnp.tanh(x @ a + b) @ c)[0]

            share = jnp.asarray(exact(jax.random.uniform(jax.random.key(2), (6, 1), jnp.float32)))
            r, f = exact(real), exact(fake)
            at = jnp.asarray(r if kind == "r1" else share * r + (1 - share) * f)
            squares = jnp.square(jax.vmap(jax.grad(one))(at)).sum(axis=1)
            return (squares if kind == "r1" else jnp.square(jnp.sqrt(squares) - 1)).mean()

        expected = []
        for place, array in enumerate(wide):
            slope = np.zeros(array.shape)
            for index in np.ndindex(array.shape):
                ends = [
                    float(plain(*(w.at[index].add(move) if n == place else w for n, w in enumerate(wide))))
                    for move in (1e-5, -1e-5)
                ]
                slope[index] = (ends[0] - ends[1]) / 2e-5
            expected.append(slope)
    found = mk.grad(penalty, [critic.hidden.w, critic.hidden.b, critic.out.w])()
    for array, reference in zip(found, expected, strict=True):
        np.testing.assert_allclose(array, reference, rtol=2e-3, atol=2e-5)


def test_a_flat_critic_has_a_penalty_and_a_finite_gradient() -> None:
    flat = mk.Linear(1, w_init=mk.initializers.Zeros())
    flat(normal(1, 3))
    x = jnp.asarray(normal(4, 3, seed=1))
    values = gradient_penalty(flat, x, x + 1, jax.random.key(0))
    assert values.tolist() == [1, 1, 1, 1]
    slope = mk.grad(lambda: gradient_penalty(flat, x, x + 1, jax.random.key(0)).mean(), [flat.w])()[0]
    assert bool(jnp.isfinite(slope).all())


def test_real_and_fake_examples_of_two_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^expected real and fake examples of one shape, got \[4, 3\] and \[4, 2\]: "):
        gradient_penalty(mk.Linear(1), jnp.zeros([4, 3]), jnp.zeros([4, 2]), jax.random.key(0))
