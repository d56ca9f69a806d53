"""An autoencoder that sees corrupted inputs and must reproduce the clean ones."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

import modulekit as mk
from modulekit.data import Arrays
from scenarios.autoencoders.draws import example_keys
from scenarios.autoencoders.images import checked_shape, first_examples, one_array, psnr, quality, rows
from scenarios.autoencoders.likelihood import Loss, mean_of
from scenarios.base.calling import call_model
from scenarios.base.scenario import Scenario

Corruption = Literal["gaussian", "masking"]


class DenoisingAutoencoder(Scenario):
    """Trains an encoder and a decoder to undo a corruption: `min E[loss(decoder(encoder(corrupted(x))), x)]`.

    `DenoisingAutoencoder(steps, ...)(encoder, decoder, optimizer, loss, data=inputs, eval_data=inputs)`. The loss gets
    the decoder's outputs (logits, for a cross-entropy) and the clean inputs, and returns one value per example,
    `[batch]`.

    Each update corrupts anew. An evaluation corrupts too, each example in its own way, which follows from the seed and
    the example, is the same each time, and depends on no batch. Beside the loss it reports, of images and with a
    sigmoid cross-entropy, the PSNR in decibels of the reconstructions, and of the corrupted inputs themselves. Pictures
    show inputs, corrupted, reconstructed.

    Args:
      steps: the number of updates.
      corruption: "gaussian" adds normal noise, `x + amount e`, `e ~ N(0, 1)`, not cut off; "masking" sets each value to
        0 with probability `amount`.
      amount: the standard deviation of the noise, or the share that is masked.
      image_shape: height and width, and 1 or 3 channels where there are any, of the images that inputs which are rows
        stand for; None draws those inputs only that are images themselves.
      **settings: see `scenarios.Settings`.

    Raises:
      ValueError: there is no such corruption, or the amount is out of range.

    Source: Vincent et al., Extracting and composing robust features with denoising autoencoders, 2008; there, an exact
    share of the values is masked.

    >>> import modulekit as mk, numpy as np
    >>> inputs = np.eye(8)
    >>> result = DenoisingAutoencoder(20, "masking", 0.2, batch_size=8, progress=False)(
    ...     mk.Linear(4), mk.Linear(8), mk.optimizers.Adam(0.01), mk.losses.sigmoid_cross_entropy,
    ...     data=inputs, eval_data=inputs)
    >>> sorted(result.metrics)
    ['corrupted_psnr', 'loss', 'psnr']
    """

    def __init__(
        self,
        steps: int,
        corruption: Corruption = "gaussian",
        amount: float = 0.3,
        image_shape: Sequence[int] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(steps, **settings)
        if corruption not in get_args(Corruption):
            raise ValueError(
                f"corruption={corruption!r} is none of {', '.join(repr(kind) for kind in get_args(Corruption))}"
            )
        if not 0 <= amount < (float("inf") if corruption == "gaussian" else 1):
            wanted = "a standard deviation of at least 0" if corruption == "gaussian" else "a share in [0, 1)"
            raise ValueError(f"amount={amount}: expected {wanted} for corruption={corruption!r}")
        self.corruption = corruption
        self.amount = amount
        self.image_shape = checked_shape(image_shape)

    def update(
        self, batch: Any, *, encoder: Any, decoder: Any, optimizer: mk.Optimizer, loss: Loss
    ) -> Mapping[str, Any]:
        """Takes one step down the gradient of the mean loss; returns the loss before it."""
        inputs = one_array(batch)
        seen = self._corrupted(mk.next_key(), inputs)

        def mean() -> Any:
            return loss(call_model(decoder, call_model(encoder, seen, True), True), inputs).mean()

        return {"loss": optimizer.minimize(mean, [encoder, decoder], weight=len(inputs))}

    def evaluate(
        self, batch: Any, *, encoder: Any, decoder: Any, optimizer: mk.Optimizer, loss: Loss
    ) -> Mapping[str, Any]:
        """Returns the loss of each example, and how near its reconstruction and its corruption are."""
        seen = self._corrupted_one_by_one(batch)
        outputs = call_model(decoder, call_model(encoder, seen, False), False)
        values = quality(outputs, batch, loss, self.image_shape)
        compared = {"corrupted_psnr": psnr(seen, batch)} if values else {}
        return {"loss": loss(outputs, batch), **values, **compared}

    def pictures(
        self, eval_data: Arrays | None, *, encoder: Any, decoder: Any, optimizer: mk.Optimizer, loss: Loss
    ) -> Mapping[str, Any]:
        """Returns the first examples of evaluation above what the encoder sees, above their reconstructions."""
        examples = first_examples(eval_data, self.image_shape)
        if examples is None:
            return {}
        seen = self._corrupted_one_by_one(examples)
        outputs = mean_of(call_model(decoder, call_model(encoder, seen, False), False), loss)
        return {"reconstructions": rows(examples, seen, outputs, image_shape=self.image_shape)}

    def _corrupted_one_by_one(self, examples: Any) -> jax.Array:
        keys = example_keys(self.settings.seed, examples)
        return jax.vmap(self._corrupted)(keys, jnp.asarray(examples))

    def _corrupted(self, key: jax.Array, inputs: Any) -> jax.Array:
        if self.corruption == "masking":
            return jnp.where(jax.random.bernoulli(key, self.amount, inputs.shape), 0, inputs)
        return inputs + self.amount * jax.random.normal(key, inputs.shape)
