"""Residual networks: `ResNet`, `ResNet50` and their blocks."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from modulekit import pad
from modulekit.core.module import Module
from modulekit.initializers import Zeros
from modulekit.layers.batch_norm import BatchNorm
from modulekit.layers.conv import Conv2D
from modulekit.layers.linear import Linear

Stride = int | Sequence[int]
_GROUPS = 4


def _conv(channels: int, kernel_shape: int, stride: Stride, name: str) -> Conv2D:
    return Conv2D(channels, kernel_shape, stride, padding=pad.same, with_bias=False, name=name)


def _norm(bn_config: Mapping[str, Any], name: str, **options: Any) -> BatchNorm:
    return BatchNorm(**{"create_scale": True, "create_offset": True, **options, **bn_config}, name=name)


class BottleNeckBlockV1(Module):
    """`y = relu(x' + f(x))`, where `f` is three convolutions, each normalized, and `x'` is `x` or its projection.

    `f(x) = norm_2(conv_2(relu(norm_1(conv_1(relu(norm_0(conv_0(x))))))))`, with windows of 1x1, 3x3 and 1x1, and
    `x' = norm(conv(x))` with one of 1x1.

    Args:
      channels: the number of output channels; a quarter of it inside.
      stride: of the 3x3 convolution and the projection.
      use_projection: whether x is projected by a 1x1 convolution; it must be where the shape changes.
      bn_config: arguments of `BatchNorm`, such as `decay_rate` and `eps`.
      name: the module's name.

    Sources: He et al., Deep residual learning for image recognition, 2015, figure 5; the stride in the 3x3 convolution and
    the zero initial scale of the last normalization follow Goyal et al., 2017, as in Sonnet 2.

    >>> import modulekit as mk
    >>> block = mk.nets.resnet.BottleNeckBlockV1(8, stride=2, use_projection=True, bn_config={})
    >>> block(jnp.ones([1, 4, 4, 3]), is_training=True).shape
    (1, 2, 2, 8)
    """

    def __init__(
        self,
        channels: int,
        stride: Stride,
        use_projection: bool,
        bn_config: Mapping[str, float],
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        self.use_projection = use_projection
        if use_projection:
            self._proj_conv = _conv(channels, 1, stride, "shortcut_conv")
            self._proj_batchnorm = _norm(bn_config, "shortcut_batchnorm")
        self._layers: list[list[Any]] = [
            [_conv(channels // 4, 1, 1, "conv_0"), _norm(bn_config, "batchnorm_0")],
            [_conv(channels // 4, 3, stride, "conv_1"), _norm(bn_config, "batchnorm_1")],
            [_conv(channels, 1, 1, "conv_2"), _norm(bn_config, "batchnorm_2", scale_init=Zeros())],
        ]

    def __call__(self, inputs: Float[Array, "batch height width channels"], is_training: bool) -> jax.Array:
        """Returns `[batch, height / stride, width / stride, channels]`.

        Args:
          inputs: `[batch, height, width, input_channels]`.
          is_training: whether to use and update the batch's statistics.
        """
        shortcut = inputs
        if self.use_projection:
            shortcut = self._proj_batchnorm(self._proj_conv(inputs), is_training=is_training)
        net = inputs
        for index, (conv, norm) in enumerate(self._layers):
            net = norm(conv(net), is_training=is_training)
            net = jax.nn.relu(net) if index < len(self._layers) - 1 else net
        return jax.nn.relu(net + shortcut)


class BottleNeckBlockV2(Module):
    """`y = x' + f(a)`, where `f` is three convolutions, `a = relu(norm_0(x))`, and `x'` is `x` or a projection of `a`.

    `f(a) = conv_2(relu(norm_2(conv_1(relu(norm_1(conv_0(a)))))))`, with windows of 1x1, 3x3 and 1x1, and `x' = conv(a)` with
    one of 1x1.

    Args:
      channels: the number of output channels; a quarter of it inside.
      stride: of the 3x3 convolution and the projection.
      use_projection: whether the first normalized input is projected by a 1x1 convolution.
      bn_config: arguments of `BatchNorm`, such as `decay_rate` and `eps`.
      name: the module's name.

    Sources: He et al., Identity mappings in deep residual networks, 2016, figure 4e; Sonnet 2,
    `snt.nets.resnet.BottleNeckBlockV2`.

    >>> import modulekit as mk
    >>> block = mk.nets.resnet.BottleNeckBlockV2(8, stride=2, use_projection=True, bn_config={})
    >>> block(jnp.ones([1, 4, 4, 3]), is_training=True).shape
    (1, 2, 2, 8)
    """

    def __init__(
        self,
        channels: int,
        stride: Stride,
        use_projection: bool,
        bn_config: Mapping[str, float],
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        self.use_projection = use_projection
        if use_projection:
            self._proj_conv = _conv(channels, 1, stride, "shortcut_conv")
        self._conv_0 = _conv(channels // 4, 1, 1, "conv_0")
        self._bn_0 = _norm(bn_config, "batchnorm_0")
        self._conv_1 = _conv(channels // 4, 3, stride, "conv_1")
        self._bn_1 = _norm(bn_config, "batchnorm_1")
        self._conv_2 = _conv(channels, 1, 1, "conv_2")
        self._bn_2 = _norm(bn_config, "batchnorm_2")

    def __call__(self, inputs: Float[Array, "batch height width channels"], is_training: bool) -> jax.Array:
        """Returns `[batch, height / stride, width / stride, channels]`.

        Args:
          inputs: `[batch, height, width, input_channels]`.
          is_training: whether to use and update the batch's statistics.
        """
        first = jax.nn.relu(self._bn_0(inputs, is_training=is_training))
        shortcut = self._proj_conv(first) if self.use_projection else inputs
        net = self._conv_0(first)
        net = self._conv_1(jax.nn.relu(self._bn_1(net, is_training=is_training)))
        net = self._conv_2(jax.nn.relu(self._bn_2(net, is_training=is_training)))
        return net + shortcut


class BlockGroup(Module):
    """Blocks one after the other, `y = block_n(... block_2(block_1(x)))`; the first has the stride and a projection.

    Args:
      channels: the number of output channels.
      num_blocks: how many blocks.
      stride: of the first block.
      bn_config: arguments of `BatchNorm`.
      resnet_v2: whether the blocks are `BottleNeckBlockV2`.
      name: the module's name.

    Source: Sonnet 2, `snt.nets.resnet.BlockGroup`.

    >>> import modulekit as mk
    >>> group = mk.nets.resnet.BlockGroup(8, num_blocks=2, stride=2, bn_config={})
    >>> group(jnp.ones([1, 4, 4, 3]), is_training=True).shape
    (1, 2, 2, 8)
    """

    def __init__(
        self,
        channels: int,
        num_blocks: int,
        stride: Stride,
        bn_config: Mapping[str, float],
        resnet_v2: bool = False,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        block = BottleNeckBlockV2 if resnet_v2 else BottleNeckBlockV1
        self._blocks = [
            block(channels, stride if index == 0 else 1, index == 0, bn_config, name=f"block_{index}")
            for index in range(num_blocks)
        ]

    def __call__(self, inputs: Float[Array, "batch height width channels"], is_training: bool) -> jax.Array:
        """Returns the last block's output, `[batch, height / stride, width / stride, channels]`.

        Args:
          inputs: `[batch, height, width, input_channels]`.
          is_training: whether to use and update the batch's statistics.
        """
        net = inputs
        for block in self._blocks:
            net = block(net, is_training=is_training)
        return net


class ResNet(Module):
    """A 7x7 convolution, max pooling, four groups of bottleneck blocks, average pooling, and a linear classifier.

    `logits = mean_p(groups(max_pool(relu(norm(conv(x)))))[p]) w + b`, the mean over all positions. Version 2 normalizes
    after the groups, and not before the pooling: `logits = mean_p(relu(norm(groups(max_pool(conv(x)))))[p]) w + b`.

    Args:
      blocks_per_group_list: the number of blocks in each of the four groups.
      num_classes: the number of logits.
      bn_config: arguments of `BatchNorm`; `{"decay_rate": 0.9, "eps": 1e-5}` if None.
      resnet_v2: whether to normalize before each convolution (version 2) or after it (version 1).
      channels_per_group_list: the output channels of each of the four groups.
      name: the module's name.

    Raises:
      ValueError: a list is not of length 4.

    Sources: He et al., 2015 and 2016; Sonnet 2, `snt.nets.ResNet`.

    >>> import modulekit as mk
    >>> net = mk.nets.ResNet([1, 1, 1, 1], 10, channels_per_group_list=[4, 8, 8, 8])
    >>> mk.build(net, [1, 32, 32, 3], is_training=False).shape
    (1, 10)
    """

    def __init__(
        self,
        blocks_per_group_list: Sequence[int],
        num_classes: int,
        bn_config: Mapping[str, float] | None = None,
        resnet_v2: bool = False,
        channels_per_group_list: Sequence[int] = (256, 512, 1024, 2048),
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        _check_length("blocks_per_group_list", blocks_per_group_list)
        _check_length("channels_per_group_list", channels_per_group_list)
        config = {"decay_rate": 0.9, "eps": 1e-5} if bn_config is None else bn_config
        self.resnet_v2 = resnet_v2
        self._initial_conv = _conv(64, 7, 2, "initial_conv")
        if resnet_v2:
            self._final_batchnorm = _norm(config, "final_batchnorm")
        else:
            self._initial_batchnorm = _norm(config, "initial_batchnorm")
        sizes = zip(channels_per_group_list, blocks_per_group_list, (1, 2, 2, 2), strict=True)
        self._block_groups = [
            BlockGroup(channels, blocks, stride, config, resnet_v2, name=f"block_group_{index}")
            for index, (channels, blocks, stride) in enumerate(sizes)
        ]
        self._logits = Linear(num_classes, w_init=Zeros(), name="logits")

    def __call__(self, inputs: Float[Array, "batch height width channels"], is_training: bool) -> jax.Array:
        """Returns logits, `[batch, num_classes]`.

        Args:
          inputs: `[batch, height, width, channels]`.
          is_training: whether to use and update the batch's statistics.
        """
        net = self._initial_conv(inputs)
        if not self.resnet_v2:
            net = jax.nn.relu(self._initial_batchnorm(net, is_training=is_training))
        net = lax.reduce_window(net, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "SAME")
        for group in self._block_groups:
            net = group(net, is_training)
        if self.resnet_v2:
            net = jax.nn.relu(self._final_batchnorm(net, is_training=is_training))
        return self._logits(net.mean(axis=(1, 2)))


class ResNet50(ResNet):
    """`ResNet` with 3, 4, 6 and 3 blocks: 49 convolutions (projections apart) and one linear layer.

    `logits = mean_p(groups(max_pool(relu(norm(conv(x)))))[p]) w + b`, as in `ResNet`.

    Args:
      num_classes: the number of logits.
      bn_config: arguments of `BatchNorm`; `{"decay_rate": 0.9, "eps": 1e-5}` if None.
      resnet_v2: whether to normalize before each convolution.
      name: the module's name.

    Source: He et al., 2015, table 1; Sonnet 2, `snt.nets.ResNet50`.

    >>> import modulekit as mk
    >>> mk.nets.ResNet50(10).name
    'res_net50'
    """

    def __init__(
        self,
        num_classes: int,
        bn_config: Mapping[str, float] | None = None,
        resnet_v2: bool = False,
        name: str | None = None,
    ) -> None:
        super().__init__([3, 4, 6, 3], num_classes, bn_config, resnet_v2, name=name)


def _check_length(argument: str, given: Sequence[int]) -> None:
    if len(given) != _GROUPS:
        raise ValueError(f"`{argument}` must be of length {_GROUPS} not {len(given)}")
