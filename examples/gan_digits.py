"""Generates handwritten digits: a generator of images trained against a discriminator of them.

First a classifier is trained, whose hidden layer is the space in which generated digits are compared with real ones. The
Fréchet distance there depends on the classifier and on the number of digits: compare it within one table.
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
from scenarios.base.pictures import grid

Images = np.ndarray


class Generator(mk.Module):
    """Latents to images in [0, 1], by two hidden layers with batch normalization."""

    def __init__(self, shape: tuple[int, ...], hidden: int, name: str | None = None) -> None:
        super().__init__(name=name)
        self.shape = shape
        self.layers = [mk.Linear(hidden), mk.Linear(hidden), mk.Linear(int(np.prod(shape)))]
        self.norms = [mk.BatchNorm(create_scale=True, create_offset=True, decay_rate=0.99) for _ in range(2)]

    def __call__(self, z: jax.Array, is_training: bool) -> jax.Array:
        for layer, norm in zip(self.layers, self.norms, strict=False):
            z = jax.nn.relu(norm(layer(z), is_training=is_training))
        return jax.nn.sigmoid(self.layers[-1](z)).reshape(-1, *self.shape)


class Discriminator(mk.Module):
    """Images to one output each, by two hidden layers, all of them with spectral normalization."""

    def __init__(self, hidden: int, name: str | None = None) -> None:
        super().__init__(name=name)
        self.layers = [mk.NormalizedWeight(mk.Linear(size), mk.SpectralNorm()) for size in (hidden, hidden, 1)]

    def __call__(self, x: jax.Array, is_training: bool) -> jax.Array:
        x = 2 * x.reshape(len(x), -1) - 1
        for layer in self.layers[:-1]:
            x = jax.nn.leaky_relu(layer(x, is_training=is_training), 0.2)
        return self.layers[-1](x, is_training=is_training)


class Features(mk.Module):
    """What a classifier makes of an image before its last layer."""

    def __init__(self, hidden: int = 64, name: str | None = None) -> None:
        super().__init__(name=name)
        self.layers = mk.Sequential([mk.Flatten(), mk.Linear(128), jax.nn.relu, mk.Linear(hidden), jax.nn.relu])

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.layers(x)


def trained_features(train: tuple[Images, Images], test: tuple[Images, Images], steps: int, seed: int) -> Features:
    """Trains a classifier of digits, and returns it without its last layer."""
    features = Features()
    classifier = mk.Sequential([features, mk.Linear(10)])
    fit = scenarios.Supervised(steps, seed=seed, progress=False)
    result = fit(classifier, mk.optimizers.Adam(1e-3), mk.losses.softmax_cross_entropy, data=train, eval_data=test)
    print(f"the classifier of the feature space: test accuracy {result.metrics['accuracy']:.4f}")
    return features


def main(
    steps: int = 3000,
    loss: Literal["non_saturating", "minimax", "least_squares", "hinge", "wasserstein", "relativistic"] = "hinge",
    d_steps: int = 1,
    hidden: int = 128,
    latent_size: int = 32,
    rate: float = 2e-4,
    ema_decay: float = 0.99,
    samples: int = 1000,
    eval_interval: int = 500,
    seed: int = 0,
    data_dir: Path | None = None,
    save_dir: Path | None = None,
    picture: Path | None = Path("gan_digits.png"),
) -> float:
    """Trains, and prints the distance of generated digits from test digits over time, with a picture of some.

    Args:
      steps: updates of the generator.
      loss: of the two players.
      d_steps: updates of the discriminator for each of the generator.
      hidden: units of the hidden layers of both.
      latent_size: of the normal vectors that images are made of.
      rate: Adam's learning rate for the generator; the discriminator's is twice that.
      ema_decay: of the averaged generator.
      samples: digits that are compared.
      eval_interval: updates between two comparisons.
      seed: of everything.
      data_dir: a directory with the four MNIST files; the embedded 8x8 digits if not given.
      save_dir: the run's directory, with pictures over time; run the same line again after a Ctrl-C, and it goes on.
      picture: where to save the picture.
    """
    mk.seed(seed)
    train, test = mk.data.digits() if data_dir is None else mk.data.mnist(data_dir)
    features = trained_features(train, test, 1000, seed)
    generator, discriminator = Generator(train[0].shape[1:], hidden), Discriminator(hidden)
    fight = scenarios.GAN(
        steps,
        d_steps=d_steps,
        loss=loss,
        latent_size=latent_size,
        features=features,
        feature_name="hidden layer of a digit classifier, 64 units",
        samples=samples,
        ema_decay=ema_decay,
        eval_interval=eval_interval,
        seed=seed,
        save_dir=save_dir,
    )
    optimizers = mk.optimizers.Adam(rate, beta1=0.5), mk.optimizers.Adam(2 * rate, beta1=0.5)
    result = fight(generator, discriminator, *optimizers, data=train[0], eval_data=test[0])
    print_table(result, fight)
    if picture is not None:
        draw(picture, result, generator, jax.random.normal(jax.random.key(seed), (64, latent_size)))
        print(f"picture: {picture}")
    distances = result.column("eval_frechet_distance")[1]
    print(f"the distance fell to {distances[-1] / distances[0]:.4f} of the first")
    return distances[-1] / distances[0]


def print_table(result: scenarios.Result, fight: scenarios.GAN) -> None:
    """Prints what was measured over time, of the raw generator and of the averaged one."""
    count = int(result.metrics["samples"])
    table = Table(
        title=f"{count} generated digits beside {count} test digits", caption=f"features: {fight.feature_name}"
    )
    for heading in ("step", "Fréchet distance", "averaged", "precision", "averaged", "recall", "averaged"):
        table.add_column(heading, justify="right")
    for row in result.history:
        if "eval_frechet_distance" in row:
            values = [row[f"eval_{ema}{name}"] for name in ("precision", "recall") for ema in ("", "ema_")]
            distances = [f"{row[f'eval_{ema}frechet_distance']:.2f}" for ema in ("", "ema_")]
            table.add_row(str(row["step"]), *distances, *(f"{value:.3f}" for value in values))
    Console().print(table)


def draw(path: Path, result: scenarios.Result, generator: Generator, latents: jax.Array) -> None:
    """Saves digits of the averaged generator, and the distances and losses over the steps."""
    from matplotlib.figure import Figure

    assert result.ema is not None
    with result.ema.averaged():
        images = np.asarray(generator(latents, is_training=False))
    figure = Figure(figsize=(12, 4), layout="constrained")
    digits, distances, losses = figure.subplots(1, 3)
    digits.imshow(grid(images), cmap="gray", vmin=0, vmax=1)
    digits.set(xticks=[], yticks=[], title=f"averaged generator after {result.step} steps")
    for name, label in (("eval_frechet_distance", "raw"), ("eval_ema_frechet_distance", "averaged")):
        distances.plot(*result.column(name), marker="o", label=label)
    distances.set(xlabel="step", ylabel="Fréchet distance", yscale="log")
    for name, label in (("loss_g", "generator"), ("loss_d", "discriminator")):
        losses.plot(*result.column(name), label=label)
    losses.set(xlabel="step", ylabel="loss")
    for axis in (distances, losses):
        axis.legend()
        axis.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    tyro.cli(main)
