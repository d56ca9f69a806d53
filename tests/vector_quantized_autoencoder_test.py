"""Laws of the vector-quantized autoencoder: which code is chosen, what it costs, and how the codebook is used."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scenario_catalogue import ROW, Case, exactly

import modulekit as mk
import scenarios
from scenarios.autoencoders.codebook import usage

X = np.random.default_rng(0).random([30, 6]).astype(np.float32)
COST = 0.25


def case(quantizer: Any = None, optimizer: Any = None, **others: Any) -> Case:
    mk.seed(3)
    parts = {
        "encoder": mk.Linear(2, name="encoder"),
        "quantizer": quantizer or mk.nets.VectorQuantizer(2, 5, commitment_cost=COST),
        "decoder": mk.Linear(6, name="decoder"),
        "optimizer": optimizer or mk.optimizers.SGD(0.3),
        "loss": mk.losses.squared_error,
    }
    options = {"steps": 6, "batch_size": 30, "progress": False, "log_interval": 1, **others}
    return Case(scenarios.VectorQuantizedAutoencoder, options, parts, X, X)


def by_hand(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the terms of each example, and the choices, in float64."""
    w = {path: value.astype(np.float64) for path, value in state.items()}
    z = X.astype(np.float64) @ w["encoder.w"] + w["encoder.b"]
    codes = w["quantizer.embeddings"].T
    chosen = np.square(z[:, None] - codes[None]).sum(axis=2).argmin(axis=1)
    outputs = codes[chosen] @ w["decoder.w"] + w["decoder.b"]
    return {
        "reconstruction": np.square(outputs - X).mean(axis=1),
        "distance": np.square(codes[chosen] - z).mean(axis=1),
        "chosen": chosen,
    }


@pytest.mark.parametrize("averaged", [False, True])
def test_an_evaluation_is_its_terms_over_all_examples(averaged: bool) -> None:
    quantizer = mk.nets.VectorQuantizerEMA(2, 5, COST, decay=0.8) if averaged else None
    trained = case(quantizer)
    metrics = trained.run(eval_batch_size=7).metrics
    found = by_hand(trained.state())
    counts = np.bincount(found["chosen"], minlength=5)
    shares = counts[counts > 0] / 30
    quantization = found["distance"] * (COST if averaged else 1 + COST)
    expected = {
        "reconstruction": found["reconstruction"].mean(),
        "quantization": quantization.mean(),
        "loss": (found["reconstruction"] + quantization).mean(),
        "used_codes": len(shares),
        "used_share": len(shares) / 5,
        "perplexity": np.prod(shares**-shares),
    }
    assert metrics.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4, atol=1e-6, err_msg=name)


def test_an_update_equals_handwritten_jax_with_the_gradient_passed_straight_through() -> None:
    one = case(steps=1)
    one.run(steps=0)
    first = one.state()
    names = ["encoder.w", "encoder.b", "quantizer.embeddings", "decoder.w", "decoder.b"]
    chosen = by_hand(first)["chosen"]

    def loss(values: list[Any]) -> Any:
        w, b, embeddings, v, c = values
        z, q = X @ w + b, embeddings.T[chosen]
        passed = z + jax.lax.stop_gradient(q - z)
        apart = jnp.mean((q - jax.lax.stop_gradient(z)) ** 2) + COST * jnp.mean((jax.lax.stop_gradient(q) - z) ** 2)
        return jnp.mean((passed @ v + c - X) ** 2) + apart

    values = [jnp.asarray(first[name]) for name in names]
    expected, gradients = jax.value_and_grad(loss)(values)
    result = one.run()
    np.testing.assert_allclose(result.history[0]["loss"], expected, rtol=1e-5)
    for name, value, gradient in zip(names, values, gradients, strict=True):
        np.testing.assert_allclose(one.state()[name], value - 0.3 * gradient, rtol=1e-4, atol=1e-6, err_msg=name)
        assert float(jnp.abs(gradient).max()) > 1e-4


def test_the_metrics_of_an_update_are_its_terms() -> None:
    for row in case().run().history[:6]:
        np.testing.assert_allclose(row["loss"], row["reconstruction"] + row["quantization"], rtol=1e-6)
        assert 1 <= row["perplexity"] <= 5


def test_averaged_codes_move_in_updates_and_not_in_evaluations() -> None:
    trained = case(mk.nets.VectorQuantizerEMA(2, 5, COST, decay=0.8))
    trained.run(steps=0)
    first = trained.state()["quantizer.embeddings"]
    trained.run(steps=0, eval_batch_size=4)
    assert (trained.state()["quantizer.embeddings"] == first).all()
    trained.run(steps=1)
    assert (trained.state()["quantizer.embeddings"] != first).any()


def test_images_are_coded_place_by_place(tmp_path: Any) -> None:
    images = np.random.default_rng(1).random([12, 4, 4, 1]).astype(np.float32)
    parts = (
        mk.Conv2D(3, 2, stride=2),
        mk.nets.VectorQuantizer(3, 8, COST),
        mk.Conv2DTranspose(1, 2, stride=2),
        mk.optimizers.Adam(0.01),
        mk.losses.sigmoid_cross_entropy,
    )
    run = scenarios.VectorQuantizedAutoencoder(3, batch_size=6, save_dir=tmp_path, progress=False)
    metrics = run(*parts, data=images, eval_data=images).metrics
    assert {"psnr", "used_codes"} <= metrics.keys()
    assert [file.name for file in (tmp_path / "pictures").iterdir()] == ["reconstructions_00000003.png"]


def test_a_dead_codebook_raises_an_alarm() -> None:
    quantizer = mk.nets.VectorQuantizer(2, 40, COST)
    quantizer.embeddings.assign(quantizer.embeddings.value.at[:, 1:].add(100.0))  # nobody comes near them
    result = case(quantizer).run()
    assert result.metrics["used_codes"] == 1
    message = (
        "the codebook is dead: 1 of its codes are used, 2.5% of them. Use fewer codes, a smaller commitment_cost, or codes "
        "that follow the vectors (mk.nets.VectorQuantizerEMA)"
    )
    assert list(result.alarms) == [(6, message)]
    assert not ROW["vector_quantized_autoencoder"].start()[0].alarms


def test_a_share_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match=exactly("least_used=-0.5 is outside [0, 1]: it is a share of the codes")):
        scenarios.VectorQuantizedAutoencoder(3, least_used=-0.5)


@settings(deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=30).filter(any))
def test_the_use_of_a_codebook_is_its_perplexity_and_share(counts: list[int]) -> None:
    found = usage(counts)
    assert found["used_codes"] == sum(count > 0 for count in counts)
    assert found["used_share"] == found["used_codes"] / len(counts)
    assert 1 - 1e-9 <= found["perplexity"] <= found["used_codes"] * (1 + 1e-9)
    assert found["perplexity"] == pytest.approx(usage([*counts, 0])["perplexity"])  # an unused code changes nothing
    assert found["perplexity"] == pytest.approx(usage([3 * count for count in counts[::-1]])["perplexity"])


def test_codes_that_are_chosen_alike_have_their_number_as_perplexity() -> None:
    assert usage([7, 7, 7, 0])["perplexity"] == pytest.approx(3)
