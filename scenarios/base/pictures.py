"""Pictures of a run: images in one grid, and files beside its log."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

FOLDER = "pictures"  # of a run's directory

Array = npt.NDArray[Any]


def grid(images: npt.ArrayLike, columns: int | None = None, border: int = 1) -> Array:
    """Puts images beside and below each other.

    Args:
      images: `[count, height, width]`, `[count, height, width, 1]` or `[count, height, width, 3]`, values in [0, 1]; others
        are cut off.
      columns: images in a row; None for a square.
      border: white pixels between them.

    Returns:
      One picture, `[height, width]` or `[height, width, 3]`.

    Raises:
      ValueError: these are no images.

    >>> grid(np.zeros([3, 8, 8, 1]), columns=2, border=1).shape
    (17, 17)
    """
    array = np.clip(np.asarray(images, np.float32), 0, 1)
    if array.ndim == 4 and array.shape[-1] == 1:
        array = array[..., 0]
    if not (array.ndim == 3 or (array.ndim == 4 and array.shape[-1] == 3)) or not len(array):
        raise ValueError(
            f"expected images [count, height, width], or with 1 or 3 channels behind, got {list(array.shape)}"
        )
    columns = columns or int(np.ceil(np.sqrt(len(array))))
    height, width = array.shape[1] + border, array.shape[2] + border
    rows = -(-len(array) // columns)
    picture = np.ones((rows * height - border, columns * width - border, *array.shape[3:]), np.float32)
    for index, image in enumerate(array):
        top, left = index // columns * height, index % columns * width
        picture[top : top + image.shape[0], left : left + image.shape[1]] = image
    return picture


def write_pictures(directory: Path, step: int, pictures: Mapping[str, Array]) -> list[Path]:
    """Writes pictures of a step as `pictures/NAME_STEP.png` in a run's directory; returns the files.

    Args:
      directory: of the run.
      step: the number of updates before.
      pictures: `[height, width]` or `[height, width, 3]`, values in [0, 1], by name.

    Raises:
      ValueError: one is no picture.
      ImportError: matplotlib is not installed, and there are pictures.
    """
    if not pictures:
        return []
    folder, written = directory / FOLDER, []
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures.items():
        if not (picture.ndim == 2 or (picture.ndim == 3 and picture.shape[-1] == 3)):
            raise ValueError(
                f"picture {name!r} must be [height, width] or [height, width, 3], not {list(picture.shape)}"
            )
        file = folder / f"{name}_{step:08d}.png"
        _imsave(file, np.rint(255 * np.clip(picture, 0, 1)).astype(np.uint8))
        written.append(file)
    return written


def _imsave(file: Path, picture: Array) -> None:
    try:
        from matplotlib.image import imsave
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install 'modulekit[plot]'") from error
    temporary = file.with_name(f".{file.name}")
    colored = picture if picture.ndim == 3 else np.repeat(picture[..., None], 3, axis=-1)  # a color map has fewer grays
    imsave(temporary, colored, format="png")
    temporary.replace(file)
