"""An autoencoder whose decoder uses the encoder's weights."""

from collections.abc import Callable, Mapping
from typing import Any

import jax

import modulekit as mk
from modulekit.data import Arrays
from scenarios.base.parts import variables_by_path
from scenarios.base.scenario import Scenario

Loss = Callable[[Any, Any], jax.Array]


class TiedAutoencoder(Scenario):
    """Trains an encoder and a decoder to reproduce their input: `min E[loss(decoder(encoder(x)), x)]`.

    `TiedAutoencoder(steps, ...)(encoder, decoder, optimizer, loss, data=inputs, eval_data=inputs)`. The loss gets the
    decoder's outputs (logits, for a cross-entropy) and the inputs, and returns one value per example, `[batch]`. A weight
    that both use is one variable: it gets one gradient, the sum over both uses, and counts once.

    Args:
      steps: the number of updates.
      tied: whether every weight matrix of the decoder must be one of the encoder's; False trains a pair that shares
        nothing, for comparison.
      **settings: see `scenarios.Settings`.

    >>> import modulekit as mk, numpy as np
    >>> encoder = mk.Linear(2)
    >>> result = TiedAutoencoder(20, batch_size=8, progress=False)(
    ...     encoder, encoder.transpose(), mk.optimizers.Adam(0.01), mk.losses.squared_error, data=np.eye(8))
    >>> result.parameters  # w [8, 2] once, and two biases
    26
    """

    def __init__(self, steps: int, tied: bool = True, **settings: Any) -> None:
        super().__init__(steps, **settings)
        self.tied = tied

    def update(
        self, batch: Any, *, encoder: Any, decoder: Any, optimizer: mk.Optimizer, loss: Loss
    ) -> Mapping[str, Any]:
        """Takes one step down the gradient of the mean loss; returns the loss before it."""
        mean = lambda: loss(decoder(encoder(batch)), batch).mean()  # noqa: E731
        return {"loss": optimizer.minimize(mean, [encoder, decoder], weight=len(batch))}

    def evaluate(
        self, batch: Any, *, encoder: Any, decoder: Any, optimizer: mk.Optimizer, loss: Loss
    ) -> Mapping[str, Any]:
        """Returns the loss of each example."""
        return {"loss": loss(decoder(encoder(batch)), batch)}

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
