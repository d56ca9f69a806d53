"""Laws of the denoising autoencoder: it sees what is corrupted, and is measured by what is clean."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from scenario_catalogue import Case, assert_bitwise, exactly

import modulekit as mk
import scenarios

RANDOM = np.random.default_rng(0)
X = RANDOM.uniform(0.2, 0.8, [40, 6]).astype(np.float32)


class Seen(mk.Module):
    """An encoder that keeps what it has seen last."""

    def __init__(self, shape: Any) -> None:
        super().__init__()
        self.last = mk.Variable(jnp.zeros(shape), trainable=False, name="last")

    def __call__(self, x: Any) -> Any:
        if x.shape == self.last.shape:
            self.last.assign(x)
        return x


def case(scenario: Any = scenarios.DenoisingAutoencoder, data: Any = X, **settings: Any) -> Case:
    mk.seed(1)
    parts = {
        "encoder": mk.Linear(3, name="encoder"),
        "decoder": mk.Linear(6, name="decoder"),
        "optimizer": mk.optimizers.Adam(0.02),
        "loss": mk.losses.squared_error,
    }
    return Case(scenario, {"steps": 12, "batch_size": 8, "progress": False, **settings}, parts, data, data)


def seen(corruption: str, amount: float, steps: int = 1) -> np.ndarray:
    """Returns what the encoder sees of ones in the last update."""
    data = np.ones([200, 50], np.float32)
    encoder = Seen(data.shape)
    run = scenarios.DenoisingAutoencoder(steps, corruption, amount, batch_size=200, progress=False)  # type: ignore[arg-type]
    run(encoder, mk.Linear(50), mk.optimizers.SGD(0.0), mk.losses.squared_error, data=data)
    return encoder.last.numpy()


@pytest.mark.parametrize("corruption", ["gaussian", "masking"])
def test_without_any_corruption_it_is_the_untied_autoencoder_bitwise(corruption: str) -> None:
    clean = case(corruption=corruption, amount=0.0)
    result = clean.run()
    plain = case(scenarios.TiedAutoencoder, tied=False)
    expected = plain.run()
    assert_bitwise(clean.state(), plain.state())
    assert result.metrics["loss"] == expected.metrics["loss"]


def test_masking_sets_its_share_to_zero_and_leaves_the_rest() -> None:
    found = seen("masking", 0.3)
    assert set(np.unique(found)) == {0.0, 1.0}
    assert abs((found == 0).mean() - 0.3) < 4 * np.sqrt(0.3 * 0.7 / found.size)


def test_noise_is_normal_with_its_standard_deviation() -> None:
    noise = seen("gaussian", 0.5) - 1.0
    assert abs(noise.mean()) < 4 * 0.5 / np.sqrt(noise.size)
    assert abs(noise.std() / 0.5 - 1) < 4 / np.sqrt(2 * noise.size)
    assert len(np.unique(noise)) > 0.9 * noise.size  # each value has its own


def test_each_update_corrupts_anew() -> None:
    assert (seen("masking", 0.5, steps=1) != seen("masking", 0.5, steps=2)).mean() > 0.4


@pytest.mark.parametrize("corruption", ["gaussian", "masking"])
def test_the_loss_compares_with_the_clean_inputs(corruption: str) -> None:
    encoder, decoder = Seen([40, 6]), mk.Linear(6)
    mk.build(decoder, [1, 6])
    decoder.w.assign(jnp.eye(6))
    run = scenarios.DenoisingAutoencoder(1, corruption, 0.4, batch_size=40, log_interval=1, progress=False)  # type: ignore[arg-type]
    result = run(encoder, decoder, mk.optimizers.SGD(0.0), mk.losses.squared_error, data=X)
    shown = encoder.last.numpy().astype(np.float64)  # in the order of the epoch, which the mean does not know
    order = mk.data.batch_indices(40, 40, 0, 0, 1)[0]
    np.testing.assert_allclose(result.history[0]["loss"], np.square(shown - X[order]).mean(), rtol=1e-6)
    assert result.history[0]["loss"] > 0.01


def test_training_takes_noise_away() -> None:
    code = RANDOM.uniform(0, 1, [300, 2])
    data = (code @ RANDOM.dirichlet(np.ones(12), 2).T[:, :2].T).clip(0, 1).astype(np.float32)  # of rank 2
    parts = (mk.Linear(2), mk.Linear(12), mk.optimizers.Adam(0.01), mk.losses.squared_error)
    run = scenarios.DenoisingAutoencoder(500, "gaussian", 0.2, image_shape=(3, 4), batch_size=50, progress=False)
    metrics = run(*parts, data=data[:200], eval_data=data[200:]).metrics
    assert 13 < metrics["corrupted_psnr"] < 15  # 20 log10(1 / 0.2)
    assert metrics["psnr"] > metrics["corrupted_psnr"] + 5


def test_pictures_show_inputs_corrupted_and_reconstructed() -> None:
    drawn: dict[str, Any] = {}

    class Drawing(scenarios.DenoisingAutoencoder):
        def measure(self, eval_data: Any, **parts: Any) -> Any:
            drawn.update(self.pictures(eval_data, **parts))
            return {}

    run = Drawing(1, "masking", 0.5, (2, 3), batch_size=8, progress=False)
    run(*case().parts.values(), data=X, eval_data=X)
    (picture,) = drawn.values()
    assert picture.shape == (3 * 2 + 2, 10 * 3 + 9)
    first, second = picture[:2, :3], picture[3:5, :3]
    np.testing.assert_allclose(first.reshape(-1), X[0], rtol=1e-6)
    corrupted = np.stack([picture[3:5, 4 * index : 4 * index + 3] for index in range(10)]).reshape(10, 6)
    kept = corrupted != 0
    assert second.shape == (2, 3)
    assert 0.2 < kept.mean() < 0.8
    np.testing.assert_allclose(corrupted[kept], X[:10][kept], rtol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"corruption": "salt"}, "corruption='salt' is none of 'gaussian', 'masking'"),
        (
            {"amount": -0.1},
            "amount=-0.1: expected a standard deviation of at least 0 for corruption='gaussian'",
        ),
        (
            {"corruption": "masking", "amount": 1.0},
            "amount=1.0: expected a share in [0, 1) for corruption='masking'",
        ),
        (
            {"corruption": "masking", "amount": float("nan")},
            "amount=nan: expected a share in [0, 1) for corruption='masking'",
        ),
    ],
)
def test_what_is_out_of_range_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=exactly(message)):
        scenarios.DenoisingAutoencoder(3, **settings)


def test_an_evaluation_corrupts_each_example_in_its_own_way() -> None:
    data = np.repeat(X[:2], 20, axis=0) + np.linspace(0, 0.01, 40, dtype=np.float32)[:, None]
    run = scenarios.DenoisingAutoencoder(0, "masking", 0.5, batch_size=8, progress=False)
    masks = np.asarray(run._corrupted_one_by_one(jnp.asarray(data)) == 0)
    assert len(np.unique(masks, axis=0)) > 15
