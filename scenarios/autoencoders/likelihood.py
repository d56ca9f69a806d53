"""What a loss says about the decoder's outputs: which distribution of the inputs they stand for, and its mean."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import modulekit as mk

Loss = Callable[[Any, Any], jax.Array]


def mean_of(outputs: Any, loss: Loss) -> Any:
    """Returns the mean of the distribution that outputs stand for: for a sigmoid cross-entropy `sigmoid(outputs)`.

    With any other loss the outputs are the mean.

    Args:
      outputs: the decoder's, `[batch, ...]`.
      loss: the scenario's.

    >>> float(mean_of(jnp.zeros([]), mk.losses.sigmoid_cross_entropy)), mean_of(3.0, mk.losses.squared_error)
    (0.5, 3.0)
    """
    return jax.nn.sigmoid(outputs) if loss is mk.losses.sigmoid_cross_entropy else outputs


def negative_log_likelihood(outputs: Any, inputs: Any, loss: Loss, scale: float = 1.0) -> jax.Array:
    """Returns `-log p(inputs | outputs)` of each example in nats, `[batch]`: a sum over its values, not a mean.

    A sigmoid cross-entropy stands for Bernoulli variables whose log-odds are the outputs; a squared error for normal
    ones with the outputs as means, `-log p(x) = sum_j (x_j - outputs_j)^2 / (2 scale^2) + log(scale sqrt(2 pi))`. Any
    other loss is taken for the negative log-likelihood itself.

    Args:
      outputs: the decoder's, `[batch, ...]`.
      inputs: `[batch, ...]`.
      loss: the scenario's.
      scale: the standard deviation of the normal variables.

    >>> outputs, inputs = jnp.zeros([1, 3]), jnp.array([[0.0, 1.0, 1.0]])
    >>> round(float(negative_log_likelihood(outputs, inputs, mk.losses.sigmoid_cross_entropy)[0]), 4)  # 3 log 2
    2.0794
    """
    values = loss(outputs, inputs)
    size = math.prod(jnp.shape(inputs)[1:])
    if loss is mk.losses.sigmoid_cross_entropy:
        return size * values
    if loss is mk.losses.squared_error:
        return size * (values / (2 * scale**2) + math.log(scale) + 0.5 * math.log(2 * math.pi))
    return values
