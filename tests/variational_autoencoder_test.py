"""Laws of the variational autoencoder: its bounds are bounds, and meet a likelihood that is known exactly."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scenario_catalogue import exactly

import modulekit as mk
import scenarios
from modulekit.core.randomness import default_stream
from scenarios.autoencoders.posterior import Posterior, active_units, bounds, posterior

RANDOM = np.random.default_rng(0)
QUIET: dict[str, Any] = {"progress": False}

# The arithmetic of the posterior.


def test_the_divergence_is_its_closed_form() -> None:
    m, s = RANDOM.normal(size=[2, 7, 3, 2])
    expected = 0.5 * (np.exp(s) + m**2 - 1 - s).reshape(7, 6).sum(axis=1)
    np.testing.assert_allclose(Posterior(jnp.array(m), jnp.array(s)).divergence(), expected, rtol=1e-5)


def test_the_divergence_is_the_integral_that_defines_it() -> None:
    z = np.linspace(-30, 30, 200_001)
    for m, s in ((0.0, 0.0), (1.5, -1.0), (-0.3, 2.0)):
        log_q = -((z - m) ** 2) / (2 * math.exp(s)) - 0.5 * s - 0.5 * math.log(2 * math.pi)
        log_p = -(z**2) / 2 - 0.5 * math.log(2 * math.pi)
        integral = np.trapezoid(np.exp(log_q) * (log_q - log_p), z)
        found = Posterior(jnp.array([[m]]), jnp.array([[s]])).divergence()[0]
        np.testing.assert_allclose(found, integral, rtol=1e-5, atol=1e-6)


def test_the_ratio_of_a_code_is_that_of_its_densities() -> None:
    m, s, noise = RANDOM.normal(size=[3, 7, 4])
    z = m + np.exp(s / 2) * noise
    log_q = -((z - m) ** 2) / (2 * np.exp(s)) - 0.5 * s - 0.5 * math.log(2 * math.pi)
    log_p = -(z**2) / 2 - 0.5 * math.log(2 * math.pi)
    found = Posterior(jnp.array(m), jnp.array(s))
    np.testing.assert_allclose(found.code(jnp.array(noise)), z, rtol=1e-5)
    np.testing.assert_allclose(found.log_ratio(jnp.array(noise)), (log_p - log_q).sum(axis=1), rtol=1e-4, atol=1e-5)


def test_the_bound_is_the_logarithm_of_the_mean_weight() -> None:
    m, s = RANDOM.normal(size=[2, 5, 3])
    noises, errors = RANDOM.normal(size=[4, 5, 3]), RANDOM.uniform(0, 3, [4, 5])
    found = Posterior(jnp.array(m), jnp.array(s))
    stacked, table = jnp.array(noises), jnp.array(errors)
    codes = jax.vmap(found.code)(stacked)

    def error_of(code: Any) -> Any:  # that of the draw which the code is from
        return table[jnp.argmin(jnp.abs(code - codes).sum(axis=(1, 2)))]

    mean, bound = bounds(found, lambda index: stacked[index], error_of, 4)
    z = m + np.exp(s / 2) * noises
    log_weights = -errors + (-(z**2) / 2 + (z - m) ** 2 / (2 * np.exp(s)) + 0.5 * s).sum(axis=-1)
    np.testing.assert_allclose(mean, errors.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(bound, np.log(np.exp(log_weights).mean(axis=0)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("outputs", [jnp.arange(12.0).reshape(2, 6), (jnp.ones([2, 3]), jnp.zeros([2, 3]))])
def test_an_encoder_returns_a_pair_or_both_in_one(outputs: Any) -> None:
    found = posterior(outputs)
    expected = outputs if isinstance(outputs, tuple) else (outputs[:, :3], outputs[:, 3:])
    assert (found.mean == expected[0]).all() and (found.log_variance == expected[1]).all()


@pytest.mark.parametrize(
    ("outputs", "found"),
    [
        (jnp.ones([2, 3]), "an array [2, 3]"),
        (jnp.ones([4]), "an array [4]"),
        ((jnp.ones([2, 3]), jnp.ones([2, 1])), "a tuple of shapes [[2, 3], [2, 1]]"),
        ([jnp.ones([2, 3])], "a list of shapes [[2, 3]]"),
    ],
)
def test_what_is_no_posterior_is_refused(outputs: Any, found: str) -> None:
    message = (
        "the encoder of a variational autoencoder must return a pair (mean, log-variance) of one shape, or one array "
        f"[batch, ..., 2 units] that holds both; it returned {found}"
    )
    with pytest.raises(ValueError, match=exactly(message)):
        posterior(outputs)


def test_active_units_are_those_whose_mean_varies() -> None:
    means = RANDOM.normal(size=[500, 5]) * [1.0, 0.2, 0.09, 0.0, 0.11] + 3.0
    assert active_units(means).tolist() == (means.var(axis=0) > 0.01).tolist()
    assert active_units(means)[:4].tolist() == [True, True, False, False]
    assert active_units(means.reshape(500, 5, 1)).tolist() == active_units(means).tolist()


# A linear model with normal noise, whose likelihood and posterior are known: z ~ N(0, 1), x ~ N(W z + b, scale^2).

W = np.linalg.qr(np.random.default_rng(1).normal(size=[4, 2]))[0].T * [[2.0], [1.0]]  # [2, 4], rows orthogonal
B, SCALE, SIZE = np.array([0.5, -1.0, 0.0, 2.0]), 0.6, 800
X = (RANDOM.normal(size=[SIZE, 2]) @ W + B + SCALE * RANDOM.normal(size=[SIZE, 4])).astype(np.float32)


def log_likelihood(x: np.ndarray) -> np.ndarray:
    covariance = W.T @ W + SCALE**2 * np.eye(4)
    away = x.astype(np.float64) - B
    squares = np.einsum("ni,ij,nj->n", away, np.linalg.inv(covariance), away)
    return -0.5 * (squares + np.linalg.slogdet(2 * math.pi * covariance)[1])


def linear(w: np.ndarray, b: np.ndarray) -> mk.Linear:
    layer = mk.Linear(w.shape[1])
    mk.build(layer, [1, w.shape[0]])
    layer.w.assign(jnp.asarray(w, jnp.float32))
    layer.b.assign(jnp.asarray(b, jnp.float32))
    return layer


def exact_encoder(away: float = 0.0) -> mk.Linear:
    """Returns the encoder of the true posterior; or of one whose variances, and a mean, are wrong."""
    variances = 1 / (1 + (W**2).sum(axis=1) / SCALE**2)
    to_mean = W.T * variances / SCALE**2
    offset = np.concatenate([-B @ to_mean + [away, 0.0], np.log(variances) + away])
    return linear(np.concatenate([to_mean, np.zeros([4, 2])], axis=1), offset)


def evaluated(encoder: mk.Module, samples: int, **settings: Any) -> dict[str, float]:
    run = scenarios.VariationalAutoencoder(0, scale=SCALE, importance_samples=samples, **QUIET, **settings)
    parts = (encoder, linear(W, B), mk.optimizers.SGD(0.1), mk.losses.squared_error)
    return dict(run(*parts, data=X, eval_data=X).metrics)


def test_with_the_true_posterior_the_weighted_bound_is_the_likelihood_for_any_number_of_samples() -> None:
    for samples in (1, 4):
        found = evaluated(exact_encoder(), samples)["iwae"]
        np.testing.assert_allclose(found, log_likelihood(X).mean(), rtol=1e-5)


def test_with_the_true_posterior_the_evidence_bound_is_tight_up_to_the_draws() -> None:
    found = evaluated(exact_encoder(), 16)["elbo"]
    np.testing.assert_allclose(found, log_likelihood(X).mean(), atol=4 / math.sqrt(16 * SIZE))


def test_the_bound_grows_with_the_samples_and_approaches_the_likelihood() -> None:
    found = {samples: evaluated(exact_encoder(0.7), samples) for samples in (1, 4, 32, 512)}
    means = [metrics["iwae"] for metrics in found.values()]
    truth = log_likelihood(X).mean()
    assert means == sorted(means)
    assert found[512]["elbo"] < means[1] < means[2] < truth + 0.01
    assert truth - means[1] > 0.05
    assert abs(means[3] - truth) < 0.01
    assert found[512]["elbo"] < truth - 0.2


def test_with_one_sample_both_bounds_estimate_the_same() -> None:
    found = evaluated(exact_encoder(0.7), 1)
    assert abs(found["elbo"] - found["iwae"]) < 4 * 1.5 / math.sqrt(SIZE)


def test_the_evidence_bound_is_that_of_its_terms_in_float64() -> None:
    """A decoder that does not look at its code leaves nothing to chance."""
    blind = linear(np.zeros([2, 4]), B)
    m, s = np.split(X.astype(np.float64) @ exact_encoder(0.7).w.numpy() + exact_encoder(0.7).b.numpy(), 2, axis=1)
    kl = 0.5 * (np.exp(s) + m**2 - 1 - s).sum(axis=1)
    error = 0.5 * ((X - B) ** 2).sum(axis=1) / SCALE**2 + 4 * math.log(SCALE * math.sqrt(2 * math.pi))
    run = scenarios.VariationalAutoencoder(0, beta=3.0, warm_up=99, scale=SCALE, **QUIET)
    parts = (exact_encoder(0.7), blind, mk.optimizers.SGD(0.1), mk.losses.squared_error)
    metrics = run(*parts, data=X, eval_data=X).metrics
    expected = {
        "kl": kl, "reconstruction": error, "elbo": -error - kl, "loss": error + 3 * kl,
        "active_units": (m.var(axis=0) > 0.01).sum(), "active_share": 1.0,
    }  # fmt: skip
    assert metrics.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(metrics[name], np.mean(values), rtol=1e-5, err_msg=name)


# Training.


def networks() -> tuple[mk.Module, mk.Module]:
    mk.seed(2)
    return mk.Linear(4, name="encoder"), mk.Linear(4, name="decoder")


def test_training_equals_handwritten_jax_with_the_same_noise() -> None:
    steps, batch_size, beta, warm_up = 12, 20, 2.0, 8
    encoder, decoder = networks()
    mk.build(encoder, [1, 4])
    mk.build(decoder, [1, 2])
    variables = [encoder.w, encoder.b, decoder.w, decoder.b]
    values = [jnp.asarray(v.numpy()) for v in variables]
    transformation = optax.adam(0.01)
    slots = transformation.init(values)

    def loss(values: Any, x: Any, noise: Any, weight: Any) -> Any:
        w, b, v, c = values
        m, s = jnp.split(x @ w + b, 2, axis=1)
        logits = (m + jnp.exp(s / 2) * noise) @ v + c
        error = -(x * jax.nn.log_sigmoid(logits) + (1 - x) * jax.nn.log_sigmoid(-logits)).sum(axis=1)
        return jnp.mean(error + weight * 0.5 * (jnp.exp(s) + m**2 - 1 - s).sum(axis=1))

    data = np.random.default_rng(3).random([60, 4]).astype(np.float32)
    expected = []
    for step, rows in enumerate(mk.data.batch_indices(60, batch_size, 5, 0, steps)):
        default_stream().restart(jax.random.fold_in(jax.random.key(5), step))
        noise = jax.random.normal(mk.next_key(), [batch_size, 2])
        value, gradients = jax.value_and_grad(loss)(values, data[rows], noise, beta * min(1, step / warm_up))
        updates, slots = transformation.update(gradients, slots)
        values = optax.apply_updates(values, updates)
        expected.append(float(value))
    run = scenarios.VariationalAutoencoder(steps, beta, warm_up, batch_size=batch_size, seed=5, log_interval=1, **QUIET)
    result = run(encoder, decoder, mk.optimizers.Adam(0.01), mk.losses.sigmoid_cross_entropy, data=data)
    np.testing.assert_allclose(result.column("loss")[1], expected, rtol=1e-5)
    for variable, value in zip(variables, values, strict=True):
        np.testing.assert_allclose(variable.numpy(), value, rtol=1e-4, atol=1e-5)


def test_the_weight_of_the_divergence_grows_to_beta() -> None:
    run = scenarios.VariationalAutoencoder(10, beta=2.0, warm_up=4, batch_size=20, log_interval=1, **QUIET)
    history = run(*networks(), mk.optimizers.Adam(0.01), mk.losses.squared_error, data=X).history
    weights = [(row["loss"] - row["reconstruction"]) / row["kl"] for row in history]
    np.testing.assert_allclose(weights, [2.0 * min(1, step / 4) for step in range(10)], rtol=1e-3, atol=1e-4)


def trained(beta: float) -> scenarios.Result:
    run = scenarios.VariationalAutoencoder(400, beta, scale=SCALE, batch_size=50, **QUIET)
    return run(*networks(), mk.optimizers.Adam(0.02), mk.losses.squared_error, data=X, eval_data=X)


def test_training_comes_near_the_likelihood_of_the_model_that_made_the_data() -> None:
    result = trained(1.0)
    assert result.metrics["elbo"] > log_likelihood(X).mean() - 0.25
    assert result.metrics["active_units"] == 2
    assert not result.alarms


def test_a_collapsed_posterior_raises_an_alarm() -> None:
    result = trained(100.0)
    assert result.metrics["active_units"] == 0
    ((step, sentence),) = result.alarms
    assert step == 400
    assert sentence.startswith(
        "the posterior has collapsed to the prior: 0% of the units are active, and the divergence"
    )
    assert sentence.endswith("Lower beta, let it grow over a longer warm_up, or weaken the decoder")


@pytest.mark.parametrize(
    ("metrics", "count"),
    [
        ({"active_share": 0.09, "kl": 3.0}, 1),
        ({"active_share": 1.0, "kl": 0.009}, 1),
        ({"active_share": 0.1, "kl": 0.01}, 0),
        ({"loss": 3.0}, 0),
    ],
)
def test_either_sign_of_a_collapse_is_enough(metrics: dict[str, float], count: int) -> None:
    assert len(scenarios.VariationalAutoencoder(3, least_active=0.1).alarms(metrics)) == count


def test_pictures_show_reconstructions_and_the_same_samples_each_time(tmp_path: Any) -> None:
    shown: list[dict[str, Any]] = []

    class Drawing(scenarios.VariationalAutoencoder):
        def measure(self, eval_data: Any, **parts: Any) -> Any:
            shown.append(dict(self.pictures(eval_data, **parts)))
            return {}

    data = np.random.default_rng(3).random([30, 4]).astype(np.float32)
    run = Drawing(2, image_shape=(2, 2), batch_size=10, eval_interval=1, **QUIET)
    encoder, decoder = networks()
    run(encoder, decoder, mk.optimizers.SGD(0.0), mk.losses.sigmoid_cross_entropy, data=data, eval_data=data)
    assert {name: picture.shape for name, picture in shown[0].items()} == {
        "reconstructions": (2 * 2 + 1, 10 * 2 + 9),
        "samples": (5 * 2 + 4, 10 * 2 + 9),
    }
    assert (shown[0]["samples"] == shown[1]["samples"]).all()
    tiles = {shown[0]["samples"][:2, 3 * i : 3 * i + 2].tobytes() for i in range(10)}
    assert len(tiles) == 10
    mean = np.asarray(encoder(data[:1]))[:, :2]
    expected = 1 / (1 + np.exp(-(mean @ decoder.w.numpy() + decoder.b.numpy())))
    np.testing.assert_allclose(shown[0]["reconstructions"][3:, :2].reshape(1, 4), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta": -1.0}, "beta=-1.0 is below 0"),
        ({"warm_up": -1}, "warm_up=-1 is below 0"),
        ({"importance_samples": -2}, "importance_samples=-2 is below 0"),
        ({"scale": 0.0}, "scale=0.0: expected a standard deviation above 0"),
        ({"least_active": 1.5}, "least_active=1.5 is outside [0, 1]: it is a share of the units"),
    ],
)
def test_what_is_out_of_range_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=exactly(message)):
        scenarios.VariationalAutoencoder(3, **settings)
