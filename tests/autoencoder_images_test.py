"""What autoencoders share: the meaning of a loss, pictures and decibels, and random numbers of single examples."""

import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.image import imread
from scenario_catalogue import exactly

import modulekit as mk
import scenarios
from scenarios.autoencoders.draws import example_keys, normal_for
from scenarios.autoencoders.images import psnr, quality, shape_of_images
from scenarios.autoencoders.likelihood import mean_of, negative_log_likelihood

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.random([12, 4, 3, 1]).astype(np.float32)
FLAT = IMAGES.reshape(12, 12)


class Halved(mk.Module):
    """Reproduces half of an image: nothing to train but a number that is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.w = mk.Variable(0.5, name="w")

    def __call__(self, x: Any) -> Any:
        return self.w * x


def tied(image_shape: Any = None, **settings: Any) -> scenarios.TiedAutoencoder:
    return scenarios.TiedAutoencoder(0, False, image_shape, progress=False, batch_size=12, **settings)


def halve(data: Any, **settings: Any) -> scenarios.Result:
    parts = (mk.Identity(), Halved(), mk.optimizers.SGD(0.1), mk.losses.squared_error)
    return tied(**settings)(*parts, data=data, eval_data=data)


# What a loss means.


def test_a_sigmoid_cross_entropy_stands_for_bernoulli_variables() -> None:
    logits, x = RANDOM.normal(size=[5, 2, 3]), RANDOM.integers(0, 2, [5, 2, 3]).astype(np.float64)
    p = 1 / (1 + np.exp(-logits))
    expected = -np.log(np.where(x == 1, p, 1 - p)).reshape(5, 6).sum(axis=1)
    found = negative_log_likelihood(logits, x, mk.losses.sigmoid_cross_entropy)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_allclose(mean_of(logits, mk.losses.sigmoid_cross_entropy), p, rtol=1e-6)


@pytest.mark.parametrize("scale", [0.1, 1.0, 3.0])
def test_a_squared_error_stands_for_normal_variables(scale: float) -> None:
    outputs, x = RANDOM.normal(size=[5, 2, 3]), RANDOM.normal(size=[5, 2, 3])
    density = np.exp(-(((x - outputs) / scale) ** 2) / 2) / (scale * math.sqrt(2 * math.pi))
    found = negative_log_likelihood(outputs, x, mk.losses.squared_error, scale)
    np.testing.assert_allclose(found, -np.log(density).reshape(5, 6).sum(axis=1), rtol=2e-6)
    assert mean_of(outputs, mk.losses.squared_error) is outputs


def test_any_other_loss_is_the_negative_log_likelihood_itself() -> None:
    outputs, x = jnp.ones([2, 3]), jnp.zeros([2, 3])
    assert negative_log_likelihood(outputs, x, lambda a, b: jnp.abs(a - b).sum(axis=1)).tolist() == [3, 3]


# Decibels.


def test_the_ratio_of_each_example_is_that_of_its_mean_squared_error() -> None:
    other = np.clip(IMAGES + 0.1 * RANDOM.normal(size=IMAGES.shape), 0, 1)
    error = np.square(other - IMAGES.astype(np.float64)).reshape(12, -1).mean(axis=1)
    np.testing.assert_allclose(psnr(other, IMAGES), 10 * np.log10(1 / error), rtol=1e-5)


def test_a_perfect_reconstruction_has_a_hundred_decibels() -> None:
    assert psnr(IMAGES, IMAGES).tolist() == [100.0] * 12


@pytest.mark.parametrize(
    ("inputs", "loss", "image_shape", "expected"),
    [
        (IMAGES, mk.losses.squared_error, None, True),
        (FLAT, mk.losses.squared_error, None, False),
        (FLAT, mk.losses.squared_error, (4, 3), True),
        (FLAT, mk.losses.sigmoid_cross_entropy, None, True),
    ],
)
def test_the_ratio_is_told_of_images_and_of_what_a_cross_entropy_says_is_in_0_1(
    inputs: Any, loss: Any, image_shape: Any, expected: bool
) -> None:
    assert bool(quality(inputs, inputs, loss, image_shape)) is expected


# Pictures.


@pytest.mark.parametrize(("data", "image_shape"), [(IMAGES, None), (FLAT, (4, 3)), (IMAGES[..., 0], None)])
def test_inputs_stand_above_their_reconstructions(data: Any, image_shape: Any, tmp_path: Path) -> None:
    halve(data, image_shape=image_shape, save_dir=tmp_path)
    picture = imread(tmp_path / "pictures" / "reconstructions_00000000.png")[..., 0]
    assert picture.shape == (2 * 4 + 1, 10 * 3 + 9)
    for index in range(10):
        columns = slice(4 * index, 4 * index + 3)
        assert np.abs(picture[:4, columns] - IMAGES[index, ..., 0]).max() <= 0.5 / 255 + 1e-6
        assert np.abs(picture[5:, columns] - IMAGES[index, ..., 0] / 2).max() <= 0.5 / 255 + 1e-6


def test_colors_are_drawn_in_color(tmp_path: Path) -> None:
    halve(np.repeat(IMAGES, 3, axis=-1) * np.array([1, 0, 0], np.float32), save_dir=tmp_path)
    picture = imread(tmp_path / "pictures" / "reconstructions_00000000.png")
    assert picture[:4, :3, 0].max() > 0 == picture[:4, :3, 1].max()


def test_rows_that_are_no_images_are_not_drawn(tmp_path: Path) -> None:
    halve(FLAT, save_dir=tmp_path)
    assert not (tmp_path / "pictures").exists()


@pytest.mark.parametrize("shape", [(5, 1, 7, 1), (5, 7), (5, 4, 4, 2), (5, 2, 4, 4, 1)])
def test_what_is_no_image_has_no_shape_of_one(shape: Any) -> None:
    assert shape_of_images(shape, None) is None


@pytest.mark.parametrize("image_shape", [(4,), (4, 3, 2), (0, 3), (2, 2, 2, 1)])
def test_a_shape_that_no_image_has_is_refused(image_shape: Any) -> None:
    message = f"image_shape={image_shape}: expected (height, width), or (height, width, 1 or 3)"
    with pytest.raises(ValueError, match=exactly(message)):
        tied(image_shape)


def test_a_shape_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=exactly("image_shape=(5, 5) does not fit examples of shape [12]")):
        halve(FLAT, image_shape=(5, 5))


@pytest.mark.parametrize("data", [(FLAT, FLAT), {"x": FLAT, "y": FLAT}])
def test_an_autoencoder_takes_no_targets(data: Any) -> None:
    message = (
        "an autoencoder's data is one array of inputs [examples, ...], which are its targets too; it got a "
        f"{type(data).__name__} of 2: pass the inputs alone"
    )
    with pytest.raises(TypeError, match=exactly(message)):
        halve(data)


class Told(mk.Module):
    """Notes how it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = mk.Linear(3)
        self.trained = mk.Variable(0, trainable=False, name="trained")

    def __call__(self, x: Any, is_training: bool) -> Any:
        self.trained.assign_add(1 if is_training else 100)
        return self.linear(x)


def test_encoder_and_decoder_are_told_whether_they_train() -> None:
    encoder, decoder = Told(), Told()
    run = scenarios.TiedAutoencoder(5, tied=False, batch_size=12, progress=False)
    run(encoder, decoder, mk.optimizers.SGD(0.1), mk.losses.squared_error, data=FLAT[:, :3], eval_data=FLAT[:, :3])
    assert int(encoder.trained) == int(decoder.trained) == 5 + 100


# Random numbers of single examples.


@jax.jit
def numbers_of(examples: Any) -> jax.Array:
    return normal_for(example_keys(3, examples), [2], 7)


@settings(deadline=None, max_examples=25, derandomize=True)
@given(st.permutations(range(12)), st.sampled_from([1, 5]))
def test_the_numbers_of_an_example_depend_on_no_batch(order: list[int], cut: int) -> None:
    whole = np.asarray(numbers_of(FLAT))
    parts = [numbers_of(FLAT[part]) for part in (order[:cut], order[cut:])]
    assert np.concatenate(parts).tobytes() == whole[np.array(order)].tobytes()


def test_different_examples_evaluations_and_draws_have_different_numbers() -> None:
    corners = np.array(np.meshgrid(*[[0.0, 0.5, 1.0]] * 6)).reshape(6, -1).T  # few bits of each value are set
    keys = [example_keys(seed, corners) for seed in (0, 1)]
    draws = [normal_for(key, [1], index) for key in keys for index in (0, 1)]
    assert len(np.unique(np.concatenate(draws))) >= 4 * len(corners) - 1  # of normal numbers two may be the same


def test_the_numbers_are_normal_and_independent() -> None:
    examples = np.arange(20_000)[:, None] / 16
    numbers = np.asarray(normal_for(example_keys(0, examples), [2]), np.float64)
    assert abs(numbers.mean()) < 4 / math.sqrt(40_000)
    assert abs(numbers.var() - 1) < 4 * math.sqrt(2 / 40_000)
    beside = [np.corrcoef(numbers[:-1, 0], numbers[1:, 0])[0, 1], np.corrcoef(numbers.T)[0, 1]]
    assert max(np.abs(beside)) < 4 / math.sqrt(20_000)
