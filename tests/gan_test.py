"""Laws of the GAN: its updates are those of a plain loop, and what does not fit together is refused."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scenario_catalogue import ROW, Case, State

import modulekit as mk
import scenarios
from modulekit.data import batch_indices
from scenarios.gan import RingOfGaussians

PLAIN, SEVERAL, CONDITIONAL = ROW["gan"], ROW["wasserstein_gan"], ROW["conditional_gan"]


# Against a loop by hand.


def forward(weights: Any, x: Any) -> Any:
    (a, b), (c, d) = weights
    return jnp.tanh(x @ a + b) @ c + d


def weights_of(state: State, player: str) -> Any:
    return [tuple(jnp.asarray(state[f"{player}.layers[{n}].{name}"]) for name in "wb") for n in range(2)]


def adam_gan(updates: int, **settings: Any) -> Case:
    parts = {
        "generator": mk.nets.MLP([16, 2], activation=jnp.tanh),
        "discriminator": mk.nets.MLP([16, 1], activation=jnp.tanh),
        "optimizer_g": mk.optimizers.Adam(1e-3, beta1=0.5),
        "optimizer_d": mk.optimizers.Adam(1e-3, beta1=0.5),
    }
    common = {"steps": updates, "batch_size": 16, "seed": 5, "latent_size": 2, "samples": 50, "progress": False}
    data = RingOfGaussians(std=0.2).sample(100)
    return Case(scenarios.GAN, {**common, **settings}, parts, data)


def by_hand(case: Case, penalty: float = 0.0) -> tuple[State, Any, Any]:
    """Trains the case's first weights with a step for each player and nothing but JAX and optax."""
    mk.seed(1)
    case.run(steps=0)
    first, settings = case.state(), case.settings
    loss, d_steps, size = settings.get("loss", "non_saturating"), settings.get("d_steps", 1), settings["batch_size"]
    adam = optax.adam(1e-3, b1=0.5)
    players = [weights_of(first, name) for name in ("generator", "discriminator")]
    slots = [adam.init(weights) for weights in players]

    def latents(key: Any, draw: int) -> Any:
        return jax.random.normal(jax.random.fold_in(key, draw), (size, 2))

    def loss_d(d: Any, g: Any, real: Any, key: Any, draw: int) -> Any:
        fake = forward(g, latents(key, draw))
        r, f = forward(d, real)[:, 0], forward(d, fake)[:, 0]
        if loss == "wasserstein":
            share = jax.random.uniform(jax.random.fold_in(key, draw + 1), (size, 1))
            slopes = jax.vmap(jax.grad(lambda x: forward(d, x)[0]))(share * real + (1 - share) * fake)
            return (f - r).mean() + penalty * ((jnp.linalg.norm(slopes, axis=1) - 1) ** 2).mean()
        return (jax.nn.softplus(-r) + jax.nn.softplus(f)).mean()

    def loss_g(g: Any, d: Any, key: Any, draw: int) -> Any:
        f = forward(d, forward(g, latents(key, draw)))[:, 0]
        return (-f if loss == "wasserstein" else jax.nn.softplus(-f)).mean()

    def step_of(loss_of: Callable[..., Any]) -> Any:
        @jax.jit
        def step(weights: Any, slots: Any, *others: Any) -> Any:
            changes, slots = adam.update(jax.grad(loss_of)(weights, *others), slots)
            return optax.apply_updates(weights, changes), slots

        return step

    step_d, step_g = step_of(loss_d), step_of(loss_g)
    rows = iter(batch_indices(len(case.data), size, settings["seed"], 0, d_steps * settings["steps"]))
    draws_of_a_move = 2 if loss == "wasserstein" else 1
    for update in range(settings["steps"]):
        key = jax.random.fold_in(jax.random.key(settings["seed"]), update)
        for move in range(d_steps):
            real = jnp.asarray(case.data[next(rows)])
            players[1], slots[1] = step_d(players[1], slots[1], players[0], real, key, move * draws_of_a_move)
        players[0], slots[0] = step_g(players[0], slots[0], players[1], key, d_steps * draws_of_a_move)
    return first, players[0], players[1]


@pytest.mark.parametrize(
    "settings",
    [{}, {"d_steps": 3}, {"d_steps": 3, "loss": "wasserstein", "gradient_penalty": 10.0}],
    ids=["one step", "three steps", "gradient penalty"],
)
def test_two_hundred_updates_are_those_of_a_loop_by_hand(settings: dict[str, Any]) -> None:
    case = adam_gan(200, **settings)
    first, generator, discriminator = by_hand(case, settings.get("gradient_penalty", 0.0))
    case.run()
    state = case.state()
    for name, expected in (("generator", generator), ("discriminator", discriminator)):
        for found, reference, before in zip(
            jax.tree.leaves(weights_of(state, name)),
            jax.tree.leaves(expected),
            jax.tree.leaves(weights_of(first, name)),
            strict=True,
        ):
            np.testing.assert_allclose(found, reference, rtol=0, atol=1e-6)
            assert found.size == 1 or np.abs(found - before).max() > 1e-2, "it has trained"


def test_both_players_are_counted_apart_and_over_a_resume(tmp_path: Path) -> None:
    SEVERAL.start(steps=17, save_dir=tmp_path)
    result, _ = SEVERAL.start(steps=30, save_dir=tmp_path)
    counters = result.state["counters"]
    assert (int(counters.generator_updates), int(counters.discriminator_updates)) == (30, 60)
    assert counters.generator_updates.dtype == counters.discriminator_updates.dtype == np.int32


# Errors.


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (
            {"loss": "cross"},
            ValueError,
            "loss='cross' is none of 'non_saturating', 'minimax', 'least_squares', 'hinge', ",
        ),
        ({"d_steps": 0}, ValueError, "d_steps=0 is below 1"),
        ({"latent_size": 2.0}, TypeError, "latent_size=2.0 is a float: expected an integer of at least 1"),
        ({"samples": 3}, ValueError, "samples=3 is below 4"),
        ({"classes": 0}, ValueError, "classes=0 is below 1"),
        ({"r1": -1.0}, ValueError, "r1=-1.0 is no factor of a penalty: expected a number of at least 0"),
        ({"clip": 0.0}, ValueError, "clip=0.0 would leave no weight: expected a number above 0, or None"),
        (
            {"features": len},
            ValueError,
            "features and feature_name belong together: a distance says nothing without its space",
        ),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused(settings: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        scenarios.GAN(3, **settings)


def test_data_that_does_not_fit_the_settings_is_refused() -> None:
    plain, conditional = PLAIN.fresh(), CONDITIONAL.fresh()
    message = "data must be one array of examples, not a tuple of 2: labels need the setting `classes`"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        plain.replace(data=conditional.data).run(steps=1)
    message = "data must be a pair (examples, labels), as classes=3 says, not one array"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        conditional.replace(data=plain.data).run(steps=1)
    examples, labels = conditional.eval_data
    with pytest.raises(
        ValueError, match=r"^eval_data\[1\]: label 3 at index 2 is out of range: 3 classes are 0 \.\. 2"
    ):
        conditional.replace(eval_data=(examples, np.where(np.arange(len(labels)) == 2, 3, labels))).run(steps=1)


def test_a_generator_that_makes_something_else_than_the_data_is_refused() -> None:
    case = PLAIN.fresh()
    message = "the generator returns examples [8, 2], and the data holds [8, 3]: the discriminator must see both alike"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        case.replace(parts={**case.parts, "generator": mk.Linear(2)}).run(steps=1)


def test_players_that_share_a_variable_are_refused_and_it_is_named() -> None:
    shared = mk.Linear(3)
    case = PLAIN.fresh()
    players = {
        "generator": mk.Sequential([mk.Linear(3), shared]),
        "discriminator": mk.Sequential([shared, mk.Linear(1)]),
    }
    message = "the generator shares discriminator.layers[0].b, discriminator.layers[0].w: while one player moves, "
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        case.replace(parts={**case.parts, **players}).run(steps=1)
