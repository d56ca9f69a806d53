"""A tied autoencoder of handwritten digits: the decoder multiplies by the transpose of the encoder's weights.

Trains it beside an untied one of the same size, prints a table, and saves a picture of inputs and reconstructions and of
both loss curves.
"""

from pathlib import Path
from typing import Literal

import jax
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

import modulekit as mk
import scenarios
from examples.datasets import flat_digits


class Encoder(mk.Module):
    """`sigmoid(x w + b)`."""

    def __init__(self, code_size: int, name: str | None = None) -> None:
        super().__init__(name=name)
        self.linear = mk.Linear(code_size, w_init=mk.initializers.TruncatedNormal(stddev=0.05))

    def __call__(self, x: jax.Array) -> jax.Array:
        return jax.nn.sigmoid(self.linear(x))


def make_decoder(encoder: Encoder, output_size: int, tied: bool) -> mk.Module:
    """Returns a decoder to logits: with the encoder's weight transposed, or with one of its own."""
    if tied:
        return encoder.linear.transpose()
    return mk.Linear(output_size, w_init=mk.initializers.TruncatedNormal(stddev=0.05), name="decoder")


def main(
    steps: int = 10_000,
    code_size: int = 100,
    optimizer: Literal["sgd", "adam"] = "sgd",
    rate: float | None = None,
    batch_size: int = 100,
    seed: int = 0,
    data_dir: Path | None = None,
    save_dir: Path | None = None,
    picture: Path | None = Path("tied_autoencoder.png"),
) -> float:
    """Trains both, and prints how much lower the tied one's test loss is.

    Args:
      steps: updates of each.
      code_size: units of the code.
      optimizer: "sgd" (default rate 0.3) or "adam" (default rate 1e-3).
      rate: the learning rate.
      batch_size: examples per update.
      seed: of the first weights and the order of examples.
      data_dir: a directory with the four MNIST files; the embedded 8x8 digits if not given.
      save_dir: the runs' directory; run the same line again after a Ctrl-C, and it goes on.
      picture: where to save the picture.
    """
    (train, _), (test, _), shape = flat_digits(data_dir)
    runs: dict[str, tuple[scenarios.Result, np.ndarray]] = {}
    for tied in (False, True):
        name = "tied" if tied else "untied"
        mk.seed(seed)
        encoder = Encoder(code_size)
        decoder = make_decoder(encoder, train.shape[1], tied)
        step = mk.optimizers.SGD(rate or 0.3) if optimizer == "sgd" else mk.optimizers.Adam(rate or 1e-3)
        train_it = scenarios.TiedAutoencoder(
            steps,
            tied=tied,
            batch_size=batch_size,
            seed=seed,
            eval_interval=max(1, steps // 10),
            save_dir=save_dir and save_dir / name,
        )
        result = train_it(encoder, decoder, step, mk.losses.sigmoid_cross_entropy, data=train, eval_data=test)
        runs[name] = result, np.asarray(jax.nn.sigmoid(decoder(encoder(test[:10]))))
    print_table({name: result for name, (result, _) in runs.items()})
    if picture is not None:
        draw(picture, test[:10], runs, shape)
        print(f"picture: {picture}")
    gain = runs["untied"][0].metrics["loss"] - runs["tied"][0].metrics["loss"]
    print(f"the tied autoencoder's test loss is lower by {gain:.4f}")
    return gain


def print_table(results: dict[str, scenarios.Result]) -> None:
    """Prints parameters and losses side by side."""
    table = Table(title="mean cross-entropy per pixel, in nats")
    for heading in ("autoencoder", "parameters", "steps", "train loss", "test loss"):
        table.add_column(heading, justify="left" if heading == "autoencoder" else "right")
    for name, result in results.items():
        losses = result.column("loss")[1]
        last = f"{losses[-1]:.4f}" if losses else "-"
        table.add_row(name, f"{result.parameters:,}", str(result.step), last, f"{result.metrics['loss']:.4f}")
    Console().print(table)


def draw(
    path: Path, inputs: np.ndarray, runs: dict[str, tuple[scenarios.Result, np.ndarray]], shape: tuple[int, int]
) -> None:
    """Saves inputs and reconstructions as rows of images, and the test loss over the steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6.5), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=[3, 3])
    rows = {"input": inputs} | {name: images for name, (_, images) in runs.items()}
    axes = above.subplots(len(rows), len(inputs), squeeze=False)
    for row, (name, images) in zip(axes, rows.items(), strict=True):
        for axis, image in zip(row, images, strict=True):
            axis.imshow(image.reshape(shape), cmap="gray_r", vmin=0.0, vmax=1.0)
            axis.set(xticks=[], yticks=[])
        row[0].set_ylabel(name)
    curves = below.subplots()
    for name, (result, _) in runs.items():
        steps, losses = result.column("eval_loss")
        curves.plot(steps, losses, marker="o", label=f"{name} ({result.parameters:,} parameters)")
    curves.set(xlabel="step", ylabel="test cross-entropy per pixel (nats)")
    curves.legend()
    curves.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    tyro.cli(main)
