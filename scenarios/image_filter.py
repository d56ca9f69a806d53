"""One filter for several sets of images, with one set of variables."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

import modulekit as mk
from modulekit.data import Arrays
from scenarios.base.calling import call_model
from scenarios.base.pictures import grid
from scenarios.base.scenario import Scenario
from scenarios.supervised import Loss

Pairs = list[tuple[Any, Any]]

_SHOWN = 4  # images of each set in a picture
_COLORS = (1, 3)


class ImageFilter(Scenario):
    """Trains one filter on several sets of images at once: `min sum_k E[loss(filter(images_k), targets_k)]`.

    `ImageFilter(steps, ...)(filter, optimizer, loss, data=((images_a, targets_a), (images_b, targets_b)),
    eval_data=...)`. Images of one set have one size, and those of another set may have another: `[count, height, width,
    channels]`. All sets have as many images, a single one has `count` 1, and an update takes `batch_size` of each. The
    filter is called once for each set, with the same variables: they get one gradient, the sum over all sets, and count
    once. A filter may hold its variables or ask for them by name, in a scope that reuses them.

    The loss gets the filter's outputs and the targets, and returns one value per example, `[batch]`. Metrics are
    `loss`, and its parts `loss_0`, `loss_1`, ...; pictures show the first images of each set, outputs and targets
    below.

    Args:
      steps: the number of updates.
      **settings: see `scenarios.Settings`.

    Source: TensorFlow 1, Sharing variables, 2017, where `my_image_filter` is called on two images.

    >>> import modulekit as mk, numpy as np
    >>> wide, tall = np.random.default_rng(0).random([1, 4, 9, 1]), np.random.default_rng(1).random([1, 8, 3, 1])
    >>> result = ImageFilter(50, batch_size=1, progress=False)(
    ...     mk.Conv2D(1, 1), mk.optimizers.Adam(0.1), mk.losses.squared_error, data=((wide, 1 - wide), (tall, 1 - tall)))
    >>> result.parameters  # one weight and one bias, for both
    2
    """

    def update(self, batch: Any, *, filter: Any, optimizer: mk.Optimizer, loss: Loss) -> Mapping[str, Any]:
        """Takes one step down the gradient of the sum of the mean losses; returns all of them before it."""
        pairs = sets(batch)

        def total() -> tuple[Any, list[Any]]:
            means = [values.mean() for values in losses(filter, pairs, loss, True)]
            return sum(means), means

        value, means = optimizer.minimize(total, filter, weight=len(pairs[0][0]), has_aux=True)
        return {"loss": value, **numbered("loss", means)}

    def evaluate(self, batch: Any, *, filter: Any, optimizer: mk.Optimizer, loss: Loss) -> Mapping[str, Any]:
        """Returns the losses of each example, one of each set, and their sum."""
        each = losses(filter, sets(batch), loss, False)
        return {"loss": sum(each), **numbered("loss", each)}

    def pictures(
        self, eval_data: Arrays | None, *, filter: Any, optimizer: mk.Optimizer, loss: Loss
    ) -> Mapping[str, Any]:
        """Returns, for each set, its first images above what the filter makes of them, above their targets."""
        found = []
        for images, targets in () if eval_data is None else sets(eval_data.arrays):
            outputs, targets = np.asarray(call_model(filter, images[:_SHOWN], False)), targets[:_SHOWN]
            if images.ndim == 4 and images.shape[-1] == targets.shape[-1] and targets.shape[-1] in _COLORS:
                rows = [middle(images[:_SHOWN], targets.shape), outputs, targets]
                found.append(grid(np.concatenate(rows), columns=len(targets)))
        return numbered("images", found)


def losses(filter: Any, pairs: Pairs, loss: Loss, is_training: bool) -> list[jax.Array]:
    """Returns the losses of each set of images, `[batch]` each."""
    return [loss(call_model(filter, images, is_training), targets) for images, targets in pairs]


def sets(batch: Any) -> Pairs:
    """Returns the pairs (images, targets) of the data, or raises `ValueError` if that is not what it is.

    >>> sets((("a", "b"), ("c", "d")))
    [('a', 'b'), ('c', 'd')]
    """
    pairs = list(batch) if isinstance(batch, tuple | list) else []
    if not pairs or not all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in pairs):
        raise ValueError(
            "an image filter's data are pairs of images and targets, one for each set: "
            f"((images_a, targets_a), (images_b, targets_b)); it got {_outline(batch)}"
        )
    return [(images, targets) for images, targets in pairs]


def middle(images: Any, shape: Sequence[int]) -> Any:
    """Returns the middle of images as large as what a filter without padding makes of them.

    Args:
      images: `[count, height, width, channels]`.
      shape: of the outputs, `[count, height, width, channels]`.

    >>> middle(np.arange(5).reshape(1, 1, 5, 1), [1, 1, 3, 1]).reshape(-1).tolist()
    [1, 2, 3]
    """
    top, left = (images.shape[1] - shape[1]) // 2, (images.shape[2] - shape[2]) // 2
    return images[:, top : top + shape[1], left : left + shape[2]]


def numbered(name: str, values: Any) -> dict[str, Any]:
    """Returns values by a name and their number.

    >>> numbered("loss", [0.5, 0.25])
    {'loss_0': 0.5, 'loss_1': 0.25}
    """
    return {f"{name}_{index}": value for index, value in enumerate(values)}


def _outline(batch: Any) -> str:
    if isinstance(batch, tuple | list):
        return f"({', '.join(_outline(item) for item in batch)})"
    return f"an array {list(batch.shape)}" if hasattr(batch, "shape") else f"a {type(batch).__name__}"
