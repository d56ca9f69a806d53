"""A variational autoencoder: the code of an example is a distribution, held near a prior from which new ones are drawn."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import modulekit as mk
from modulekit.data import Arrays, evaluation_batches
from scenarios.autoencoders.draws import example_keys, normal_for
from scenarios.autoencoders.images import SHOWN, checked_shape, first_examples, one_array, quality, rows
from scenarios.autoencoders.likelihood import Loss, mean_of, negative_log_likelihood
from scenarios.autoencoders.posterior import Posterior, active_units, bounds, posterior
from scenarios.base.calling import call_model
from scenarios.base.scenario import Scenario

_SAMPLED = 5  # rows of a picture of samples
_NOTHING = 0.01  # nats: a code with less says nothing about its example


class VariationalAutoencoder(Scenario):
    """Trains an encoder and a decoder on the evidence lower bound: `min E[-log p(x | z)] + beta KL(q(z | x) || p(z))`.

    `VariationalAutoencoder(steps, ...)(encoder, decoder, optimizer, loss, data=inputs, eval_data=inputs)`. The encoder
    returns means and log-variances of `q`, as a pair or as one array `[batch, ..., 2 units]`; the prior `p(z)` is
    standard normal. The loss stands for `p(x | z)`: `mk.losses.sigmoid_cross_entropy` for Bernoulli variables with the
    decoder's outputs as log-odds, `mk.losses.squared_error` for normal ones around its outputs, any other
    for `-log p(x | z)` of each example, `[batch]`, itself. All is in nats per example, summed over its values.

    An evaluation reports `loss` (with the full beta), `reconstruction`, `kl`, `elbo`, with importance samples `iwae`, a
    bound on `log p(x)` that is tighter the more there are, the number and share of active units of the code, and of
    images the PSNR in decibels of what the posterior's mean gives. Its random numbers follow from the seed and the
    example, are the same each time, and depend on no batch. It raises an alarm where the posterior has collapsed to the
    prior. Pictures show reconstructions and samples, the latter of the same codes each time.

    Args:
      steps: the number of updates.
      beta: the weight of the divergence; 1 makes the loss a bound on `-log p(x)`.
      warm_up: updates over which the weight grows from 0 to `beta`: after k updates it is `beta min(1, k / warm_up)`.
      scale: the standard deviation of normal variables.
      importance_samples: codes for each example in evaluations, to estimate the reconstruction and `iwae`; 0 takes one,
        and reports no `iwae`.
      least_active: the share of active units below which the posterior counts as collapsed.
      image_shape: height and width, and 1 or 3 channels where there are any, of the images that inputs which are rows
        stand for; None draws those inputs only that are images themselves.
      **settings: see `scenarios.Settings`.

    Raises:
      ValueError: a setting is out of range.

    Sources: Kingma and Welling, Auto-encoding variational Bayes, 2014, eq. 10; Higgins et al., beta-VAE, 2017; Burda,
    Grosse and Salakhutdinov, Importance weighted autoencoders, 2016.

    >>> import modulekit as mk, numpy as np
    >>> inputs = np.random.default_rng(0).normal(size=[40, 3])
    >>> result = VariationalAutoencoder(20, importance_samples=3, batch_size=8, progress=False)(
    ...     mk.Linear(4), mk.Linear(3), mk.optimizers.Adam(0.01), mk.losses.squared_error, data=inputs, eval_data=inputs)
    >>> sorted(result.metrics)
    ['active_share', 'active_units', 'elbo', 'iwae', 'kl', 'loss', 'reconstruction']
    """

    def __init__(
        self,
        steps: int,
        beta: float = 1.0,
        warm_up: int = 0,
        scale: float = 1.0,
        importance_samples: int = 0,
        least_active: float = 0.1,
        image_shape: Sequence[int] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(steps, **settings)
        for name, value in (("beta", beta), ("warm_up", warm_up), ("importance_samples", importance_samples)):
            if not value >= 0:
                raise ValueError(f"{name}={value} is below 0")
        if not scale > 0:
            raise ValueError(f"scale={scale}: expected a standard deviation above 0")
        if not 0 <= least_active <= 1:
            raise ValueError(f"least_active={least_active} is outside [0, 1]: it is a share of the units")
        self.beta = beta
        self.warm_up = warm_up
        self.scale = scale
        self.importance_samples = importance_samples
        self.least_active = least_active
        self.image_shape = checked_shape(image_shape)

    def update(
        self, batch: Any, *, encoder: Any, decoder: Any, optimizer: mk.Optimizer, loss: Loss
    ) -> Mapping[str, Any]:
        """Takes one step down the gradient; returns the loss before it, and its two terms."""
        inputs, key, beta = one_array(batch), mk.next_key(), self._weight()

        def bound() -> tuple[Any, Any]:
            found = posterior(call_model(encoder, inputs, True))
            code = found.code(jax.random.normal(key, found.mean.shape))
            outputs = call_model(decoder, code, True)
            reconstruction = negative_log_likelihood(outputs, inputs, loss, self.scale).mean()
            kl = found.divergence().mean()
            return reconstruction + beta * kl, (reconstruction, kl)

        value, (reconstruction, kl) = optimizer.minimize(bound, [encoder, decoder], weight=len(inputs), has_aux=True)
        return {"loss": value, "reconstruction": reconstruction, "kl": kl}

    def evaluate(
        self, batch: Any, *, encoder: Any, decoder: Any, optimizer: mk.Optimizer, loss: Loss
    ) -> Mapping[str, Any]:
        """Returns the bounds and their terms for each example, and how near its reconstruction is."""
        found = posterior(call_model(encoder, batch, False))
        keys = example_keys(self.settings.seed, batch)

        def error(code: Any) -> jax.Array:
            return negative_log_likelihood(call_model(decoder, code, False), batch, loss, self.scale)

        def noises(index: Any) -> jax.Array:
            return normal_for(keys, found.mean.shape[1:], index)

        reconstruction, iwae = bounds(found, noises, error, max(1, self.importance_samples))
        kl = found.divergence()
        return {
            "loss": reconstruction + self.beta * kl,
            "reconstruction": reconstruction,
            "kl": kl,
            "elbo": -(reconstruction + kl),
            **({"iwae": iwae} if self.importance_samples else {}),
            **quality(call_model(decoder, found.mean, False), batch, loss, self.image_shape),
        }

    def measure(
        self, eval_data: Arrays | None, *, encoder: Any, decoder: Any, optimizer: mk.Optimizer, loss: Loss
    ) -> Mapping[str, Any]:
        """Returns how many units of the code are active, and their share."""
        if eval_data is None:
            return {}
        batches = evaluation_batches(eval_data.size, min(self.settings.eval_batch_size, eval_data.size))
        means = [posterior(call_model(encoder, eval_data.take(part), False)).mean for part in batches]
        active = active_units(np.concatenate([np.asarray(mean) for mean in means]))
        return {"active_units": active.sum(), "active_share": active.mean()}

    def pictures(
        self, eval_data: Arrays | None, *, encoder: Any, decoder: Any, optimizer: mk.Optimizer, loss: Loss
    ) -> Mapping[str, Any]:
        """Returns the first examples of evaluation above their reconstructions, and samples from the prior."""
        examples = first_examples(eval_data, self.image_shape)
        if examples is None:
            return {}
        found: Posterior = posterior(call_model(encoder, examples, False))
        outputs = mean_of(call_model(decoder, found.mean, False), loss)
        codes = jax.random.normal(jax.random.key(self.settings.seed), (_SAMPLED, SHOWN, *found.mean.shape[1:]))
        samples = [mean_of(call_model(decoder, code, False), loss) for code in codes]
        return {
            "reconstructions": rows(examples, outputs, image_shape=self.image_shape),
            "samples": rows(
                *(sample.reshape(-1, *examples.shape[1:]) for sample in samples), image_shape=self.image_shape
            ),
        }

    def alarms(self, metrics: Mapping[str, float]) -> list[str]:
        """Returns a sentence where the posterior has collapsed to the prior."""
        share, kl = metrics.get("active_share", 1.0), metrics.get("kl", float("inf"))
        if share >= self.least_active and kl >= _NOTHING:
            return []
        return [
            f"the posterior has collapsed to the prior: {share:.0%} of the units are active, and the divergence is {kl:.3g} "
            "nats per example. Lower beta, let it grow over a longer warm_up, or weaken the decoder"
        ]

    def _weight(self) -> Any:
        """The weight of the divergence in the update that runs."""
        return self.beta * jnp.minimum(1.0, self.step / self.warm_up) if self.warm_up else self.beta
