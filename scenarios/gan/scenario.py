"""A generator and a discriminator, trained against each other."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import modulekit as mk
from modulekit.data import Arrays
from modulekit.losses import check_labels
from scenarios.base.parts import variables_by_path
from scenarios.base.pictures import grid
from scenarios.base.scenario import Scenario
from scenarios.gan.game import Batch, Game, Penalties, play
from scenarios.gan.losses import LOSSES, Loss
from scenarios.gan.ring import RingOfGaussians
from scenarios.gan.sample_quality import collapse_alarms, in_batches, sample_quality

_COUNTS = {"d_steps": 1, "latent_size": 1, "classes": 1, "r1_interval": 1, "samples": 4, "shown": 1}  # and the lowest
_EVALUATION = (
    2**31 - 1
)  # the branch of the run's random numbers for the latents of evaluations: no update has this number


class Counters(mk.Module):
    """How often each player of a run has moved.

    Attributes:
      generator_updates: an int32 scalar.
      discriminator_updates: an int32 scalar.
    """

    def __init__(self, name: str | None = None) -> None:
        super().__init__(name=name)
        self.generator_updates = mk.Variable(jnp.zeros([], jnp.int32), trainable=False, name="generator_updates")
        self.discriminator_updates = mk.Variable(
            jnp.zeros([], jnp.int32), trainable=False, name="discriminator_updates"
        )


class GAN(Scenario):
    """Trains a generator against a discriminator: `min_g E[loss_g(D(G(z)))]` and `min_d E[loss_d(D(x), D(G(z)))]` in turn.

    `GAN(steps, ...)(generator, discriminator, optimizer_g, optimizer_d, data=examples, eval_data=examples)`. An update is
    `d_steps` moves of the discriminator, each with real examples and latents of its own, and then one of the generator, on
    new latents. While one moves, nothing of the other changes: no weight, no statistic of a normalization. Latents are
    normal, `[batch, latent_size]`. With `classes`, the data is a pair (examples, labels), and both players get labels:
    `generator(z, labels)`, `discriminator(x, labels)`; fake examples have the labels of the real ones they stand beside.
    A player that needs to know whether it trains is called with `is_training`.

    The losses are called with the discriminator's outputs, as those in `scenarios.gan` are. `loss` names a pair of them;
    where the call has `loss_g` or `loss_d`, that one stands in its place.

    Metrics of updates are the losses without penalties, the penalty where there is one, the norms of both gradients, and
    `real_accuracy` and `fake_accuracy`: the shares of outputs above 0 for real and below 0 for fake (0.5 for
    `least_squares`). Outputs of a Wasserstein critic and of a relativistic discriminator mean something only beside each
    other: there the level is the middle between the batch's mean outputs for real and fake. With several discriminator
    updates, their metrics are means.

    Evaluations draw `samples` examples, as many as there is evaluation data at most, and measure their `spread` (the root
    of their variance, summed over all that an example holds) beside the `real_spread` of the data; with `features`, the
    `frechet_distance`, `precision` and `recall` of the two in that space; with `ring`, the modes `modes_covered` and
    `modes_visited`, and the share of points of `high_quality`. A generator whose examples are nearly all alike, or around
    less than half of the modes, raises an alarm. Evaluations and pictures use the same latents each time. With `ema_decay`,
    all of this is there for the averaged generator as well.

    Args:
      steps: the number of generator updates.
      d_steps: discriminator updates before each.
      loss: "non_saturating", "minimax", "least_squares", "hinge", "wasserstein" or "relativistic".
      latent_size: of a latent vector.
      classes: the number of classes of labels; None for data without labels.
      clip: the largest size of a weight of the discriminator, after each of its updates; None for any.
      gradient_penalty: the factor of `scenarios.gan.gradient_penalty` in the discriminator's loss.
      r1: twice the factor of `scenarios.gan.r1_penalty`, the gamma of its paper.
      r1_interval: discriminator updates between two with that penalty, which then counts `r1_interval` times.
      features: from examples to features `[examples, features]`, such as a trained classifier without its last layer.
      feature_name: what they are, for reports; to be given with `features`.
      samples: examples per evaluation.
      ring: the ring of Gaussians that the data is from, if it is.
      shown: examples in a picture.
      **settings: see `scenarios.Settings`.

    Raises:
      ValueError: a setting is out of range, or needs another one.

    Source: Goodfellow et al., Generative adversarial nets, 2014, algorithm 1; for `r1_interval`, Karras et al., Analyzing
    and improving the image quality of StyleGAN, 2020, appendix B, where the penalty has updates of its own.

    >>> import modulekit as mk
    >>> ring = RingOfGaussians(modes=4, std=0.1)
    >>> train = GAN(20, d_steps=2, loss="hinge", latent_size=2, ring=ring, batch_size=8, progress=False)
    >>> result = train(
    ...     mk.Linear(2), mk.nets.MLP([8, 1]), mk.optimizers.Adam(0.01), mk.optimizers.Adam(0.01), data=ring.sample(100))
    >>> int(result.state["counters"].discriminator_updates), sorted(result.metrics)
    (40, ['high_quality', 'modes_covered', 'modes_visited', 'samples', 'spread'])
    """

    def __init__(
        self,
        steps: int,
        d_steps: int = 1,
        loss: str = "non_saturating",
        latent_size: int = 64,
        classes: int | None = None,
        clip: float | None = None,
        gradient_penalty: float = 0.0,
        r1: float = 0.0,
        r1_interval: int = 16,
        features: Any = None,
        feature_name: str | None = None,
        samples: int = 2000,
        ring: RingOfGaussians | None = None,
        shown: int = 64,
        **settings: Any,
    ) -> None:
        super().__init__(steps, **settings)
        self.d_steps = self.batches_per_update = d_steps
        self.loss = loss
        self.latent_size = latent_size
        self.classes = classes
        self.clip = clip
        self.gradient_penalty = gradient_penalty
        self.r1 = r1
        self.r1_interval = r1_interval
        self.features = features
        self.feature_name = feature_name
        self.samples = samples
        self.ring = ring
        self.shown = shown
        self._check_settings()

    def state(self) -> Mapping[str, mk.Module]:
        """Returns the counters of a run."""
        return {"counters": Counters()}

    def update(
        self,
        batch: Any,
        *,
        generator: Any,
        discriminator: Any,
        optimizer_g: mk.Optimizer,
        optimizer_d: mk.Optimizer,
        counters: Counters,
        loss_g: Loss | None = None,
        loss_d: Loss | None = None,
    ) -> Mapping[str, Any]:
        """Moves the discriminator `d_steps` times and the generator once; returns the metrics of these moves."""
        named = LOSSES[self.loss]
        losses = named._replace(loss_g=loss_g or named.loss_g, loss_d=loss_d or named.loss_d)
        game = Game(generator, discriminator, losses, self.latent_size)
        penalties = Penalties(self.gradient_penalty, self.r1, self.r1_interval)
        batches = self._batches(batch)
        moves = []
        for index, examples in enumerate(batches):
            before = self.step * self.d_steps + index
            moves.append(game.move_discriminator(examples, optimizer_d, before, penalties, self.clip))
            counters.discriminator_updates.assign_add(1)
        last = game.move_generator(batches[-1], optimizer_g)
        counters.generator_updates.assign_add(1)
        means = {name: sum(move[name] for move in moves) / len(moves) for name in moves[0]}
        return {"loss_g": last["loss_g"], **means, "grad_norm_g": last["grad_norm_g"]}

    def measure(self, eval_data: Arrays | None, *, generator: Any, **parts: Any) -> Mapping[str, Any]:
        """Returns what examples of the generator are worth, by name."""
        if eval_data is None:
            real, count = None, self.samples
            labels = self._evenly(count)
        else:
            count = min(self.samples, eval_data.size)
            evenly = np.arange(count) * eval_data.size // count
            real, *labels = self._examples(eval_data.take(evenly), "eval_data")
        fake = self._generated(generator, count, labels)
        return sample_quality(fake, real, self.features, self.ring, self.settings.eval_batch_size)

    def pictures(self, eval_data: Arrays | None, *, generator: Any, **parts: Any) -> Mapping[str, Any]:
        """Returns a grid of examples of the same latents each time, for each class a column; none if they are no images."""
        images = self._generated(generator, self.shown, self._evenly(self.shown))
        is_image = images.ndim == 3 or (images.ndim == 4 and images.shape[-1] in (1, 3))
        return {"samples": grid(images, self.classes)} if is_image else {}

    def alarms(self, metrics: Mapping[str, float]) -> list[str]:
        """Returns a sentence for each generator that has collapsed."""
        return collapse_alarms(metrics, self.ring)

    def check(
        self, data: Arrays | None, eval_data: Arrays | None, *, generator: Any, discriminator: Any, **parts: Any
    ) -> None:
        """Raises `ValueError` where a label is none of the classes, or the players share a variable."""
        for which, examples in (("data", data), ("eval_data", eval_data)):
            if examples is None:
                continue
            for labels in self._examples(examples.arrays, which)[1:]:
                try:
                    check_labels(labels, self.classes or 0)
                except ValueError as error:
                    raise ValueError(f"{which}[1]: {error}") from None
        ours = set(variables_by_path({"generator": generator}).values())
        shared = [path for path, v in variables_by_path({"discriminator": discriminator}).items() if v in ours]
        if shared:
            raise ValueError(
                f"the generator shares {', '.join(shared)}: while one player moves, nothing of the other may change, so "
                "give each variables of its own"
            )

    def _batches(self, batch: Any) -> list[Batch]:
        """Returns the batch of each move of the discriminator."""
        if self.d_steps == 1:
            return [self._examples(batch, "data")]
        moves = [jax.tree.map(lambda array, move=move: array[move], batch) for move in range(self.d_steps)]
        return [self._examples(examples, "data") for examples in moves]

    def _examples(self, arrays: Any, which: str) -> Batch:
        """Returns `(examples,)`, or with classes `(examples, labels)`; raises `ValueError` if the data is not that."""
        is_pair = isinstance(arrays, tuple | list) and len(arrays) == 2
        if self.classes is not None and is_pair:
            return tuple(arrays)
        if self.classes is None and not isinstance(arrays, tuple | list | dict):
            return (arrays,)
        found = (
            f"a {type(arrays).__name__} of {len(arrays)}" if isinstance(arrays, tuple | list | dict) else "one array"
        )
        if self.classes is None:
            raise ValueError(f"{which} must be one array of examples, not {found}: labels need the setting `classes`")
        raise ValueError(f"{which} must be a pair (examples, labels), as classes={self.classes} says, not {found}")

    def _evenly(self, count: int) -> list[Any]:
        """Returns labels that go through the classes in turn; none without classes."""
        return [] if self.classes is None else [np.arange(count, dtype=np.int32) % self.classes]

    def _generated(self, generator: Any, count: int, labels: Sequence[Any]) -> Any:
        """Returns examples from the same latents each time, so that evaluations and pictures differ by the weights alone."""
        key = jax.random.fold_in(jax.random.key(self.settings.seed), _EVALUATION)
        latents = jax.random.normal(key, (count, self.latent_size))
        inputs = (latents, *labels)
        return in_batches(lambda *part: play(generator, part, False), inputs, self.settings.eval_batch_size)

    def _check_settings(self) -> None:
        if self.loss not in LOSSES:
            raise ValueError(f"loss={self.loss!r} is none of {', '.join(map(repr, LOSSES))}")
        for name, lowest in _COUNTS.items():
            value = getattr(self, name)
            if value is None and name == "classes":
                continue
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(
                    f"{name}={value!r} is a {type(value).__name__}: expected an integer of at least {lowest}"
                )
            if value < lowest:
                raise ValueError(f"{name}={value} is below {lowest}")
        for name in ("gradient_penalty", "r1"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(
                    f"{name}={getattr(self, name)} is no factor of a penalty: expected a number of at least 0"
                )
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip={self.clip} would leave no weight: expected a number above 0, or None")
        if (self.features is None) != (self.feature_name is None):
            raise ValueError("features and feature_name belong together: a distance says nothing without its space")
