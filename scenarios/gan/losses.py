"""Losses of a generator and a discriminator: functions of the discriminator's outputs that return one value per example.

A discriminator's loss is `loss_d(real_logits, fake_logits)`, a generator's `loss_g(fake_logits)`, or
`loss_g(fake_logits, real_logits)` where it compares the two. Outputs are `[batch]` or `[batch, ...]`, such as one for each
patch of an image; the loss of an example is the mean over its own. They are unnormalized: no sigmoid stands before them.
`LOSSES` names the pairs that belong together.
"""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Loss = Callable[..., Any]
Logits = Float[Array, "batch *rest"]
PerExample = Float[Array, " batch"]


class LossPair(NamedTuple):
    """The losses of the two players.

    Attributes:
      loss_g: of the generator.
      loss_d: of the discriminator.
      level: the output between "fake" below and "real" above; None where outputs mean something only beside each other.

    >>> LOSSES["least_squares"].level
    0.5
    """

    loss_g: Loss
    loss_d: Loss
    level: float | None


def minimax_d(real_logits: Logits, fake_logits: Logits) -> PerExample:
    """Returns the cross-entropy of telling real from fake: `loss = -log s(r) - log(1 - s(f))`, `s` the sigmoid.

    Args:
      real_logits: `r`, `[batch, ...]`.
      fake_logits: `f`, the same shape.

    Source: Goodfellow et al., Generative adversarial nets, 2014, equation 1.

    >>> round(float(minimax_d(jnp.zeros([1]), jnp.zeros([1]))[0]), 4)
    1.3863
    """
    _check(real_logits, fake_logits)
    return _per_example(jax.nn.softplus(-real_logits) + jax.nn.softplus(fake_logits))


def minimax_g(fake_logits: Logits) -> PerExample:
    """Returns what the generator of the minimax game minimizes: `loss = log(1 - s(f))`, `s` the sigmoid.

    Its gradient vanishes where the discriminator is sure; see `non_saturating_g`.

    Args:
      fake_logits: `f`, `[batch, ...]`.

    Source: Goodfellow et al., Generative adversarial nets, 2014, equation 1.

    >>> round(float(minimax_g(jnp.zeros([1]))[0]), 4)
    -0.6931
    """
    return _per_example(-jax.nn.softplus(fake_logits))


def non_saturating_g(fake_logits: Logits) -> PerExample:
    """Returns the cross-entropy of the fake passing for real: `loss = -log s(f)`, `s` the sigmoid.

    Args:
      fake_logits: `f`, `[batch, ...]`.

    Source: Goodfellow et al., Generative adversarial nets, 2014, section 3.

    >>> round(float(non_saturating_g(jnp.zeros([1]))[0]), 4)
    0.6931
    """
    return _per_example(jax.nn.softplus(-fake_logits))


def least_squares_d(real_logits: Logits, fake_logits: Logits) -> PerExample:
    """Returns the distance to 1 for real and 0 for fake: `loss = ((r - 1)^2 + f^2) / 2`.

    Args:
      real_logits: `r`, `[batch, ...]`.
      fake_logits: `f`, the same shape.

    Source: Mao et al., Least squares generative adversarial networks, 2017, equation 9.

    >>> least_squares_d(jnp.zeros([1]), jnp.ones([1])).tolist()
    [1.0]
    """
    _check(real_logits, fake_logits)
    return _per_example((jnp.square(real_logits - 1) + jnp.square(fake_logits)) / 2)


def least_squares_g(fake_logits: Logits) -> PerExample:
    """Returns the distance of the fake to 1: `loss = (f - 1)^2 / 2`.

    Args:
      fake_logits: `f`, `[batch, ...]`.

    Source: Mao et al., Least squares generative adversarial networks, 2017, equation 9.

    >>> least_squares_g(jnp.zeros([1])).tolist()
    [0.5]
    """
    return _per_example(jnp.square(fake_logits - 1) / 2)


def hinge_d(real_logits: Logits, fake_logits: Logits) -> PerExample:
    """Returns by how much real falls short of 1, and fake exceeds -1: `loss = max(0, 1 - r) + max(0, 1 + f)`.

    Args:
      real_logits: `r`, `[batch, ...]`.
      fake_logits: `f`, the same shape.

    Source: Lim and Ye, Geometric GAN, 2017; Miyato et al., Spectral normalization for generative adversarial networks, 2018,
    equation 16.

    >>> hinge_d(jnp.array([2.0]), jnp.array([0.5])).tolist()
    [1.5]
    """
    _check(real_logits, fake_logits)
    return _per_example(jax.nn.relu(1 - real_logits) + jax.nn.relu(1 + fake_logits))


def wasserstein_d(real_logits: Logits, fake_logits: Logits) -> PerExample:
    """Returns the critic's estimate of the Wasserstein distance, negated: `loss = f - r`.

    It is one only for a critic of bounded slope: see the settings `clip` and `gradient_penalty` of `GAN`.

    Args:
      real_logits: `r`, `[batch, ...]`.
      fake_logits: `f`, the same shape.

    Source: Arjovsky et al., Wasserstein GAN, 2017, equation 3.

    >>> wasserstein_d(jnp.array([2.0]), jnp.array([0.5])).tolist()
    [-1.5]
    """
    _check(real_logits, fake_logits)
    return _per_example(fake_logits - real_logits)


def wasserstein_g(fake_logits: Logits) -> PerExample:
    """Returns the output for the fake, negated: `loss = -f`. It is also the generator's loss beside `hinge_d`.

    Args:
      fake_logits: `f`, `[batch, ...]`.

    Source: Arjovsky et al., Wasserstein GAN, 2017, equation 4.

    >>> wasserstein_g(jnp.array([0.5])).tolist()
    [-0.5]
    """
    return _per_example(-fake_logits)


def relativistic_d(real_logits: Logits, fake_logits: Logits) -> PerExample:
    """Returns the loss for telling each from the mean of the others: `loss = -log s(r - mean(f)) - log(1 - s(f - mean(r)))`.

    Args:
      real_logits: `r`, `[batch, ...]`.
      fake_logits: `f`, the same shape.

    Source: Jolicoeur-Martineau, The relativistic discriminator, 2018, the relativistic average loss (equations 7 and 8).

    >>> round(float(relativistic_d(jnp.array([1.0]), jnp.array([1.0]))[0]), 4)
    1.3863
    """
    _check(real_logits, fake_logits)
    real, fake = real_logits - fake_logits.mean(), fake_logits - real_logits.mean()
    return _per_example(jax.nn.softplus(-real) + jax.nn.softplus(fake))


def relativistic_g(fake_logits: Logits, real_logits: Logits) -> PerExample:
    """Returns the same with the parts exchanged: `loss = -log s(f - mean(r)) - log(1 - s(r - mean(f)))`.

    Args:
      fake_logits: `f`, `[batch, ...]`.
      real_logits: `r`, the same shape.

    Source: Jolicoeur-Martineau, The relativistic discriminator, 2018, the relativistic average loss (equations 7 and 8).

    >>> round(float(relativistic_g(jnp.array([1.0]), jnp.array([1.0]))[0]), 4)
    1.3863
    """
    return relativistic_d(fake_logits, real_logits)


LOSSES: dict[str, LossPair] = {
    "non_saturating": LossPair(non_saturating_g, minimax_d, 0.0),
    "minimax": LossPair(minimax_g, minimax_d, 0.0),
    "least_squares": LossPair(least_squares_g, least_squares_d, 0.5),
    "hinge": LossPair(wasserstein_g, hinge_d, 0.0),
    "wasserstein": LossPair(wasserstein_g, wasserstein_d, None),
    "relativistic": LossPair(relativistic_g, relativistic_d, None),
}


def compares(loss_g: Loss) -> bool:
    """Returns whether a generator's loss also takes the outputs for real examples.

    >>> compares(relativistic_g), compares(non_saturating_g)
    (True, False)
    """
    try:
        parameters = inspect.signature(loss_g).parameters.values()
    except (TypeError, ValueError):
        return False
    needed = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.default is p.empty]
    return len(needed) > 1


def shares_told_apart(real_logits: Logits, fake_logits: Logits, level: float | None) -> tuple[Array, Array]:
    """Returns the share of real outputs above a level, and that of fake ones below.

    Args:
      real_logits: `[batch, ...]`.
      fake_logits: the same shape.
      level: the output between the two; None for the middle between the mean outputs for real and fake.
    """
    middle = (real_logits.mean() + fake_logits.mean()) / 2 if level is None else level
    return (real_logits > middle).mean(), (fake_logits < middle).mean()


def _check(real_logits: Array, fake_logits: Array) -> None:
    if jnp.shape(real_logits) != jnp.shape(fake_logits):
        raise ValueError(
            f"expected as many outputs for real as for fake examples, got {list(jnp.shape(real_logits))} and "
            f"{list(jnp.shape(fake_logits))}: let the discriminator return [batch] or [batch, ...] for both"
        )


def _per_example(values: Array) -> Array:
    if values.ndim == 0:
        raise ValueError(
            "expected outputs [batch] or [batch, ...], got a scalar: leave the mean over the batch to the GAN"
        )
    return values.mean(axis=tuple(range(1, values.ndim)))
