"""The catalogue of scenarios: one table, and a new row enrols a scenario in every law of training.

A row makes fresh parts and data. `start` runs it with any settings, and returns the result with all that was trained.
"""

import dataclasses
import functools
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import modulekit as mk
import scenarios
from modulekit.core.randomness import default_stream
from modulekit.data import Arrays
from scenarios.base.batches import chosen
from scenarios.base.moment import at
from scenarios.base.parts import made_state
from scenarios.testing import Case

SEED = 11
STEPS = 60
State = dict[str, np.ndarray]


class Duel(scenarios.Scenario):
    """A third party's scenario: a critic and a generator, each with its optimizer, stepped in turn."""

    def update(
        self, batch: Any, *, generator: Any, critic: Any, generator_optimizer: Any, critic_optimizer: Any
    ) -> Mapping[str, Any]:
        noise = jax.random.normal(mk.next_key(), (batch.shape[0], 2))

        def critic_loss() -> Any:
            return jnp.mean(jax.nn.softplus(-critic(batch)) + jax.nn.softplus(critic(generator(noise))))

        def generator_loss() -> Any:
            return jnp.mean(jax.nn.softplus(-critic(generator(noise))))

        return {
            "critic": critic_optimizer.minimize(critic_loss, critic),
            "generator": generator_optimizer.minimize(generator_loss, generator),
        }

    def evaluate(self, batch: Any, *, critic: Any, **parts: Any) -> Mapping[str, Any]:
        return {"score": critic(batch)[:, 0]}


class Tally(mk.Module):
    """Nothing to train: a counter and a moving mean."""

    def __init__(self) -> None:
        super().__init__()
        self.count = mk.Variable(jnp.zeros([], jnp.int32), trainable=False, name="count")
        self.mean = mk.Variable(jnp.zeros([3]), trainable=False, name="mean")


class Counting(scenarios.Scenario):
    """A third party's scenario with nothing but `update`."""

    def update(self, batch: Any, *, tally: Tally) -> Mapping[str, Any]:
        tally.count.assign_add(1)
        tally.mean.assign(0.9 * tally.mean + 0.1 * batch.mean(axis=0))
        return {"distance": jnp.square(tally.mean.value).sum(), "count": tally.count.value}


class Weighted(scenarios.Scenario):
    """A third party's scenario on a dict of arrays."""

    def update(self, batch: Any, *, model: Any, optimizer: Any) -> Mapping[str, Any]:
        return {"loss": optimizer.minimize(lambda: self._losses(model, batch).mean(), model)}

    def evaluate(self, batch: Any, *, model: Any, optimizer: Any) -> Mapping[str, Any]:
        return {"loss": self._losses(model, batch)}

    def _losses(self, model: Any, batch: Any) -> Any:
        return batch["weight"] * mk.losses.squared_error(model(batch["x"]), batch["y"])


class Counters(mk.Module):
    """What a run counts."""

    def __init__(self) -> None:
        super().__init__()
        self.updates = mk.Variable(jnp.zeros([], jnp.int32), trainable=False, name="updates")


class Looking(scenarios.Scenario):
    """A third party's scenario with every method that there is: two batches an update, a phase, a state of its own."""

    batches_per_update = 2

    def state(self) -> Mapping[str, mk.Module]:
        return {"counters": Counters()}

    def update(self, batch: Any, *, model: Any, optimizer: Any, counters: Counters) -> Mapping[str, Any]:
        counters.updates.assign_add(1)
        noise = 0.1 * jax.random.normal(mk.next_key(), batch.shape)
        weight = jnp.where(self.step < STEPS // 2, 1.0, 0.5)
        loss = optimizer.minimize(lambda: weight * jnp.square(model(batch + noise) - batch).mean(), model)
        return {"loss": loss, "before": self.step, "updates": counters.updates.value}

    def evaluate(self, batch: Any, *, model: Any, **parts: Any) -> Mapping[str, Any]:
        noise = 0.1 * jax.random.normal(mk.next_key(), batch.shape)
        return {"loss": jnp.square(model(batch + noise) - batch).mean(axis=1)}

    def measure(self, eval_data: Any, *, model: Any, counters: Counters, **parts: Any) -> Mapping[str, Any]:
        draw = jax.random.uniform(mk.next_key())
        return {"size": jnp.abs(model.w.value).max(), "counted": int(counters.updates), "draw": draw, "at": self.step}

    def pictures(self, eval_data: Any, *, model: Any, **parts: Any) -> Mapping[str, Any]:
        return {"weights": jnp.abs(model.w.value)}

    def alarms(self, metrics: Mapping[str, float]) -> list[str]:
        return [f"counted {metrics['counted']:g}"] if metrics["counted"] >= STEPS else []


@dataclasses.dataclass(frozen=True)
class ScenarioRow:
    """One scenario of the catalogue.

    Attributes:
      name: of the row.
      make: returns a fresh case.
    """

    name: str
    make: Callable[[], Case]

    def fresh(self, seed: int = SEED) -> Case:
        """Returns a fresh case, with all randomness started anew."""
        mk.seed(seed)
        return self.make()

    def start(self, hooks: Any = (), seed: int = SEED, **settings: Any) -> tuple[scenarios.Result, State]:
        """Runs a fresh case; returns the result and all that was trained."""
        case = self.fresh(seed)
        result = case.run(hooks, **settings)
        return result, case.state()


def _numbers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _settings(batch_size: int, **others: Any) -> dict[str, Any]:
    return {
        "steps": STEPS, "batch_size": batch_size, "seed": 3, "log_interval": 7, "steps_per_call": 7, "progress": False,
        **others,
    }  # fmt: skip


def _labelled(size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    inputs = _numbers(size, 5, seed=seed)
    return inputs, inputs[:, :3].argmax(axis=1).astype(np.int32)


def _classification() -> Case:
    parts = {
        "model": mk.nets.MLP([6, 3], dropout_rate=0.4),
        "optimizer": mk.optimizers.Momentum(0.1, 0.9),
        "loss": mk.losses.softmax_cross_entropy,
    }
    return Case(scenarios.Supervised, _settings(8), parts, _labelled(44, 1), _labelled(23, 2))


def linear_data(size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns inputs `[size, 4]` and noisy linear targets `[size, 2]`."""
    inputs = _numbers(size, 4, seed=seed)
    return inputs, inputs @ _numbers(4, 2, seed=9) + 0.1 * _numbers(size, 2, seed=seed + 1)


def _regression() -> Case:
    parts = {
        "model": mk.Linear(2),
        "optimizer": mk.optimizers.Adam(0.05),
        "loss": mk.losses.squared_error,
    }
    return Case(scenarios.Supervised, _settings(10), parts, linear_data(200, 3), linear_data(31, 4))


def _halved(count: Any) -> Any:
    return 0.05 * 0.5 ** (count // 4)


def _wrapped() -> Case:
    scheduled = mk.optimizers.Scheduled(mk.optimizers.Adam(), learning_rate=_halved)
    optimizer = mk.optimizers.Accumulated(mk.optimizers.Clipped(scheduled, max_norm=1.0), every=3)
    parts = {"model": mk.Linear(2), "optimizer": optimizer, "loss": mk.losses.squared_error}
    return Case(scenarios.Supervised, _settings(10), parts, linear_data(200, 3), linear_data(31, 4))


def _unit(size: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random([size, 6]).astype(np.float32)


def _autoencoder(tied: bool) -> Case:
    encoder = mk.Linear(3, name="encoder")
    parts = {
        "encoder": encoder,
        "decoder": encoder.transpose() if tied else mk.Linear(6, name="decoder"),
        "optimizer": mk.optimizers.Momentum(0.5, 0.9),
        "loss": mk.losses.sigmoid_cross_entropy,
    }
    return Case(scenarios.TiedAutoencoder, _settings(9, tied=tied), parts, _unit(50, 5), _unit(17, 6))


def _denoising() -> Case:
    parts = {
        "encoder": mk.Linear(3, name="encoder"),
        "decoder": mk.Linear(6, name="decoder"),
        "optimizer": mk.optimizers.Momentum(0.5, 0.9),
        "loss": mk.losses.sigmoid_cross_entropy,
    }
    settings = _settings(9, corruption="masking", amount=0.25, image_shape=(2, 3))
    return Case(scenarios.DenoisingAutoencoder, settings, parts, _unit(50, 5), _unit(17, 6))


def _variational() -> Case:
    parts = {
        "encoder": mk.nets.MLP([5, 4], name="encoder"),
        "decoder": mk.nets.MLP([5, 6], name="decoder"),
        "optimizer": mk.optimizers.Adam(0.01),
        "loss": mk.losses.sigmoid_cross_entropy,
    }
    settings = _settings(9, beta=0.5, warm_up=20, importance_samples=3, image_shape=(3, 2))
    return Case(scenarios.VariationalAutoencoder, settings, parts, _unit(50, 5), _unit(17, 6))


def _vector_quantized() -> Case:
    parts = {
        "encoder": mk.Linear(3, name="encoder"),
        "quantizer": mk.nets.VectorQuantizerEMA(3, 4, commitment_cost=0.25, decay=0.9),
        "decoder": mk.Linear(6, name="decoder"),
        "optimizer": mk.optimizers.Adam(0.02),
        "loss": mk.losses.squared_error,
    }
    return Case(scenarios.VectorQuantizedAutoencoder, _settings(9), parts, _unit(50, 5), _unit(17, 6))


def _distillation() -> Case:
    parts = {
        "student": mk.nets.MLP([3, 3], dropout_rate=0.2, name="student"),
        "teachers": mk.nets.MLP([6, 3], dropout_rate=0.4, name="teacher"),
        "optimizer": mk.optimizers.Adam(0.02),
    }
    return Case(scenarios.Distillation, _settings(8, hard_weight=0.3), parts, _labelled(44, 1), _labelled(23, 2))


def _image_filter() -> Case:
    def pictures(size: int, seed: int) -> Any:
        shapes = (size, 4, 5, 1), (size, 3, 6, 1)
        return tuple((images := _numbers(*shape, seed=seed), np.abs(images)) for shape in shapes)

    parts = {
        "filter": mk.Sequential([mk.Conv2D(2, 3), jax.nn.relu, mk.Conv2D(1, 3)]),
        "optimizer": mk.optimizers.Adam(0.02),
        "loss": mk.losses.squared_error,
    }
    return Case(scenarios.ImageFilter, _settings(2), parts, pictures(12, 14), pictures(5, 15))


def _duel() -> Case:
    parts = {
        "generator": mk.Linear(3, name="generator"),
        "critic": mk.Linear(1, name="critic"),
        "generator_optimizer": mk.optimizers.Momentum(0.1, 0.5),
        "critic_optimizer": mk.optimizers.SGD(0.2),
    }
    return Case(Duel, _settings(8), parts, _numbers(40, 3, seed=7) + 1, _numbers(15, 3, seed=8))


def _counting() -> Case:
    return Case(Counting, _settings(6), {"tally": Tally()}, _numbers(40, 3, seed=10))


def _uneven() -> Case:
    def data(size: int, seed: int) -> Any:
        inputs, targets = linear_data(size, seed)
        return {"x": inputs, "y": targets, "weight": np.random.default_rng(seed).random(size)}

    parts = {"model": mk.Linear(2), "optimizer": mk.optimizers.SGD(0.05)}
    return Case(Weighted, _settings(10), parts, data(37, 12), data(29, 13))


def _looking() -> Case:
    parts = {"model": mk.Linear(3), "optimizer": mk.optimizers.Adam(0.02)}
    return Case(Looking, _settings(5), parts, _numbers(40, 3, seed=7), _numbers(15, 3, seed=8))


class LabelledPlayer(mk.Module):
    """A player that is told labels; a generator also whether it trains, and it keeps statistics of batches."""

    def __init__(self, output_size: int, is_generator: bool, name: str | None = None) -> None:
        super().__init__(name=name)
        self.embed = mk.Embed(vocab_size=3, embed_dim=2)
        self.hidden = mk.Linear(6)
        self.norm = mk.BatchNorm(create_scale=True, create_offset=True, decay_rate=0.9) if is_generator else None
        self.out = mk.Linear(output_size)
        self.needs_is_training = is_generator

    def __call__(self, x: Any, labels: Any, is_training: bool | None = None) -> Any:
        h = self.hidden(jnp.concatenate([x, self.embed(labels)], axis=1))
        return self.out(jnp.tanh(h if self.norm is None else self.norm(h, is_training=is_training)))


def _gan(**settings: Any) -> Case:
    parts = {
        "generator": mk.nets.MLP([6, 3], activation=jnp.tanh, name="generator"),
        "discriminator": mk.nets.MLP([6, 1], activation=jnp.tanh, name="discriminator"),
        "optimizer_g": mk.optimizers.Momentum(0.05, 0.5),
        "optimizer_d": mk.optimizers.SGD(0.1),
    }
    data, eval_data = _numbers(40, 3, seed=7) + 1, _numbers(15, 3, seed=8) + 1
    return Case(scenarios.GAN, _settings(8, latent_size=2, samples=20, **settings), parts, data, eval_data)


def _conditional_gan() -> Case:
    def data(size: int, seed: int) -> Any:
        examples, labels = _labelled(size, seed)
        return examples[:, :3], labels

    case = _gan(classes=3, loss="hinge", r1=0.1, r1_interval=4)
    players = {
        "generator": LabelledPlayer(3, True, "generator"), "discriminator": LabelledPlayer(1, False, "discriminator"),
    }  # fmt: skip
    return case.replace(parts={**case.parts, **players}, data=data(44, 1), eval_data=data(23, 2))


def sample_loss(model: Any, sample: Any) -> Any:
    """Returns the squared error of one sample of `aggregated_data`."""
    return mk.losses.squared_error(model(sample["x"][None]), sample["y"][None])[0]


def aggregated_data(size: int, seed: int) -> dict[str, np.ndarray]:
    """Returns samples of a linear function, with weights."""
    inputs, targets = linear_data(size, seed)
    return {"x": inputs, "y": targets, "count": np.random.default_rng(seed).integers(1, 9, size=size)}


def _aggregated(**settings: Any) -> Case:
    parts = {"model": mk.Linear(2), "optimizer": mk.optimizers.Momentum(0.02, 0.9), "loss": sample_loss}
    data = aggregated_data(50, 14), aggregated_data(23, 15)
    return Case(scenarios.AggregatedGradients, _settings(5, **settings), parts, *data)


def _members(count: int, dropout_rate: float | None = None) -> dict[str, Any]:
    return {
        "models": [mk.nets.MLP([6, 3], dropout_rate=dropout_rate) for _ in range(count)],
        "optimizers": [mk.optimizers.Adam(0.01 * (member + 1)) for member in range(count)],
        "loss": mk.losses.softmax_cross_entropy,
    }


def _bootstrapped() -> Case:
    settings = _settings(8, seeds=[5, 6, 7], split="bootstrap", eval_interval=12)
    return Case(scenarios.Ensemble, settings, _members(3, 0.4), _labelled(44, 1), _labelled(23, 2))


def _stopping() -> Case:
    settings = _settings(8, seeds=[5, 6], split="shuffled", patience=1, eval_interval=15)
    parts = {**_members(2), "optimizers": [mk.optimizers.Momentum(rate, 0.9) for rate in (0.02, 0.5)]}
    return Case(scenarios.Ensemble, settings, parts, _labelled(44, 1), _labelled(23, 2))


def squares(model: Any) -> Any:
    """Returns the penalty of a model."""
    return mk.regularizers.L2(0.01)(model.trainable_variables)


def _mixed() -> Case:
    models = [mk.nets.MLP([4, 2], activation=jnp.tanh), mk.Linear(2), mk.Linear(2)]
    optimizers = [mk.optimizers.Adam(0.01), mk.optimizers.SGD(0.05), mk.optimizers.SGD(0.02)]
    parts = {"models": models, "optimizers": optimizers, "loss": mk.losses.squared_error, "penalty": squares}
    return Case(scenarios.Ensemble, _settings(10, reduction="sum"), parts, linear_data(60, 3), linear_data(31, 4))


def _snapshots() -> Case:
    parts = {
        "model": mk.nets.MLP([6, 3]),
        "optimizer": mk.optimizers.Momentum(0.2, 0.9),
        "loss": mk.losses.softmax_cross_entropy,
    }
    settings = _settings(8, snapshots=3, cycle=8)
    return Case(scenarios.SnapshotEnsemble, settings, parts, _labelled(44, 1), _labelled(23, 2))


def _serial(shared: bool) -> Case:
    first = mk.nets.MLP([6, 3], name="first")
    parts = {
        "models": [first, first if shared else mk.nets.MLP([6, 3], name="second")],
        "optimizers": [mk.optimizers.Adam(0.02), mk.optimizers.Momentum(0.1, 0.9)],
        "loss": mk.losses.softmax_cross_entropy,
    }
    settings = _settings(8, lengths=[25, 35], shared=shared)
    return Case(scenarios.SerialSharing, settings, parts, _labelled(44, 1), _labelled(23, 2))


ROWS = [  # the engine's laws are tried on these: between them they use all of it
    ScenarioRow("classification_with_dropout", _classification),
    ScenarioRow("regression", _regression),
    ScenarioRow("wrapped_optimizers", _wrapped),
    ScenarioRow("tied_autoencoder", functools.partial(_autoencoder, True)),
    ScenarioRow("untied_autoencoder", functools.partial(_autoencoder, False)),
    ScenarioRow("two_optimizers", _duel),
    ScenarioRow("only_update", _counting),
    ScenarioRow("uneven_sizes", _uneven),
    ScenarioRow("all_methods", _looking),
]
FURTHER = [  # these pass the conformance kit, as the ones above do
    ScenarioRow("denoising_autoencoder", _denoising),
    ScenarioRow("variational_autoencoder", _variational),
    ScenarioRow("vector_quantized_autoencoder", _vector_quantized),
    ScenarioRow("distillation", _distillation),
    ScenarioRow("image_filter", _image_filter),
    ScenarioRow("gan", _gan),
    ScenarioRow(
        "wasserstein_gan", functools.partial(_gan, d_steps=2, loss="wasserstein", gradient_penalty=1.0, clip=0.5)
    ),
    ScenarioRow("conditional_gan", _conditional_gan),
    ScenarioRow("aggregated_mean", _aggregated),
    ScenarioRow(
        "aggregated_trimmed_with_weights",
        functools.partial(_aggregated, aggregate="trimmed", share=0.2, weight="count"),
    ),
    ScenarioRow("ensemble_of_bootstrap_samples", _bootstrapped),
    ScenarioRow("ensemble_that_stops_early", _stopping),
    ScenarioRow("mixed_ensemble", _mixed),
    ScenarioRow("snapshot_ensemble", _snapshots),
    ScenarioRow("serial_sharing", functools.partial(_serial, True)),
    ScenarioRow("serial_without_sharing", functools.partial(_serial, False)),
]
ROW = {row.name: row for row in [*ROWS, *FURTHER]}
EVALUATED = [row for row in ROWS if row.name != "only_update"]


def name_of(row: ScenarioRow) -> str:
    """Returns a row's name, as a test's identifier."""
    return row.name


@functools.cache
def uninterrupted(row: ScenarioRow) -> tuple[scenarios.Result, State]:
    """Returns the outcome of the row's own settings, saved nowhere, computed once."""
    return row.start()


def eagerly(case: Case, steps: int) -> list[dict[str, float]]:
    """Trains a case as anyone would without this library's loop: batch by batch. Returns the metrics of each update."""
    data, scenario = Arrays(case.data), case.scenario(**case.settings)
    seed, parts = case.settings["seed"], {**case.parts, **made_state(scenario)}
    rows = []
    for step in range(steps):
        default_stream().restart(jax.random.fold_in(jax.random.key(seed), step))
        batch = data.take(chosen(scenario, scenario.settings, data.size, step, 1)[0])
        with at(step):
            metrics = scenario.update(batch, **parts)
        rows.append({name: float(value) for name, value in metrics.items()})
    return rows


def assert_bitwise(actual: State, expected: State) -> None:
    """Asserts that two states have the same paths and the same bits."""
    assert actual.keys() == expected.keys()
    for path, value in expected.items():
        assert actual[path].dtype == value.dtype, path
        assert actual[path].shape == value.shape, path
        assert actual[path].tobytes() == value.tobytes(), path


def exactly(text: str) -> str:
    """Returns a pattern of a whole message, but for the note that JAX adds to what has passed through it."""
    return rf"^{re.escape(text)}(\n-+\nFor simplicity, JAX .*)?$"


def log_lines(directory: Path) -> list[dict[str, Any]]:
    """Returns the events of a run's log; each of its lines must be strict JSON."""

    def refuse(constant: str) -> Any:
        raise AssertionError(f"{constant} is no JSON")

    lines = (directory / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]
