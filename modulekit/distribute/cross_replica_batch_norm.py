"""Batch normalization over the batch of all replicas."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax.numpy as jnp
from jax import lax

from modulekit.layers.batch_norm import BaseBatchNorm
from modulekit.transforms.replicas import get_replica_context


def cross_replica_moments(x: Any, axes: Sequence[int]) -> tuple[Any, Any]:
    """Returns mean and (biased) variance over axes, which are kept, and over all replicas.

    Raises:
      TypeError: inside `Replicator.scope`, where no replica runs.
    """
    context = get_replica_context()
    if context is None:
        raise TypeError(
            "Cross replica batch norm cannot be called in cross-replica context: call it in a function that Replicator.run "
            "runs, or outside of Replicator.scope"
        )
    mean = context.all_reduce("mean", jnp.mean(x, axis=tuple(axes), keepdims=True))
    squares = jnp.square(x - lax.stop_gradient(mean))
    return mean, context.all_reduce("mean", jnp.mean(squares, axis=tuple(axes), keepdims=True))


class CrossReplicaBatchNorm(BaseBatchNorm):
    """`BaseBatchNorm` whose statistics in training are those of the batch of all replicas, in `Replicator.run`.

    Args:
      create_scale: whether `scale` is trainable.
      create_offset: whether `offset` is trainable.
      moving_mean: a metric for the mean, such as an exponential moving average.
      moving_variance: a metric for the variance, which is given the biased one.
      eps: added to the variance.
      scale_init: initializer of `scale`; ones if None.
      offset_init: initializer of `offset`; zeros if None.
      data_format: where the channels are: `channels_last`, `channels_first`, `NHWC`, `NCHW` and the like.
      name: the module's name.

    Raises:
      TypeError: on a call in `Replicator.scope` that needs the batch's statistics.

    Source: Sonnet 2, `snt.distribute.CrossReplicaBatchNorm`. There the variance is the mean of the squares less the square
    of the mean; here it is the mean square of the deviations, which is the same number and loses no digits.

    >>> import modulekit as mk
    >>> average = mk.ExponentialMovingAverage
    >>> norm = mk.distribute.CrossReplicaBatchNorm(True, True, average(0.9), average(0.9))
    >>> norm(jnp.array([[1.0], [3.0]]), is_training=True).round(3).tolist()
    [[-1.0], [1.0]]
    """

    _moments: ClassVar[Callable[..., tuple[Any, Any]]] = staticmethod(cross_replica_moments)
    _corrects_rank_4: ClassVar[bool] = False
