"""What the settings of a GAN do: losses, penalties, labels, pictures."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.image import imread
from references import normal
from scenario_catalogue import ROW, Case

import modulekit as mk
import scenarios
from modulekit.data import batch_indices
from scenarios.base.moment import at
from scenarios.base.pictures import grid
from scenarios.gan import LOSSES

PLAIN, SEVERAL = ROW["gan"], ROW["wasserstein_gan"]


def test_clipping_bounds_the_weights_of_the_discriminator_alone() -> None:
    _, state = SEVERAL.start(clip=0.2, steps=20)
    largest = {path: np.abs(value).max() for path, value in state.items() if path.endswith((".w", ".b"))}
    assert max(v for path, v in largest.items() if path.startswith("discriminator.")) == np.float32(0.2)
    assert max(v for path, v in largest.items() if path.startswith("generator.")) > 0.2


def test_lazy_r1_comes_every_interval_of_discriminator_updates_and_counts_as_many_times() -> None:
    rows = PLAIN.start(steps=6, log_interval=1, r1=0.5, r1_interval=3, d_steps=2)[0].history
    penalties = [row["penalty"] for row in rows if "penalty" in row]
    assert [penalty > 0 for penalty in penalties] == [True, True, False] * 2
    each = PLAIN.start(steps=1, log_interval=1, r1=0.5, r1_interval=1, d_steps=1)[0].history[0]["penalty"]
    first = PLAIN.start(steps=1, log_interval=1, r1=0.5, r1_interval=9, d_steps=1)[0].history[0]["penalty"]
    np.testing.assert_allclose(first, 9 * each, rtol=1e-6)


def first_row(loss: str, **parts: Any) -> dict[str, Any]:
    case = PLAIN.fresh()
    return case.replace(parts={**case.parts, **parts}).run(steps=1, log_interval=1, loss=loss).history[0]


def test_given_losses_stand_in_the_place_of_the_named_ones() -> None:
    def scaled(fake_logits: Any, real_logits: Any) -> Any:
        return 3 * LOSSES["relativistic"].loss_g(fake_logits, real_logits)

    named, given = first_row("relativistic"), first_row("relativistic", loss_g=scaled)
    np.testing.assert_allclose(given["loss_g"], 3 * named["loss_g"], rtol=1e-6)
    assert given["loss_d"] == named["loss_d"]
    both = first_row("non_saturating", loss_g=LOSSES["relativistic"].loss_g, loss_d=LOSSES["relativistic"].loss_d)
    assert {name: both[name] for name in ("loss_g", "loss_d")} == {name: named[name] for name in ("loss_g", "loss_d")}
    names = {"loss_g", "loss_d", "real_accuracy", "fake_accuracy", "grad_norm_g", "grad_norm_d"}
    assert {name for name in both if not name.startswith("eval_")} == names | {"step"}


def test_gradient_norms_are_those_of_the_step_taken() -> None:
    case = PLAIN.fresh()
    optimizers = {"optimizer_g": mk.optimizers.SGD(0.5), "optimizer_d": mk.optimizers.SGD(0.25)}
    case = case.replace(parts={**case.parts, **optimizers})
    case.run(steps=0)
    before = case.state()
    row, after = case.run(steps=1, log_interval=1).history[0], case.state()
    for player, rate in (("generator", 0.5), ("discriminator", 0.25)):
        moves = [after[path] - before[path] for path in after if path.startswith(player)]
        length = np.sqrt(sum(np.square(move).sum() for move in moves)) / rate
        np.testing.assert_allclose(row[f"grad_norm_{player[0]}"], length, rtol=1e-4)


# Labels.


class Recorder(mk.Module):
    """Notes the labels that it was called with last, while it trains."""

    def __init__(self, output_size: int) -> None:
        super().__init__()
        self.linear = mk.Linear(output_size)
        self.labels = mk.Variable(jnp.zeros([4], jnp.int32), trainable=False, name="labels")

    def __call__(self, x: Any, labels: Any, is_training: bool) -> Any:
        if is_training:
            self.labels.assign(labels)
        return self.linear(x) + labels[:, None]


def test_fake_examples_have_the_labels_of_the_real_ones() -> None:
    players = {"generator": Recorder(3), "discriminator": Recorder(1)}
    optimizers = {"optimizer_g": mk.optimizers.SGD(0.1), "optimizer_d": mk.optimizers.SGD(0.1)}
    labels = np.arange(12, dtype=np.int32) % 5
    case = Case(
        scenarios.GAN, {"steps": 1, "batch_size": 4, "classes": 5, "progress": False}, {**players, **optimizers},
        (normal(12, 3), labels),
    )  # fmt: skip
    case.run()
    taken = labels[batch_indices(12, 4, 0, 0, 1)[0]]
    for player in players.values():
        np.testing.assert_array_equal(player.labels.numpy(), taken)


# Pictures.


class Painter(mk.Module):
    """Latents as gray images of 2 by 3, with a column of the label."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = mk.Linear(6)

    def __call__(self, z: Any, labels: Any) -> Any:
        images = jax.nn.sigmoid(self.linear(z)).reshape(-1, 2, 3)
        return images.at[:, :, 0].set(labels[:, None] / 4)


class Judge(mk.Module):
    """Looks at an image and a label."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = mk.Linear(1)

    def __call__(self, x: Any, labels: Any) -> Any:
        return self.linear(x.reshape(len(x), -1)) + labels[:, None]


def painting(**settings: Any) -> Case:
    data = np.random.default_rng(0).random([20, 2, 3]).astype(np.float32), np.arange(20, dtype=np.int32) % 5
    parts = {
        "generator": Painter(), "discriminator": Judge(),
        "optimizer_g": mk.optimizers.SGD(0.1), "optimizer_d": mk.optimizers.SGD(0.1),
    }  # fmt: skip
    common = {
        "steps": 4,
        "batch_size": 4,
        "classes": 5,
        "latent_size": 3,
        "shown": 10,
        "samples": 12,
        "progress": False,
    }
    return Case(scenarios.GAN, {**common, **settings}, parts, data, data)


def test_pictures_show_the_same_latents_with_a_column_for_each_class(tmp_path: Path) -> None:
    case = painting(eval_interval=2, save_dir=tmp_path, ema_decay=0.5)
    case.run()
    files = sorted(file.name for file in (tmp_path / "pictures").iterdir())
    assert files == [f"{name}_{step:08d}.png" for name in ("ema_samples", "samples") for step in (2, 4)]
    shown = imread(tmp_path / "pictures" / "samples_00000004.png")[..., 0]
    assert shown.shape == (5, 19)
    for place in range(10):
        corner = shown[place // 5 * 3, place % 5 * 4]
        assert abs(corner - place % 5 / 4) < 0.003


def test_pictures_are_a_function_of_the_weights_and_the_seed_alone() -> None:
    case = painting()
    case.run(steps=2)

    def drawn(step: int, **settings: Any) -> Any:
        with at(step):
            return (
                painting(**settings).scenario(**{**case.settings, **settings}).pictures(None, **case.parts)["samples"]
            )

    np.testing.assert_array_equal(drawn(0), drawn(2))
    assert (drawn(0) != drawn(0, seed=1)).any()
    assert grid(np.zeros([10, 2, 3]), 5).shape == drawn(0).shape


def test_examples_that_are_no_images_are_not_drawn(tmp_path: Path) -> None:
    PLAIN.start(steps=2, save_dir=tmp_path)
    assert not (tmp_path / "pictures").exists()
