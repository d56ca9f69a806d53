"""What reconstructions look like, and how near they are: grids for the eye, decibels for the table."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

import modulekit as mk
from modulekit.data import Arrays
from scenarios.autoencoders.likelihood import Loss, mean_of
from scenarios.base.pictures import grid

SHOWN = 10  # examples in a row of a picture
_COLORS = (1, 3)
_BEST = 100.0  # decibels, which a reconstruction without any error would exceed

Array = npt.NDArray[Any]


def one_array(inputs: Any) -> Any:
    """Returns inputs, or raises `TypeError` if they are a structure: an autoencoder takes no targets."""
    if isinstance(inputs, tuple | list | dict):
        raise TypeError(
            f"an autoencoder's data is one array of inputs [examples, ...], which are its targets too; it got a "
            f"{type(inputs).__name__} of {len(inputs)}: pass the inputs alone"
        )
    return inputs


def checked_shape(image_shape: Sequence[int] | None) -> tuple[int, ...] | None:
    """Returns the setting `image_shape` as a tuple, or raises `ValueError` if no image has it."""
    if image_shape is None:
        return None
    shape = tuple(image_shape)
    if len(shape) not in (2, 3) or any(size < 1 for size in shape) or (len(shape) == 3 and shape[2] not in _COLORS):
        raise ValueError(f"image_shape={shape}: expected (height, width), or (height, width, 1 or 3)")
    return shape


def shape_of_images(shape: Sequence[int], image_shape: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """Returns the shape of each example as an image, None if it is none.

    Args:
      shape: of the examples, `[batch, ...]`.
      image_shape: of the images that examples which are rows stand for.

    Raises:
      ValueError: examples have not as many values as such an image.

    >>> shape_of_images([5, 8, 8, 1], None), shape_of_images([5, 64], (8, 8)), shape_of_images([5, 64], None)
    ((8, 8, 1), (8, 8), None)
    """
    own = tuple(shape[1:])
    if image_shape is not None:
        if np.prod(own) != np.prod(image_shape):
            raise ValueError(f"image_shape={image_shape} does not fit examples of shape {list(own)}")
        return image_shape
    is_image = len(own) == 2 or (len(own) == 3 and own[2] in _COLORS)
    return own if is_image and min(own[:2]) > 1 else None


def psnr(reconstructions: Any, inputs: Any) -> jax.Array:
    """Returns the peak signal-to-noise ratio of each example in decibels, `[batch]`: `10 log10(1 / mse)`, 100 at most.

    Args:
      reconstructions: `[batch, ...]`.
      inputs: `[batch, ...]`, values in [0, 1].

    >>> psnr(jnp.array([[0.5], [0.5]]), jnp.array([[0.6], [0.5]])).round(2).tolist()
    [20.0, 100.0]
    """
    error = mk.losses.squared_error(reconstructions, inputs)
    return -10 * jnp.log10(jnp.maximum(error, 10 ** (-_BEST / 10)))


def quality(outputs: Any, inputs: Any, loss: Loss, image_shape: tuple[int, ...] | None) -> dict[str, jax.Array]:
    """Returns `psnr` of each example `[batch]`, where inputs are images, or in [0, 1] as a sigmoid cross-entropy says.

    Args:
      outputs: the decoder's.
      inputs: `[batch, ...]`.
      loss: the scenario's.
      image_shape: the scenario's.
    """
    known = loss is mk.losses.sigmoid_cross_entropy or shape_of_images(inputs.shape, image_shape) is not None
    return {"psnr": psnr(mean_of(outputs, loss), inputs)} if known else {}


def first_examples(eval_data: Arrays | None, image_shape: tuple[int, ...] | None) -> Any:
    """Returns the examples that pictures show, None if there are none or they are no images."""
    if eval_data is None:
        return None
    examples = one_array(eval_data.arrays)[:SHOWN]
    return None if shape_of_images(examples.shape, image_shape) is None else examples


def rows(*examples: Any, image_shape: tuple[int, ...] | None) -> Array:
    """Returns a picture with a row for each array of examples, `[count, ...]`: what belongs together stands in one column.

    Args:
      *examples: images, or rows that stand for them.
      image_shape: of the images that rows stand for.

    >>> rows(np.zeros([3, 64]), np.ones([3, 64]), image_shape=(8, 8)).shape
    (17, 26)
    """
    images = [np.asarray(e).reshape(-1, *(shape_of_images(e.shape, image_shape) or e.shape[1:])) for e in examples]
    return grid(np.concatenate(images), columns=len(images[0]))
