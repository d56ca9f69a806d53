"""Variational autoencoders of handwritten digits: what beta does to the code, with reconstructions and samples.

Trains one for each beta, prints a table of bounds and active units, and saves a picture: for each beta a row of test digits,
their reconstructions, and digits drawn from the prior.
"""

from pathlib import Path

import jax
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

import modulekit as mk
import scenarios
from examples.datasets import flat_digits

COLUMNS = 12


def main(
    steps: int = 2000,
    betas: tuple[float, ...] = (1.0, 0.25, 4.0),
    code_size: int = 8,
    hidden: int = 128,
    importance_samples: int = 50,
    rate: float = 1e-3,
    seed: int = 0,
    data_dir: Path | None = None,
    save_dir: Path | None = None,
    picture: Path | None = Path("variational_digits.png"),
) -> float:
    """Trains, and prints the first one's importance-weighted bound on the log-likelihood of the test digits.

    Args:
      steps: updates of 100 examples.
      betas: weights of the divergence; the last of the default ones is large enough for a collapse.
      code_size: units of the code.
      hidden: units of the hidden layer of encoder and decoder.
      importance_samples: codes for each digit in the bound.
      rate: Adam's learning rate.
      seed: of the first weights, the order of examples and the codes.
      data_dir: a directory with the four MNIST files; the embedded 8x8 digits if not given.
      save_dir: the runs' directory; run the same line again after a Ctrl-C, and it goes on.
      picture: where to save the picture.
    """
    (train, _), (test, _), shape = flat_digits(data_dir)
    results: dict[float, scenarios.Result] = {}
    images: dict[float, list[np.ndarray]] = {}
    for beta in betas:
        mk.seed(seed)
        encoder = mk.nets.MLP([hidden, 2 * code_size], name="encoder")
        decoder = mk.nets.MLP([hidden, train.shape[1]], name="decoder")
        train_it = scenarios.VariationalAutoencoder(
            steps,
            beta=beta,
            warm_up=steps // 5,
            importance_samples=importance_samples,
            image_shape=shape,
            seed=seed,
            save_dir=save_dir and save_dir / f"beta_{beta:g}",
        )
        loss = mk.losses.sigmoid_cross_entropy
        results[beta] = train_it(encoder, decoder, mk.optimizers.Adam(rate), loss, data=train, eval_data=test)
        means = encoder(test[:COLUMNS])[:, :code_size]
        codes = jax.random.normal(jax.random.key(seed), [COLUMNS, code_size])
        images[beta] = [test[:COLUMNS], *(np.asarray(jax.nn.sigmoid(decoder(code))) for code in (means, codes))]
    print_table(results, code_size)
    for beta, result in results.items():
        for _, sentence in result.alarms:
            print(f"alarm with beta {beta:g}: {sentence}")
    if picture is not None:
        draw(picture, images, shape)
        print(f"picture: {picture}")
    bound = results[betas[0]].metrics["iwae"]
    print(f"log-likelihood of a test digit, in nats, with beta {betas[0]:g}: at least {bound:.2f}")
    return bound


def print_table(results: dict[float, scenarios.Result], code_size: int) -> None:
    """Prints the terms of the bounds side by side."""
    table = Table(title="test digits, in nats per digit")
    for heading in ("beta", "reconstruction", "KL", "ELBO", "IWAE", "active units", "PSNR (dB)"):
        table.add_column(heading, justify="right")
    for beta, result in results.items():
        values = [f"{result.metrics[name]:.2f}" for name in ("reconstruction", "kl", "elbo", "iwae")]
        active = f"{result.metrics['active_units']:.0f} of {code_size}"
        table.add_row(f"{beta:g}", *values, active, f"{result.metrics['psnr']:.2f}")
    Console().print(table)


def draw(path: Path, images: dict[float, list[np.ndarray]], shape: tuple[int, int]) -> None:
    """Saves inputs, reconstructions and samples of each beta as rows of images."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 2.6 * len(images)), layout="constrained")
    parts = figure.subfigures(len(images), 1, squeeze=False)[:, 0]
    for part, (beta, rows) in zip(parts, images.items(), strict=True):
        part.suptitle(f"beta {beta:g}")
        axes = part.subplots(len(rows), COLUMNS, squeeze=False)
        for row, name, drawn in zip(axes, ("input", "reconstruction", "sample"), rows, strict=True):
            for axis, image in zip(row, drawn, strict=True):
                axis.imshow(image.reshape(shape), cmap="gray_r", vmin=0.0, vmax=1.0)
                axis.set(xticks=[], yticks=[])
            row[0].set_ylabel(name, rotation=0, horizontalalignment="right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    tyro.cli(main)
