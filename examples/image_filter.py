"""Learns one edge filter from two photographs of different sizes, with one set of variables.

The filter is two convolutions with a rectifier between them. Its targets are the strengths of edges by Sobel's kernels,
which no single convolution gives. It is trained on patches of one photograph, and on larger patches of another that was
shrunk, from the left three quarters of both; then it is measured on the last quarter, and filters both as a whole.
"""

from pathlib import Path

import jax
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_sample_images

import modulekit as mk
import scenarios

SOBEL = np.array([[1, 0, -1], [2, 0, -2], [1, 0, -1]], np.float32) / 4
Pair = tuple[np.ndarray, np.ndarray]


def main(
    steps: int = 1500,
    channels: int = 8,
    window: int = 3,
    rate: float = 0.01,
    seed: int = 0,
    picture: Path | None = Path("image_filter.png"),
) -> float:
    """Trains, and prints the share of the edges' variance that the filter explains where it was not trained.

    Args:
      steps: updates of 8 patches of each photograph.
      channels: kernels of the first convolution.
      window: height and width of the kernels, at least 2.
      rate: Adam's learning rate.
      seed: of the first weights, the patches and their order.
      picture: where to save the picture.
    """
    mk.seed(seed)
    images = photographs()
    parts = [np.split(image, [image.shape[1] * 3 // 4], axis=1) for image in images]
    border = window - 1  # what two convolutions without padding take away on each side
    train = tuple(patches(left, size, border, seed) for (left, _), size in zip(parts, (20, 28), strict=True))
    first = mk.Conv2D(channels, window, padding="VALID", name="first")
    second = mk.Conv2D(1, window, padding="VALID", name="second")
    filter = mk.Sequential([first, jax.nn.relu, second])
    train_it = scenarios.ImageFilter(steps, batch_size=8, seed=seed)
    result = train_it(filter, mk.optimizers.Adam(rate), mk.losses.squared_error, data=train, eval_data=train)
    explained: dict[str, float] = {}
    for name, (_, right) in zip(("temple", "flower, shrunk"), parts, strict=True):
        error, target = filtered(filter, right) - edges(right, border), edges(right, border)
        explained[f"{name}, {right.shape[0]} x {right.shape[1]}"] = 1 - np.square(error).mean() / target.var()
    table = Table(title=f"one filter, {result.parameters} parameters, {len(filter.trainable_variables)} variables")
    table.add_column("part that it has not seen")
    table.add_column("variance explained", justify="right")
    for name, share in explained.items():
        table.add_row(name, f"{share:.4f}")
    Console().print(table)
    if picture is not None:
        draw(picture, images, filter, first.w.numpy(), border)
        print(f"picture: {picture}")
    lowest = min(explained.values())
    print(f"variance of the edges explained: at least {lowest:.4f}")
    return float(lowest)


def photographs() -> list[np.ndarray]:
    """Returns two photographs in gray, `[height, width]`, values in [0, 1]; the second in half its size."""
    temple, flower = (image.astype(np.float32).mean(axis=2) / 255 for image in load_sample_images().images)
    height, width = flower.shape[0] // 2, flower.shape[1] // 2
    return [temple, flower[: 2 * height, : 2 * width].reshape(height, 2, width, 2).mean(axis=(1, 3))]


def edges(image: np.ndarray, border: int) -> np.ndarray:
    """Returns the strength of edges, `sqrt(x^2 + y^2)` of Sobel's two kernels, without a border of the image."""
    windows = np.lib.stride_tricks.sliding_window_view(image, (3, 3))
    x, y = (np.einsum("hwij,ij->hw", windows, kernel) for kernel in (SOBEL, SOBEL.T))
    return np.sqrt(x**2 + y**2)[border - 1 : 1 - border or None, border - 1 : 1 - border or None]


def patches(image: np.ndarray, size: int, border: int, seed: int, count: int = 256) -> Pair:
    """Returns patches `[count, size, size, 1]` of an image, and of its edges without a border."""
    random, target = np.random.default_rng(seed), edges(image, border)
    inner = size - 2 * border
    places = list(zip(*(random.integers(0, length - size, count) for length in image.shape), strict=True))
    inputs = np.stack([image[top : top + size, left : left + size] for top, left in places])
    targets = np.stack([target[top : top + inner, left : left + inner] for top, left in places])
    return inputs[..., None], targets[..., None]


def filtered(filter: mk.Module, image: np.ndarray) -> np.ndarray:
    """Returns what the filter makes of a whole image."""
    return np.asarray(filter(image[None, :, :, None]))[0, :, :, 0]


def draw(path: Path, images: list[np.ndarray], filter: mk.Module, kernels: np.ndarray, border: int) -> None:
    """Saves both photographs, what the filter makes of them, Sobel's edges, and the kernels of the first convolution."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=[5, 1])
    axes = above.subplots(len(images), 3)
    for row, image in zip(axes, images, strict=True):
        shown = {"photograph": image, "filter": filtered(filter, image), "Sobel": edges(image, border)}
        for axis, (name, values) in zip(row, shown.items(), strict=True):
            axis.imshow(values, cmap="gray", vmin=0.0, vmax=1.0 if name == "photograph" else 0.6)
            axis.set(title=f"{name}, {image.shape[0]} x {image.shape[1]}", xticks=[], yticks=[])
    largest = np.abs(kernels).max()
    for index, axis in enumerate(below.subplots(1, kernels.shape[-1], squeeze=False)[0]):
        axis.imshow(kernels[:, :, 0, index], cmap="RdBu", vmin=-largest, vmax=largest)
        axis.set(xticks=[], yticks=[])
    below.suptitle("kernels of the first convolution")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    tyro.cli(main)
