"""An autoencoder whose decoder uses the encoder's weights."""

from collections.abc import Mapping, Sequence
from typing import Any

import modulekit as mk
from modulekit.data import Arrays
from scenarios.autoencoders.images import checked_shape, first_examples, one_array, quality, rows
from scenarios.autoencoders.likelihood import Loss, mean_of
from scenarios.base.calling import call_model
from scenarios.base.parts import variables_by_path
from scenarios.base.scenario import Scenario


class TiedAutoencoder(Scenario):
    """Trains an encoder and a decoder to reproduce their input: `min E[loss(decoder(encoder(x)), x)]`.

    `TiedAutoencoder(steps, ...)(encoder, decoder, optimizer, loss, data=inputs, eval_data=inputs)`. The loss gets the
    decoder's outputs (logits, for a cross-entropy) and the inputs, and returns one value per example, `[batch]`. A
    weight that both use is one variable: it gets one gradient, the sum over both uses, and counts once. Evaluations of
    images, and those with a sigmoid cross-entropy, also have the PSNR in decibels; images are drawn above their
    reconstructions.

    Args:
      steps: the number of updates.
      tied: whether every weight matrix of the decoder must be one of the encoder's; False trains a pair that shares
        nothing, for comparison.
      image_shape: height and width, and 1 or 3 channels where there are any, of the images that inputs which are rows
        stand for; None draws those inputs only that are images themselves.
      **settings: see `scenarios.Settings`.

    >>> import modulekit as mk, numpy as np
    >>> encoder = mk.Linear(2)
    >>> result = TiedAutoencoder(20, batch_size=8, progress=False)(
    ...     encoder, encoder.transpose(), mk.optimizers.Adam(0.01), mk.losses.squared_error, data=np.eye(8))
    >>> result.parameters  # w [8, 2] once, and two biases
    26
    """

    def __init__(
        self, steps: int, tied: bool = True, image_shape: Sequence[int] | None = None, **settings: Any
    ) -> None:
        super().__init__(steps, **settings)
        self.tied = tied
        self.image_shape = checked_shape(image_shape)

    def update(
        self, batch: Any, *, encoder: Any, decoder: Any, optimizer: mk.Optimizer, loss: Loss
    ) -> Mapping[str, Any]:
        """Takes one step down the gradient of the mean loss; returns the loss before it."""
        inputs = one_array(batch)
        mean = lambda: loss(_outputs(encoder, decoder, inputs, True), inputs).mean()  # noqa: E731
        return {"loss": optimizer.minimize(mean, [encoder, decoder], weight=len(inputs))}

    def evaluate(
        self, batch: Any, *, encoder: Any, decoder: Any, optimizer: mk.Optimizer, loss: Loss
    ) -> Mapping[str, Any]:
        """Returns the loss of each example, and how near its reconstruction is."""
        outputs = _outputs(encoder, decoder, batch, False)
        return {"loss": loss(outputs, batch), **quality(outputs, batch, loss, self.image_shape)}

    def pictures(
        self, eval_data: Arrays | None, *, encoder: Any, decoder: Any, optimizer: mk.Optimizer, loss: Loss
    ) -> Mapping[str, Any]:
        """Returns the first examples of evaluation above their reconstructions."""
        examples = first_examples(eval_data, self.image_shape)
        if examples is None:
            return {}
        outputs = mean_of(_outputs(encoder, decoder, examples, False), loss)
        return {"reconstructions": rows(examples, outputs, image_shape=self.image_shape)}

    def check(
        self, data: Arrays, eval_data: Arrays | None, *, encoder: Any, decoder: Any, optimizer: mk.Optimizer, loss: Loss
    ) -> None:
        """Raises `ValueError` where the pair is not tied as `tied` says, and names the weights."""
        ours = variables_by_path({"encoder": encoder})
        theirs = variables_by_path({"decoder": decoder})
        shared = set(ours.values()) & set(theirs.values())
        matrices = {path: v for path, v in theirs.items() if v.trainable and v.ndim >= 2}
        apart = {path: v for path, v in matrices.items() if v not in shared}
        if self.tied and (apart or not matrices):
            listed = (
                ", ".join(f"{path} {list(v.shape)}" for path, v in apart.items()) or "the decoder has no weight matrix"
            )
            raise ValueError(
                f"the decoder is not tied to the encoder: {listed}. Build it from the encoder's own layers, as in "
                "layer.transpose(), or train the pair untied with TiedAutoencoder(..., tied=False)"
            )
        if not self.tied and shared:
            listed = ", ".join(path for path, v in theirs.items() if v in shared)
            raise ValueError(
                f"tied=False, and the decoder shares {listed} with the encoder: give it weights of its own"
            )


def _outputs(encoder: Any, decoder: Any, inputs: Any, is_training: bool) -> Any:
    return call_model(decoder, call_model(encoder, inputs, is_training), is_training)
