"""`Cifar10ConvNet`: a convolutional network for small images."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from modulekit.core.module import Module
from modulekit.initializers import Initializer
from modulekit.layers.batch_norm import BatchNorm
from modulekit.layers.conv import Conv2D
from modulekit.layers.data_format import spatial_axes
from modulekit.layers.linear import Linear


class Cifar10ConvNet(Module):
    """3x3 convolutions, each with batch normalization and `relu`; the mean over all positions; a linear layer.

    `h_k = relu(batch_norm_k(conv_k(h_{k-1})))`, where `h_0 = x`, and `logits = mean_p(h_n[p]) w + b`. It is about a VGG
    network with strides in place of pooling. Inputs between -1 and 1 suit the default initializers.

    Args:
      num_classes: the number of logits.
      w_init: initializer of the weights; see `Conv2D` and `Linear`.
      b_init: initializer of the biases; zeros if None.
      data_format: "NHWC", or "NCHW" for the channels first.
      output_channels: the number of outputs of each convolution.
      strides: the stride of each convolution.
      name: the module's name.

    Raises:
      ValueError: `output_channels` and `strides` of different lengths.

    Source: Sonnet 2, `snt.nets.Cifar10ConvNet`, which with the channels first takes the mean over the wrong axes.

    >>> import modulekit as mk
    >>> net = mk.nets.Cifar10ConvNet(output_channels=[8, 16], strides=[1, 2])
    >>> outputs = net(jnp.ones([2, 8, 8, 3]), is_training=True)
    >>> outputs["logits"].shape, [a.shape for a in outputs["activations"]]
    ((2, 10), [(2, 8, 8, 8), (2, 4, 4, 16), (2, 16)])
    """

    def __init__(
        self,
        num_classes: int = 10,
        w_init: Initializer | None = None,
        b_init: Initializer | None = None,
        data_format: str = "NHWC",
        output_channels: Sequence[int] = (64, 64, 128, 128, 128, 256, 256, 256, 512, 512, 512),
        strides: Sequence[int] = (1, 1, 2, 1, 1, 2, 1, 1, 2, 1, 1),
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        if len(strides) != len(output_channels):
            raise ValueError(
                "The length of `output_channels` and `strides` must be equal. Received: "
                f"{len(output_channels)} channels and {len(strides)} strides"
            )
        self.data_format = data_format
        self.conv_modules = [
            Conv2D(channels, 3, stride, w_init=w_init, b_init=b_init, data_format=data_format, name=f"conv_2d_{index}")
            for index, (channels, stride) in enumerate(zip(output_channels, strides, strict=True))
        ]
        self.bn_modules = [
            BatchNorm(
                create_scale=False,
                create_offset=True,
                decay_rate=0.999,
                data_format=data_format,
                name=f"batch_norm_{index}",
            )
            for index in range(len(self.conv_modules))
        ]
        self.logits_module = Linear(num_classes, w_init=w_init, b_init=b_init, name="logits")

    def __call__(
        self,
        inputs: Float[Array, "batch *axes"],
        is_training: bool | jax.Array,
        test_local_stats: bool | jax.Array = True,
    ) -> dict[str, Any]:
        """Returns logits and activations.

        Args:
          inputs: images, `[batch, height, width, channels]`, or with the channels where `data_format` says.
          is_training: whether to normalize with the batch's statistics and to update the moving ones.
          test_local_stats: whether to normalize with the batch's statistics outside of training too.

        Returns:
          A dict: `logits`, `[batch, num_classes]`, and `activations`, a list of the output of each `relu` and, last, of
          the mean, `[batch, output_channels[-1]]`.

        Raises:
          ValueError: another rank, or another number of channels than on the first call.
        """
        activations: list[jax.Array] = []
        outputs: jax.Array = inputs
        for conv, batch_norm in zip(self.conv_modules, self.bn_modules, strict=True):
            normalized = batch_norm(conv(outputs), is_training=is_training, test_local_stats=test_local_stats)
            outputs = jax.nn.relu(normalized)
            activations.append(outputs)
        outputs = jnp.mean(outputs, axis=tuple(spatial_axes(outputs.ndim, self.data_format)))
        activations.append(outputs)
        return {"logits": self.logits_module(outputs), "activations": activations}
