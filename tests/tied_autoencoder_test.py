"""Laws of the tied autoencoder: one weight in two places is one weight to train, to count and to save."""

import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scenario_catalogue import ROW, Case, assert_bitwise, uninterrupted

import modulekit as mk
import scenarios
from modulekit.checkpoints import CheckpointStore

TIED, UNTIED = ROW["tied_autoencoder"], ROW["untied_autoencoder"]
X = np.random.default_rng(0).random([20, 6]).astype(np.float32)


def autoencoder(encoder: Any, decoder: Any, tied: bool = True, **settings: Any) -> Case:
    parts = {
        "encoder": encoder, "decoder": decoder, "optimizer": mk.optimizers.SGD(0.5), "loss": mk.losses.squared_error,
    }  # fmt: skip
    options = {"steps": 8, "batch_size": 5, "progress": False, "tied": tied, **settings}
    return Case(scenarios.TiedAutoencoder, options, parts, X, X)


def test_tied_weights_stay_one_variable() -> None:
    case = TIED.fresh()
    encoder, decoder = case.parts["encoder"], case.parts["decoder"]
    case.run()
    shared = set(encoder.variables) & set(decoder.variables)
    assert shared == {encoder.w}
    np.testing.assert_allclose(decoder(jnp.eye(3)) - decoder.b, encoder.w.value.T, rtol=1e-6)


def test_a_tied_weight_has_one_slot_and_one_array_on_disk(tmp_path: Path) -> None:
    TIED.start(save_dir=tmp_path)
    store = CheckpointStore(tmp_path / "states")
    arrays, _ = store.restore(60)
    store.close()
    assert sorted(array.shape for name, array in arrays.items() if not name.startswith("optimizer")) == [
        (3,),
        (6,),
        (6, 3),
    ]
    slots = [array.shape for name, array in arrays.items() if name.startswith("optimizer") and array.shape]
    assert sorted(slots) == [(3,), (6,), (6, 3)]


def test_a_tied_weight_gets_the_sum_of_the_gradients_of_its_uses() -> None:
    encoder = mk.Linear(3)
    case = autoencoder(encoder, encoder.transpose(), steps=1, batch_size=20)
    case.run(steps=0)
    w, b, c = (jnp.asarray(v.numpy()) for v in (encoder.w, encoder.b, case.parts["decoder"].b))

    def loss(into: Any, out: Any) -> Any:
        return jnp.mean(((X @ into + b) @ out.T + c - X) ** 2)

    by_encoder, by_decoder = jax.grad(loss, (0, 1))(w, w)
    case.run()
    np.testing.assert_allclose(encoder.w.numpy(), w - 0.5 * (by_encoder + by_decoder), rtol=1e-5, atol=1e-6)
    assert float(jnp.abs(by_encoder).max()) > 1e-3 < float(jnp.abs(by_decoder).max())


def test_parameters_count_the_tied_weight_once() -> None:
    assert uninterrupted(TIED)[0].parameters == 6 * 3 + 3 + 6
    assert uninterrupted(UNTIED)[0].parameters == uninterrupted(TIED)[0].parameters + 3 * 6


def test_training_lowers_the_loss() -> None:
    for row in (TIED, UNTIED):
        assert uninterrupted(row)[0].metrics["loss"] < row.start(steps=0)[0].metrics["loss"]


def test_deep_pairs_are_tied_layer_by_layer(tmp_path: Path) -> None:
    def make() -> Case:
        first, second = mk.Linear(4, name="first"), mk.Linear(2, name="second")
        encoder = mk.Sequential([first, jnp.tanh, second])
        decoder = mk.Sequential([second.transpose(), jnp.tanh, first.transpose()])
        return autoencoder(encoder, decoder)

    mk.seed(0)
    case = make()
    result = case.run(save_dir=tmp_path)
    assert result.parameters == 6 * 4 + 4 + 4 * 2 + 2 + 4 + 6
    again = make()
    again.run(save_dir=tmp_path)
    assert_bitwise(again.state(), case.state())


def test_a_pair_that_is_not_tied_is_refused_and_its_weights_named() -> None:
    case = autoencoder(mk.Linear(3, name="encoder"), mk.Linear(6, name="decoder"))
    message = (
        "the decoder is not tied to the encoder: decoder.w [3, 6]. Build it from the encoder's own layers, as in "
        "layer.transpose(), or train the pair untied with TiedAutoencoder(..., tied=False)"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        case.run()


def test_a_pair_that_is_tied_in_part_is_refused_and_the_other_weights_named() -> None:
    first, second = mk.Linear(4), mk.Linear(2)
    decoder = mk.Sequential([mk.Linear(4), first.transpose()])
    message = "the decoder is not tied to the encoder: decoder.layers[0].w [2, 4]. "
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        autoencoder(mk.Sequential([first, second]), decoder).run()


def test_a_decoder_without_weights_is_not_tied() -> None:
    message = "the decoder is not tied to the encoder: the decoder has no weight matrix. "
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        autoencoder(mk.Linear(6), mk.Sequential([jnp.tanh])).run()


def test_a_tied_pair_is_refused_as_an_untied_one() -> None:
    encoder = mk.Linear(3)
    with pytest.raises(ValueError) as error:
        autoencoder(encoder, encoder.transpose(), tied=False).run()
    found = re.fullmatch(
        r"tied=False, and the decoder shares (decoder\.[\w.]+) with the encoder: give it weights of its own",
        str(error.value),
    )
    assert found
    assert found[1].endswith(".w")


def test_a_refused_pair_was_not_trained() -> None:
    case = autoencoder(mk.Linear(3), mk.Linear(6))
    case.replace(settings={**case.settings, "tied": False}).run(steps=0)
    before = case.state()
    with pytest.raises(ValueError, match="is not tied"):
        case.run()
    assert_bitwise(case.state(), before)
