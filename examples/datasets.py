"""The data of the examples: the embedded digits, or MNIST from a directory."""

from pathlib import Path

import numpy as np

import modulekit as mk

Pair = tuple[np.ndarray, np.ndarray]


def flat_digits(data_dir: Path | None) -> tuple[Pair, Pair, tuple[int, int]]:
    """Returns training and test pairs with images as rows `[n, height * width]`, and the images' height and width."""
    train, test = mk.data.digits() if data_dir is None else mk.data.mnist(data_dir)
    height, width = train[0].shape[1:3]
    flat = [(images.reshape(len(images), -1), labels) for images, labels in (train, test)]
    return flat[0], flat[1], (height, width)
