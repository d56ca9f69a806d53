"""Batch normalization, with moving averages for use after training."""

import functools
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from modulekit.core import names
from modulekit.core.arithmetic import array_of
from modulekit.core.module import Module
from modulekit.core.once import once
from modulekit.initializers import Initializer
from modulekit.layers import affine
from modulekit.layers.data_format import channel_index
from modulekit.layers.inputs import location
from modulekit.layers.layer_norm import moments
from modulekit.metrics import ExponentialMovingAverage, Metric
from modulekit.transforms.control import cond


class BaseBatchNorm(Module):
    """`y = scale (x - mean) / sqrt(variance + eps) + offset`, mean and variance per channel, over a batch.

    In training they are the batch's own, and update the two metrics; afterwards they are the metrics' values.

    Args:
      create_scale: whether `scale` is trainable.
      create_offset: whether `offset` is trainable.
      moving_mean: a metric for the mean, such as an exponential moving average.
      moving_variance: a metric for the variance.
      eps: added to the variance.
      scale_init: initializer of `scale`; ones if None.
      offset_init: initializer of `offset`; zeros if None.
      data_format: where the channels are: `channels_last`, `channels_first`, `NHWC`, `NCHW` and the like.
      name: the module's name.

    Attributes:
      scale: `[channels]`, or `[channels, 1, ...]` with the channels first. Made on the first call, and there even without
        `create_scale`, not trainable then.
      offset: likewise.

    Raises:
      ValueError: an initializer without what it initializes, or an unknown data format.

    Sources: Ioffe and Szegedy, Batch normalization, 2015; Sonnet 2, `snt.BaseBatchNorm`. As there, where the input has rank
    4 and the channels last, the variance that the metric is given is the unbiased one, `n / (n - 1)` times the other; and
    a scale or offset given in the call does not change which variables there are.

    >>> import modulekit as mk
    >>> norm = mk.BatchNorm(create_scale=True, create_offset=True)
    >>> norm(jnp.array([[1.0], [3.0]]), is_training=True).round(3).tolist()
    [[-1.0], [1.0]]
    """

    # Of a batch: its mean and variance over some axes, and whether the variance of rank 4 is corrected for the metric.
    _moments: ClassVar[Callable[..., tuple[Any, Any]]] = staticmethod(moments)
    _corrects_rank_4: ClassVar[bool] = True

    def __init__(
        self,
        create_scale: bool,
        create_offset: bool,
        moving_mean: Metric,
        moving_variance: Metric,
        eps: float = 1e-5,
        scale_init: Initializer | None = None,
        offset_init: Initializer | None = None,
        data_format: str = "channels_last",
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        channel_index(data_format)
        affine.check_choices(create_scale, create_offset, scale_init, offset_init)
        self.moving_mean = moving_mean
        self.moving_variance = moving_variance
        self.create_scale = create_scale
        self.create_offset = create_offset
        self.eps = eps
        self.scale_init = scale_init
        self.offset_init = offset_init
        self.data_format = data_format

    @once
    def _initialize(self, inputs: Any) -> None:
        shape = affine.parameter_shape(inputs.shape, self.data_format)
        axes = self._axes(inputs)
        statistics = jnp.zeros([1 if axis in axes else size for axis, size in enumerate(inputs.shape)], inputs.dtype)
        self.moving_mean.initialize(statistics)
        self.moving_variance.initialize(statistics)
        self.scale = affine.made_scale(self.scale_init, shape, inputs.dtype, self.create_scale)
        self.offset = affine.made_offset(self.offset_init, shape, inputs.dtype, self.create_offset)

    def __call__(
        self,
        inputs: Float[Array, "batch *rest"],
        is_training: bool | jax.Array,
        test_local_stats: bool | jax.Array = False,
        scale: Any = None,
        offset: Any = None,
    ) -> jax.Array:
        """Returns the normalized inputs, and in training updates the moving averages.

        Args:
          inputs: `[batch, ..., channels]`, or `[batch, channels, ...]` with the channels first.
          is_training: whether to use the batch's statistics and to update the moving ones; may be traced.
          test_local_stats: whether to use the batch's statistics without training; may be traced.
          scale: stands for a module's scale that is not created; broadcast to the inputs.
          offset: likewise.

        Returns:
          An array of the shape and dtype of `inputs`.

        Raises:
          ValueError: a `scale` or `offset` that the module creates itself.
        """
        inputs = array_of(inputs)
        _refuse(self, "scale", self.create_scale, scale)
        _refuse(self, "offset", self.create_offset, offset)
        self._initialize(inputs)
        mean, variance = self._statistics(inputs, is_training, test_local_stats)
        normalized = (inputs - mean.astype(inputs.dtype)) * lax.rsqrt(variance + self.eps).astype(inputs.dtype)
        return affine.applied(
            normalized,
            self.scale.value if scale is None else array_of(scale),
            self.offset.value if offset is None else array_of(offset),
        )

    def _axes(self, inputs: Any) -> tuple[int, ...]:
        channels = channel_index(self.data_format) % inputs.ndim
        return tuple(axis for axis in range(inputs.ndim) if axis != channels)

    def _statistics(self, inputs: jax.Array, is_training: Any, test_local_stats: Any) -> tuple[Any, Any]:
        """Returns mean and variance to normalize with, and in training updates the moving ones."""
        is_known = not isinstance(is_training, jax.Array) and not isinstance(test_local_stats, jax.Array)
        if is_known and not (is_training or test_local_stats):
            return self.moving_mean.value, self.moving_variance.value
        mean, variance = self._moments(inputs.astype(jnp.promote_types(inputs.dtype, jnp.float32)), self._axes(inputs))
        if not isinstance(is_training, jax.Array):
            if is_training:
                self._update(inputs, mean, variance)
        else:
            cond(is_training, functools.partial(self._update, inputs), lambda mean, variance: None, mean, variance)
        if is_known:
            return mean, variance
        use_batch = jnp.logical_or(is_training, test_local_stats)
        return (
            jnp.where(use_batch, mean, self.moving_mean.value),
            jnp.where(use_batch, variance, self.moving_variance.value),
        )

    def _update(self, inputs: Any, mean: Any, variance: Any) -> None:
        if self._corrects_rank_4 and inputs.ndim == 4 and channel_index(self.data_format) == -1:
            count = inputs.size // inputs.shape[-1]
            variance = variance * (count / max(count - 1, 1))
        mean, variance = lax.stop_gradient((mean.astype(inputs.dtype), variance.astype(inputs.dtype)))
        self.moving_mean.update(mean)
        self.moving_variance.update(variance)


class BatchNorm(BaseBatchNorm):
    """`y = scale (x - mean) / sqrt(variance + eps) + offset`, mean and variance per channel, over a batch.

    It is a `BaseBatchNorm` whose metrics are exponential moving averages.

    Args:
      create_scale: whether `scale` is trainable.
      create_offset: whether `offset` is trainable.
      decay_rate: of the moving averages, in [0, 1).
      eps: added to the variance.
      scale_init: initializer of `scale`; ones if None.
      offset_init: initializer of `offset`; zeros if None.
      data_format: where the channels are.
      name: the module's name.

    Sources: Ioffe and Szegedy, Batch normalization, 2015; Sonnet 2, `snt.BatchNorm`.

    >>> import modulekit as mk
    >>> norm = mk.BatchNorm(create_scale=False, create_offset=False, decay_rate=0.9)
    >>> _ = norm(jnp.array([[1.0], [3.0]]), is_training=True)
    >>> norm(jnp.array([[4.0]]), is_training=False).round(3).tolist()
    [[2.0]]
    """

    def __init__(
        self,
        create_scale: bool,
        create_offset: bool,
        decay_rate: float = 0.999,
        eps: float = 1e-5,
        scale_init: Initializer | None = None,
        offset_init: Initializer | None = None,
        data_format: str = "channels_last",
        name: str | None = None,
    ) -> None:
        with names.name_scope(name or "batch_norm"):
            moving_mean = ExponentialMovingAverage(decay_rate, name="moving_mean")
            moving_variance = ExponentialMovingAverage(decay_rate, name="moving_variance")
        super().__init__(
            create_scale, create_offset, moving_mean, moving_variance, eps, scale_init, offset_init, data_format, name
        )


def _refuse(module: Module, name: str, created: bool, given: Any) -> None:
    if created and given is not None:
        raise ValueError(f"{location(module)}: Cannot pass `{name}` at call time if `create_{name}=True`.")
