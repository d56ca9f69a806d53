"""A small case of each scenario that comes with this library, so that the conformance kit can try it by its class."""

from collections.abc import Callable
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import modulekit as mk
from scenarios.aggregation import AggregatedGradients
from scenarios.autoencoders import (
    DenoisingAutoencoder,
    TiedAutoencoder,
    VariationalAutoencoder,
    VectorQuantizedAutoencoder,
)
from scenarios.base.scenario import Scenario
from scenarios.distillation import Distillation
from scenarios.ensemble import Ensemble, SnapshotEnsemble
from scenarios.gan import GAN
from scenarios.image_filter import ImageFilter
from scenarios.serial_sharing import SerialSharing
from scenarios.supervised import Supervised
from scenarios.testing.case import Case

STEPS = 60


def settings(batch_size: int, **others: Any) -> dict[str, Any]:
    """Returns the settings of a small run, in which logging and programs end at different steps."""
    return {
        "steps": STEPS, "batch_size": batch_size, "seed": 3, "log_interval": 7, "steps_per_call": 7, "progress": False,
        **others,
    }  # fmt: skip


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    """Returns normal random numbers."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def labelled(size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns inputs `[size, 5]` and labels below 3, `[size]`."""
    inputs = numbers(size, 5, seed=seed)
    return inputs, inputs[:, :3].argmax(axis=1).astype(np.int32)


def linear_data(size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns inputs `[size, 4]` and noisy linear targets `[size, 2]`."""
    inputs = numbers(size, 4, seed=seed)
    return inputs, inputs @ numbers(4, 2, seed=9) + 0.1 * numbers(size, 2, seed=seed + 1)


def unit_data(size: int, seed: int) -> np.ndarray:
    """Returns examples `[size, 6]` in [0, 1)."""
    return np.random.default_rng(seed).random([size, 6]).astype(np.float32)


def weighted_data(size: int, seed: int) -> dict[str, np.ndarray]:
    """Returns samples of a linear function, with weights."""
    inputs, targets = linear_data(size, seed)
    return {"x": inputs, "y": targets, "count": np.random.default_rng(seed).integers(1, 9, size=size)}


def sample_loss(model: Any, sample: Any) -> Any:
    """Returns the squared error of one sample of `weighted_data`."""
    return mk.losses.squared_error(model(sample["x"][None]), sample["y"][None])[0]


def supervised() -> Case:
    """A classifier with dropout."""
    parts = {
        "model": mk.nets.MLP([6, 3], dropout_rate=0.4),
        "optimizer": mk.optimizers.Momentum(0.1, 0.9),
        "loss": mk.losses.softmax_cross_entropy,
    }
    return Case(Supervised, settings(8), parts, labelled(44, 1), labelled(23, 2))


def autoencoder(tied: bool = True) -> Case:
    """An autoencoder of one layer."""
    encoder = mk.Linear(3, name="encoder")
    parts = {
        "encoder": encoder,
        "decoder": encoder.transpose() if tied else mk.Linear(6, name="decoder"),
        "optimizer": mk.optimizers.Momentum(0.5, 0.9),
        "loss": mk.losses.sigmoid_cross_entropy,
    }
    return Case(TiedAutoencoder, settings(9, tied=tied), parts, unit_data(50, 5), unit_data(17, 6))


def denoising() -> Case:
    """An autoencoder of masked inputs."""
    parts = {
        "encoder": mk.Linear(3, name="encoder"),
        "decoder": mk.Linear(6, name="decoder"),
        "optimizer": mk.optimizers.Momentum(0.5, 0.9),
        "loss": mk.losses.sigmoid_cross_entropy,
    }
    chosen = settings(9, corruption="masking", amount=0.25, image_shape=(2, 3))
    return Case(DenoisingAutoencoder, chosen, parts, unit_data(50, 5), unit_data(17, 6))


def variational() -> Case:
    """A variational autoencoder with a warm-up and an importance-weighted bound."""
    parts = {
        "encoder": mk.nets.MLP([5, 4], name="encoder"),
        "decoder": mk.nets.MLP([5, 6], name="decoder"),
        "optimizer": mk.optimizers.Adam(0.01),
        "loss": mk.losses.sigmoid_cross_entropy,
    }
    chosen = settings(9, beta=0.5, warm_up=20, importance_samples=3, image_shape=(3, 2))
    return Case(VariationalAutoencoder, chosen, parts, unit_data(50, 5), unit_data(17, 6))


def vector_quantized() -> Case:
    """An autoencoder with codes that follow the vectors."""
    parts = {
        "encoder": mk.Linear(3, name="encoder"),
        "quantizer": mk.nets.VectorQuantizerEMA(3, 4, commitment_cost=0.25, decay=0.9),
        "decoder": mk.Linear(6, name="decoder"),
        "optimizer": mk.optimizers.Adam(0.02),
        "loss": mk.losses.squared_error,
    }
    return Case(VectorQuantizedAutoencoder, settings(9), parts, unit_data(50, 5), unit_data(17, 6))


def distillation() -> Case:
    """A student of one teacher and of labels."""
    parts = {
        "student": mk.nets.MLP([3, 3], dropout_rate=0.2, name="student"),
        "teachers": mk.nets.MLP([6, 3], dropout_rate=0.4, name="teacher"),
        "optimizer": mk.optimizers.Adam(0.02),
    }
    return Case(Distillation, settings(8, hard_weight=0.3), parts, labelled(44, 1), labelled(23, 2))


def image_filter() -> Case:
    """A filter of two convolutions, for images of two sizes."""

    def pictures(size: int, seed: int) -> Any:
        shapes = (size, 4, 5, 1), (size, 3, 6, 1)
        return tuple((images := numbers(*shape, seed=seed), np.abs(images)) for shape in shapes)

    parts = {
        "filter": mk.Sequential([mk.Conv2D(2, 3), jax.nn.relu, mk.Conv2D(1, 3)]),
        "optimizer": mk.optimizers.Adam(0.02),
        "loss": mk.losses.squared_error,
    }
    return Case(ImageFilter, settings(2), parts, pictures(12, 14), pictures(5, 15))


def gan(**others: Any) -> Case:
    """A generator of three numbers."""
    parts = {
        "generator": mk.nets.MLP([6, 3], activation=jnp.tanh, name="generator"),
        "discriminator": mk.nets.MLP([6, 1], activation=jnp.tanh, name="discriminator"),
        "optimizer_g": mk.optimizers.Momentum(0.05, 0.5),
        "optimizer_d": mk.optimizers.SGD(0.1),
    }
    data, eval_data = numbers(40, 3, seed=7) + 1, numbers(15, 3, seed=8) + 1
    return Case(GAN, settings(8, latent_size=2, samples=20, **others), parts, data, eval_data)


def aggregated(**others: Any) -> Case:
    """Gradients of single samples."""
    parts = {"model": mk.Linear(2), "optimizer": mk.optimizers.Momentum(0.02, 0.9), "loss": sample_loss}
    return Case(AggregatedGradients, settings(5, **others), parts, weighted_data(50, 14), weighted_data(23, 15))


def members(count: int, dropout_rate: float | None = None) -> dict[str, Any]:
    """Returns the parts of an ensemble of classifiers."""
    return {
        "models": [mk.nets.MLP([6, 3], dropout_rate=dropout_rate) for _ in range(count)],
        "optimizers": [mk.optimizers.Adam(0.01 * (member + 1)) for member in range(count)],
        "loss": mk.losses.softmax_cross_entropy,
    }


def ensemble() -> Case:
    """Members with bootstrap samples of their own."""
    chosen = settings(8, seeds=[5, 6, 7], split="bootstrap", eval_interval=12)
    return Case(Ensemble, chosen, members(3, 0.4), labelled(44, 1), labelled(23, 2))


def snapshots() -> Case:
    """A classifier kept at the end of each cycle."""
    parts = {
        "model": mk.nets.MLP([6, 3]),
        "optimizer": mk.optimizers.Momentum(0.2, 0.9),
        "loss": mk.losses.softmax_cross_entropy,
    }
    return Case(SnapshotEnsemble, settings(8, snapshots=3, cycle=8), parts, labelled(44, 1), labelled(23, 2))


def serial(shared: bool = True) -> Case:
    """Two phases, on one network or on two."""
    first = mk.nets.MLP([6, 3], name="first")
    parts = {
        "models": [first, first if shared else mk.nets.MLP([6, 3], name="second")],
        "optimizers": [mk.optimizers.Adam(0.02), mk.optimizers.Momentum(0.1, 0.9)],
        "loss": mk.losses.softmax_cross_entropy,
    }
    return Case(SerialSharing, settings(8, lengths=[25, 35], shared=shared), parts, labelled(44, 1), labelled(23, 2))


EXAMPLES: MappingProxyType[type[Scenario], Callable[[], Case]] = MappingProxyType(
    {
        Supervised: supervised,
        TiedAutoencoder: autoencoder,
        DenoisingAutoencoder: denoising,
        VariationalAutoencoder: variational,
        VectorQuantizedAutoencoder: vector_quantized,
        Distillation: distillation,
        ImageFilter: image_filter,
        GAN: gan,
        AggregatedGradients: aggregated,
        Ensemble: ensemble,
        SnapshotEnsemble: snapshots,
        SerialSharing: serial,
    }
)
