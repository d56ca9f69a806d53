"""The arithmetic of a variational autoencoder: a normal posterior for each example, before a standard normal prior."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

import modulekit as mk

ACTIVE = 0.01  # the variance of a posterior mean over the data above which a unit is active


class Posterior(NamedTuple):
    """The distribution of an example's code: independent normal variables.

    Attributes:
      mean: `[batch, ...]`.
      log_variance: `[batch, ...]`.

    >>> Posterior(jnp.zeros([1, 2]), jnp.zeros([1, 2])).divergence().tolist()
    [0.0]
    """

    mean: jax.Array
    log_variance: jax.Array

    def divergence(self) -> jax.Array:
        """Returns `KL(q(z | x) || p(z)) = 1/2 sum_j (exp(s_j) + m_j^2 - 1 - s_j)` in nats, `[batch]`; `s` log-variances."""
        terms = jnp.exp(self.log_variance) + jnp.square(self.mean) - 1 - self.log_variance
        return 0.5 * _summed(terms)

    def code(self, noise: jax.Array) -> jax.Array:
        """Returns `z = m + exp(s / 2) noise`, for standard normal noise of the mean's shape."""
        return self.mean + jnp.exp(0.5 * self.log_variance) * noise

    def log_ratio(self, noise: jax.Array) -> jax.Array:
        """Returns `log p(z) - log q(z | x)` in nats, `[batch]`, for the code of some noise."""
        return 0.5 * _summed(jnp.square(noise) + self.log_variance - jnp.square(self.code(noise)))


def posterior(outputs: Any) -> Posterior:
    """Returns the posterior that an encoder's outputs stand for.

    Args:
      outputs: a pair (mean, log-variance) of one shape, `[batch, ...]`; or one array `[batch, ..., 2 units]`, the means
        before the log-variances.

    Raises:
      ValueError: they are neither.

    >>> posterior(jnp.array([[1.0, 2.0, 3.0, 4.0]])).log_variance.tolist()
    [[3.0, 4.0]]
    """
    if isinstance(outputs, tuple | list):
        if len(outputs) == 2 and jnp.shape(outputs[0]) == jnp.shape(outputs[1]):
            return Posterior(*outputs)
        found = f"a {type(outputs).__name__} of shapes {[list(jnp.shape(output)) for output in outputs]}"
    elif jnp.ndim(outputs) >= 2 and outputs.shape[-1] % 2 == 0:
        return Posterior(*jnp.split(outputs, 2, axis=-1))
    else:
        found = f"an array {list(jnp.shape(outputs))}"
    raise ValueError(
        "the encoder of a variational autoencoder must return a pair (mean, log-variance) of one shape, or one array "
        f"[batch, ..., 2 units] that holds both; it returned {found}"
    )


def bounds(
    found: Posterior,
    noises: Callable[[Any], jax.Array],
    negative_log_likelihood: Callable[[Any], jax.Array],
    count: int,
) -> tuple[jax.Array, jax.Array]:
    """Returns the mean negative log-likelihood over codes, and the importance-weighted bound, both `[batch]`, in nats.

    With `log w_k = log p(x | z_k) + log p(z_k) - log q(z_k | x)`, the bound is `log(1/K sum_k exp(log w_k)) <= log
    p(x)`.

    Args:
      found: the posterior.
      noises: returns standard normal noise of the mean's shape for the number of a code.
      negative_log_likelihood: of the examples given their codes, `[batch]`.
      count: `K`, the number of codes.

    Source: Burda, Grosse and Salakhutdinov, Importance weighted autoencoders, 2016, eq. 8.
    """

    def one(index: Any) -> tuple[jax.Array, jax.Array]:
        noise = noises(index)
        errors = negative_log_likelihood(found.code(noise))
        return errors, found.log_ratio(noise) - errors

    # One after the other: memory is that of one code.
    _, (errors, log_weights) = mk.scan(lambda carry, index: (carry, one(index)), None, jnp.arange(count))
    return errors.mean(axis=0), jax.scipy.special.logsumexp(log_weights, axis=0) - jnp.log(count)


def active_units(means: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """Returns which units of the code are active: `Var_x(E[z_j | x]) > 0.01` over the data.

    Args:
      means: of the posteriors, `[examples, ...]`.

    Source: Burda, Grosse and Salakhutdinov, 2016, section 4.1.

    >>> active_units([[0.0, 1.0], [0.1, -1.0]]).tolist()
    [False, True]
    """
    array = np.asarray(means, np.float64)
    return np.asarray(array.reshape(len(array), -1).var(axis=0) > ACTIVE)


def _summed(values: jax.Array) -> jax.Array:
    return values.reshape(len(values), -1).sum(axis=1)
