"""An autoencoder whose code is one of a learned set, at each place."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import modulekit as mk
from modulekit.data import Arrays, evaluation_batches
from scenarios.autoencoders.codebook import usage
from scenarios.autoencoders.images import checked_shape, first_examples, one_array, quality, rows
from scenarios.autoencoders.likelihood import Loss, mean_of
from scenarios.base.calling import call_model
from scenarios.base.scenario import Scenario


class VectorQuantizedAutoencoder(Scenario):
    """Trains an encoder, a codebook and a decoder: `min E[loss(decoder(q), x)] + quantization`, `q = quantizer(encoder(x))`.

    `VectorQuantizedAutoencoder(steps, ...)(encoder, quantizer, decoder, optimizer, loss, data=inputs,
    eval_data=inputs)`. The quantizer is `mk.nets.VectorQuantizer`, `mk.nets.VectorQuantizerEMA` or what is called like
    them: `quantizer(vectors, is_training=...)` returns a dict of `quantize` `[batch, ..., size]`, through which the
    gradient passes straight to the encoder, `loss` (a mean over the vectors, with the commitment of the encoder),
    `encodings` `[vectors, codes]` and `perplexity`. The loss gets the decoder's outputs (logits, for a cross-entropy)
    and the inputs, and returns one value per example, `[batch]`.

    An evaluation reports `loss` and its two terms, `reconstruction` and `quantization`; over all examples the codes
    that are used, their share and the perplexity of the choices; and of images, and with a sigmoid cross-entropy, the
    PSNR in decibels. It raises an alarm where too few codes are used. Images are drawn above their reconstructions.

    Args:
      steps: the number of updates.
      least_used: the share of used codes below which the codebook counts as dead.
      image_shape: height and width, and 1 or 3 channels where there are any, of the images that inputs which are rows
        stand for; None draws those inputs only that are images themselves.
      **settings: see `scenarios.Settings`.

    Raises:
      ValueError: a setting is out of range.

    Source: van den Oord, Vinyals and Kavukcuoglu, Neural discrete representation learning, 2017, eq. 3.

    >>> import modulekit as mk, numpy as np
    >>> inputs = np.random.default_rng(0).normal(size=[40, 3])
    >>> quantizer = mk.nets.VectorQuantizerEMA(2, 4, commitment_cost=0.25, decay=0.9)
    >>> result = VectorQuantizedAutoencoder(20, batch_size=8, progress=False)(
    ...     mk.Linear(2), quantizer, mk.Linear(3), mk.optimizers.Adam(0.01), mk.losses.squared_error,
    ...     data=inputs, eval_data=inputs)
    >>> sorted(result.metrics)
    ['loss', 'perplexity', 'quantization', 'reconstruction', 'used_codes', 'used_share']
    """

    def __init__(
        self, steps: int, least_used: float = 0.1, image_shape: Sequence[int] | None = None, **settings: Any
    ) -> None:
        super().__init__(steps, **settings)
        if not 0 <= least_used <= 1:
            raise ValueError(f"least_used={least_used} is outside [0, 1]: it is a share of the codes")
        self.least_used = least_used
        self.image_shape = checked_shape(image_shape)

    def update(
        self, batch: Any, *, encoder: Any, quantizer: Any, decoder: Any, optimizer: mk.Optimizer, loss: Loss
    ) -> Mapping[str, Any]:
        """Takes one step down the gradient; returns the loss before it, its two terms and the batch's perplexity."""
        inputs = one_array(batch)

        def objective() -> tuple[Any, Any]:
            found = quantizer(call_model(encoder, inputs, True), is_training=True)
            reconstruction = loss(call_model(decoder, found["quantize"], True), inputs).mean()
            return reconstruction + found["loss"], (reconstruction, found["loss"], found["perplexity"])

        trained = [encoder, quantizer, decoder]
        value, (reconstruction, quantization, perplexity) = optimizer.minimize(
            objective, trained, weight=len(inputs), has_aux=True
        )
        return {
            "loss": value,
            "reconstruction": reconstruction,
            "quantization": quantization,
            "perplexity": perplexity,
        }

    def evaluate(
        self, batch: Any, *, encoder: Any, quantizer: Any, decoder: Any, optimizer: mk.Optimizer, loss: Loss
    ) -> Mapping[str, Any]:
        """Returns the loss of each example, its two terms, and how near its reconstruction is."""
        vectors = call_model(encoder, batch, False)
        found = mk.vmap(lambda v: _part(quantizer(v[None], is_training=False)))(
            vectors
        )  # the loss of each example alone
        outputs = call_model(decoder, found["quantize"][:, 0], False)
        reconstruction = loss(outputs, batch)
        return {
            "loss": reconstruction + found["loss"],
            "reconstruction": reconstruction,
            "quantization": found["loss"],
            **quality(outputs, batch, loss, self.image_shape),
        }

    def measure(self, eval_data: Arrays | None, *, encoder: Any, quantizer: Any, **parts: Any) -> Mapping[str, Any]:
        """Returns how the codebook is used over all examples of evaluation."""
        if eval_data is None:
            return {}
        counts: Any = 0
        for part in evaluation_batches(eval_data.size, min(self.settings.eval_batch_size, eval_data.size)):
            found = quantizer(call_model(encoder, eval_data.take(part), False), is_training=False)
            counts = counts + np.asarray(found["encodings"]).sum(axis=0, dtype=np.int64)
        return usage(counts)

    def pictures(
        self,
        eval_data: Arrays | None,
        *,
        encoder: Any,
        quantizer: Any,
        decoder: Any,
        optimizer: mk.Optimizer,
        loss: Loss,
    ) -> Mapping[str, Any]:
        """Returns the first examples of evaluation above their reconstructions."""
        examples = first_examples(eval_data, self.image_shape)
        if examples is None:
            return {}
        found = quantizer(call_model(encoder, examples, False), is_training=False)
        outputs = mean_of(call_model(decoder, found["quantize"], False), loss)
        return {"reconstructions": rows(examples, outputs, image_shape=self.image_shape)}

    def alarms(self, metrics: Mapping[str, float]) -> list[str]:
        """Returns a sentence where too few codes are used."""
        share = metrics.get("used_share", 1.0)
        if share >= self.least_used:
            return []
        return [
            f"the codebook is dead: {metrics['used_codes']:.0f} of its codes are used, {share:.1%} of them. Use fewer "
            "codes, a smaller commitment_cost, or codes that follow the vectors (mk.nets.VectorQuantizerEMA)"
        ]


def _part(found: Mapping[str, Any]) -> dict[str, Any]:
    return {"quantize": found["quantize"], "loss": found["loss"]}
