"""Laws of the image filter: one set of variables for images of any size, by reference or by name."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.image import imread
from scenario_catalogue import exactly

import modulekit as mk
import scenarios

RANDOM = np.random.default_rng(0)
WIDE, TALL = RANDOM.random([3, 4, 9, 1]), RANDOM.random([3, 8, 3, 1])
DATA = ((WIDE, np.abs(np.roll(WIDE, 1, axis=2) - WIDE)), (TALL, np.abs(np.roll(TALL, 1, axis=2) - TALL)))
SHAPES = {"conv_1/w": (3, 3, 1, 2), "conv_1/b": (2,), "conv_2/w": (3, 3, 2, 1), "conv_2/b": (1,)}
RATE = 0.1


def convolved(x: Any, w: Any, b: Any) -> Any:
    return jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")) + b


def my_image_filter(x: Any) -> Any:
    """Two convolutions that ask for their variables by name."""
    for name in ("conv_1", "conv_2"):
        with mk.variable_scope(name):
            x = convolved(
                x, mk.get_variable("w", SHAPES[f"{name}/w"]).value, mk.get_variable("b", SHAPES[f"{name}/b"]).value
            )
        x = jax.nn.relu(x) if name == "conv_1" else x
    return x


class ByReference(mk.Module):
    """The same, which holds its variables."""

    def __init__(self) -> None:
        super().__init__()
        self.held = {name: mk.Variable(jnp.zeros(shape), name=name) for name, shape in SHAPES.items()}

    def __call__(self, x: Any) -> Any:
        v = {name: variable.value for name, variable in self.held.items()}
        return convolved(jax.nn.relu(convolved(x, v["conv_1/w"], v["conv_1/b"])), v["conv_2/w"], v["conv_2/b"])


class ByName(mk.Module):
    """`my_image_filter`, with the store that its variables are in."""

    def __init__(self, reuse: Any = mk.AUTO_REUSE) -> None:
        super().__init__()
        self.store = mk.VariableStore()
        self.reuse = reuse

    def __call__(self, x: Any) -> Any:
        with self.store, mk.variable_scope("filters", reuse=self.reuse):
            return my_image_filter(x)


def first_values() -> dict[str, np.ndarray]:
    random = np.random.default_rng(4)
    return {name: (0.5 * random.normal(size=shape)).astype(np.float32) for name, shape in SHAPES.items()}


def by_reference() -> ByReference:
    made = ByReference()
    for name, value in first_values().items():
        made.held[name].assign(value)
    return made


def by_name() -> ByName:
    made = ByName()
    made(jnp.ones([1, 4, 4, 1]))
    for name, value in first_values().items():
        made.store.by_name[f"filters/{name}"].assign(value)
    return made


def train(filter: mk.Module, steps: int = 6, data: Any = DATA, **settings: Any) -> scenarios.Result:
    options = {"batch_size": 3, "progress": False, "log_interval": 1, **settings}
    parts = (filter, mk.optimizers.SGD(RATE), mk.losses.squared_error)
    return scenarios.ImageFilter(steps, **options)(*parts, data=data, eval_data=data)


def loss_by_hand(values: dict[str, Any], images: Any, targets: Any) -> Any:
    hidden = jax.nn.relu(convolved(images, values["conv_1/w"], values["conv_1/b"]))
    return jnp.mean(jnp.square(convolved(hidden, values["conv_2/w"], values["conv_2/b"]) - targets))


def test_the_gradient_is_the_sum_of_those_of_each_set_of_images() -> None:
    trained, values = by_reference(), {name: jnp.asarray(value) for name, value in first_values().items()}
    apart = [jax.grad(loss_by_hand)(values, *map(jnp.float32, pair)) for pair in DATA]
    train(trained, steps=1)
    for name, value in values.items():
        first, second = (gradients[name] for gradients in apart)
        np.testing.assert_allclose((value - trained.held[name].numpy()) / RATE, first + second, rtol=1e-3, atol=1e-5)
        assert float(jnp.abs(first - second).max()) > 1e-4, "each set has its own"


def test_sharing_by_name_trains_the_same_bits_as_sharing_by_reference() -> None:
    named, held = by_name(), by_reference()
    results = train(named), train(held)
    assert results[0].history == results[1].history
    for name, variable in held.held.items():
        assert named.store.by_name[f"filters/{name}"].numpy().tobytes() == variable.numpy().tobytes()


@pytest.mark.parametrize("make", [by_reference, by_name])
def test_the_variables_count_once(make: Any) -> None:
    made = make()
    assert train(made, steps=1).parameters == sum(np.prod(shape, dtype=int) for shape in SHAPES.values())
    assert len(made.trainable_variables) == 4


def test_a_filter_that_does_not_reuse_its_names_is_refused_at_the_second_image() -> None:
    with pytest.raises(ValueError, match=r"filters/conv_1/w.* already exists"):
        train(ByName(reuse=None))


def test_one_set_is_a_plain_regression_on_images() -> None:
    one, plain = by_reference(), by_reference()
    result = train(one, data=(DATA[0],))
    run = scenarios.Supervised(6, batch_size=3, progress=False, log_interval=1)
    expected = run(plain, mk.optimizers.SGD(RATE), mk.losses.squared_error, data=DATA[0], eval_data=DATA[0])
    np.testing.assert_allclose(result.column("loss")[1], expected.column("loss")[1], rtol=1e-6)
    assert result.metrics["loss"] == result.metrics["loss_0"] == pytest.approx(expected.metrics["loss"], rel=1e-6)


def test_the_loss_is_the_sum_of_those_of_each_set() -> None:
    made = by_reference()
    result = train(made, eval_batch_size=2)
    values = {name: jnp.asarray(v.numpy()) for name, v in made.held.items()}
    for index, pair in enumerate(DATA):
        expected = loss_by_hand(values, *map(jnp.float32, pair))
        np.testing.assert_allclose(result.metrics[f"loss_{index}"], expected, rtol=1e-5)
    for metrics in (result.metrics, *result.history[:-1]):
        assert metrics["loss"] == pytest.approx(metrics["loss_0"] + metrics["loss_1"], rel=1e-6)


def test_pictures_show_images_outputs_and_targets_of_each_set(tmp_path: Path) -> None:
    train(by_reference(), steps=1, save_dir=tmp_path)
    for index, (images, targets) in enumerate(DATA):
        picture = imread(tmp_path / "pictures" / f"images_{index}_00000001.png")[..., 0]
        height, width = images.shape[1:3]
        assert picture.shape == (3 * height + 2, 3 * width + 2)
        assert np.abs(picture[:height, :width] - images[0, ..., 0]).max() <= 0.5 / 255 + 1e-6
        assert np.abs(picture[-height:, :width] - targets[0, ..., 0]).max() <= 0.5 / 255 + 1e-6


def test_a_filter_that_changes_the_number_of_channels_has_no_pictures(tmp_path: Path) -> None:
    data = tuple((images, np.repeat(images, 2, axis=-1)) for images, _ in DATA)
    train(mk.Conv2D(2, 1), steps=1, data=data, save_dir=tmp_path)
    assert not (tmp_path / "pictures").exists()


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (WIDE, "an array [3, 4, 9, 1]"),
        ((WIDE, TALL), "(an array [3, 4, 9, 1], an array [3, 8, 3, 1])"),
        ({"a": WIDE, "b": TALL}, "a dict"),
        ((DATA[0], WIDE), "((an array [3, 4, 9, 1], an array [3, 4, 9, 1]), an array [3, 4, 9, 1])"),
    ],
)
def test_what_are_no_pairs_is_refused(data: Any, found: str) -> None:
    message = (
        "an image filter's data are pairs of images and targets, one for each set: "
        f"((images_a, targets_a), (images_b, targets_b)); it got {found}"
    )
    with pytest.raises(ValueError, match=exactly(message)):
        train(by_reference(), data=data)
