"""Laws of the moves of a GAN: while one player moves nothing of the other changes, bit for bit."""

from typing import Any

import jax.numpy as jnp
import pytest
from references import normal
from scenario_catalogue import ROW, State, assert_bitwise

import modulekit as mk
from scenarios.gan import LOSSES
from scenarios.gan.game import Game, Penalties

PLAIN = ROW["gan"]


class Player(mk.Module):
    """A player with statistics of batches, of its weight, and dropout."""

    def __init__(self, output_size: int, name: str) -> None:
        super().__init__(name=name)
        self.hidden = mk.NormalizedWeight(mk.Linear(6), mk.SpectralNorm())
        self.norm = mk.BatchNorm(create_scale=True, create_offset=True, decay_rate=0.9)
        self.dropout = mk.Dropout(0.2)
        self.out = mk.Linear(output_size)

    def __call__(self, x: Any, is_training: bool) -> Any:
        h = jnp.tanh(self.norm(self.hidden(x, is_training=is_training), is_training=is_training))
        return self.out(self.dropout(h, is_training=is_training))


STATISTICS = {"hidden.norm.u", "norm.moving_mean.average", "norm.moving_variance.average"}
WEIGHTS = {"hidden.layer.w", "norm.scale", "norm.offset", "out.w"}


def game(loss: str = "relativistic") -> tuple[Game, mk.Optimizer, mk.Optimizer]:
    mk.seed(2)
    return (
        Game(Player(3, "generator"), Player(1, "discriminator"), LOSSES[loss], 4),
        mk.optimizers.Adam(),
        mk.optimizers.Adam(),
    )


def changed(module: mk.Module, before: State) -> set[str]:
    return {path for path, v in module.paths().items() if v.numpy().tobytes() != before[path].tobytes()}


def arrays(module: mk.Module) -> State:
    return {path: v.numpy() for path, v in module.paths().items()}


@pytest.mark.parametrize("is_compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("mover", ["discriminator", "generator"])
def test_while_one_player_moves_nothing_of_the_other_changes_bitwise(mover: str, is_compiled: bool) -> None:
    playing, optimizer_g, optimizer_d = game()
    real = jnp.asarray(normal(8, 3))
    mk.build(playing.generator, [8, 4], is_training=True), mk.build(playing.discriminator, real, is_training=True)

    def move(real: Any, index: Any) -> Any:
        if mover == "generator":
            return playing.move_generator((real,), optimizer_g)
        return playing.move_discriminator(
            (real,), optimizer_d, index, Penalties(r1=1.0, r1_interval=1 + is_compiled), 0.5
        )

    run = mk.jit(move) if is_compiled else move
    moved, other = playing.generator, playing.discriminator
    if mover == "discriminator":
        moved, other = other, moved
    before, slots = arrays(other), arrays(optimizer_d if mover == "generator" else optimizer_g)
    for index in range(2):
        ours = arrays(moved)
        run(real, index)
        assert_bitwise(arrays(other), before)
        assert changed(moved, ours) >= STATISTICS | WEIGHTS
    assert_bitwise(arrays(optimizer_d if mover == "generator" else optimizer_g), slots)


def test_penalties_leave_the_statistics_as_the_loss_alone_does() -> None:
    found = []
    for penalties in (Penalties(), Penalties(gradient=10.0, r1=1.0)):
        playing, _, _ = game("wasserstein")
        playing.move_discriminator((jnp.asarray(normal(8, 3)),), mk.optimizers.SGD(0.0), 0, penalties, None)
        found.append(arrays(playing.discriminator))
    assert_bitwise(found[1], found[0])


def test_players_that_nobody_has_called_before_have_first_values_and_statistics_of_their_own_moves() -> None:
    playing, optimizer_g, optimizer_d = game()
    playing.move_discriminator((jnp.asarray(normal(8, 3)),), optimizer_d, 0, Penalties(), None)
    assert int(playing.generator.norm.moving_mean._counter) == 0
    assert int(playing.discriminator.norm.moving_mean._counter) == 2  # real and fake examples
    playing.move_generator((jnp.asarray(normal(8, 3)),), optimizer_g)
    assert int(playing.generator.norm.moving_mean._counter) == 1
    assert int(playing.discriminator.norm.moving_mean._counter) == 2


def test_a_player_that_is_frozen_stays_and_the_other_one_trains() -> None:
    case = PLAIN.fresh()
    case.run(steps=0)
    case.parts["discriminator"].freeze("**")
    before = case.state()
    case.run(steps=5)
    after = case.state()
    assert all((after[path] == value).all() for path, value in before.items() if path.startswith("discriminator"))
    assert (after["generator.layers[0].w"] != before["generator.layers[0].w"]).any()
