"""The game of two players, move by move. Each moves alone: nothing of the other one changes, statistics included."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

import modulekit as mk
from modulekit.optimizers.base import gradients_of
from modulekit.transforms.purified import targets_in
from scenarios.base.calling import needs_is_training
from scenarios.gan.losses import LossPair, compares, shares_told_apart
from scenarios.gan.penalties import gradient_penalty, r1_penalty

Batch = tuple[Any, ...]  # the examples, and their labels where there are any


@dataclass(frozen=True)
class Penalties:
    """What a discriminator's loss has beside itself.

    Attributes:
      gradient: the factor of `gradient_penalty`.
      r1: twice the factor of `r1_penalty`.
      r1_interval: updates between two with an R1 penalty, which counts as many times.
    """

    gradient: float = 0.0
    r1: float = 0.0
    r1_interval: int = 1


@dataclass(frozen=True)
class Game:
    """The two players and what they play for.

    Args:
      generator: from latents `[batch, latent_size]`, and labels where there are any, to examples `[batch, ...]`.
      discriminator: from examples, and labels where there are any, to outputs `[batch]` or `[batch, ...]`.
      losses: of the two.
      latent_size: of a latent vector.
    """

    generator: Any
    discriminator: Any
    losses: LossPair
    latent_size: int

    def move_discriminator(
        self, batch: Batch, optimizer: mk.Optimizer, index: Any, penalties: Penalties, clip: float | None
    ) -> dict[str, Any]:
        """Takes a step of the discriminator against the generator as it is.

        Args:
          batch: real examples, and their labels.
          optimizer: the discriminator's.
          index: how many such steps there were before.
          penalties: on its slope.
          clip: the largest size of a weight afterwards; None for any.

        Returns:
          Metrics; the loss is without the penalties.
        """
        real, *labels = batch
        with mk.untouched(self.generator):
            fake = self._generated(len(real), labels)
        if fake.shape != real.shape:
            raise ValueError(
                f"the generator returns examples {list(fake.shape)}, and the data holds {list(real.shape)}: the "
                "discriminator must see both alike"
            )

        def loss() -> Any:
            real_logits = play(self.discriminator, (real, *labels), True)
            fake_logits = play(self.discriminator, (fake, *labels), True)
            value = self.losses.loss_d(real_logits, fake_logits).mean()
            penalty = self._penalty(real, fake, labels, index, penalties)
            return value + penalty, (value, penalty, shares_told_apart(real_logits, fake_logits, self.losses.level))

        (_, (value, penalty, shares)), norm = _minimize(optimizer, loss, self.discriminator, len(real))
        if clip is not None:
            for variable in targets_in(self.discriminator):
                variable.assign(jnp.clip(variable.current(), -clip, clip))
        metrics = {"loss_d": value, "real_accuracy": shares[0], "fake_accuracy": shares[1], "grad_norm_d": norm}
        return {**metrics, "penalty": penalty} if penalties.gradient or penalties.r1 else metrics

    def move_generator(self, batch: Batch, optimizer: mk.Optimizer) -> dict[str, Any]:
        """Takes a step of the generator against the discriminator as it is.

        Args:
          batch: real examples, to which fake ones may be compared, and the labels to generate for.
          optimizer: the generator's.

        Returns:
          Metrics.
        """
        real, *labels = batch

        def loss() -> Any:
            fake = self._generated(len(real), labels)
            with mk.untouched(self.discriminator):
                outputs = [play(self.discriminator, (fake, *labels), True)]
                if compares(self.losses.loss_g):
                    outputs.append(play(self.discriminator, (real, *labels), True))
            return self.losses.loss_g(*outputs).mean(), None

        (value, _), norm = _minimize(optimizer, loss, self.generator, len(real))
        return {"loss_g": value, "grad_norm_g": norm}

    def _generated(self, count: int, labels: list[Any]) -> Any:
        latents = jax.random.normal(mk.next_key(), (count, self.latent_size))
        return play(self.generator, (latents, *labels), True)

    def _penalty(self, real: Any, fake: Any, labels: list[Any], index: Any, penalties: Penalties) -> Any:
        def critic(examples: Any) -> Any:
            return play(self.discriminator, (examples, *labels), True)

        def lazy() -> Any:
            with mk.untouched(self.discriminator):
                return penalties.r1_interval * penalties.r1 / 2 * r1_penalty(critic, real).mean()

        total = jnp.zeros([])
        if penalties.gradient:
            with mk.untouched(self.discriminator):
                total += penalties.gradient * gradient_penalty(critic, real, fake, mk.next_key()).mean()
        if penalties.r1 and penalties.r1_interval == 1:
            total += lazy()
        elif penalties.r1:
            total += mk.cond(index % penalties.r1_interval == 0, lazy, lambda: jnp.zeros([]))
        return total


def play(player: Any, inputs: tuple[Any, ...], is_training: bool) -> Any:
    """Returns a player's outputs; one that needs to know whether it trains is told."""
    return player(*inputs, is_training=is_training) if needs_is_training(player) else player(*inputs)


def _minimize(optimizer: mk.Optimizer, loss: Any, player: Any, weight: int) -> tuple[Any, Any]:
    """Takes a step down the gradient of a loss with more to tell; returns what it told, and the norm of the gradient."""
    told, gradients = gradients_of(optimizer, loss, player, has_aux=True)
    variables = targets_in(player)
    if variables:
        optimizer.apply_gradients(zip(gradients, variables, strict=True), weight=weight)
    return told, jnp.sqrt(sum((jnp.square(gradient).sum() for gradient in gradients), jnp.zeros([])))
