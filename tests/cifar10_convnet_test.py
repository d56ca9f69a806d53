"""`Cifar10ConvNet` against its layers, written out."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from references import channels_first, convolution, exact, normal, same_padding

import modulekit as mk

IMAGES = normal(4, 5, 4, 2)


@pytest.fixture(autouse=True)
def _start() -> None:
    mk.seed(0)


def make(data_format: str = "NHWC") -> Any:
    b_init = mk.initializers.RandomNormal()
    return mk.nets.Cifar10ConvNet(3, None, b_init, data_format, output_channels=[3, 2], strides=[1, 2])


def expected(net: Any, x: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """The outputs with the statistics of the batch."""
    activations = []
    for conv, norm in zip(net.conv_modules, net.bn_modules, strict=True):
        w, stride = exact(conv.w), conv.stride
        padding = [same_padding(size, 3, stride) for size in x.shape[1:3]]
        x = convolution(x, w, [stride] * 2, [1, 1], padding) + exact(conv.b)
        x = (x - x.mean(axis=(0, 1, 2))) / np.sqrt(x.var(axis=(0, 1, 2)) + norm.eps) + exact(norm.offset).ravel()
        x = np.maximum(x, 0)
        activations.append(x)
    activations.append(x.mean(axis=(1, 2)))
    return activations[-1] @ exact(net.logits_module.w) + exact(net.logits_module.b), activations


@pytest.mark.parametrize("training", [True, False])
def test_the_outputs_are_those_of_the_layers_written_out(training: bool) -> None:
    net = make()
    outputs = net(jnp.asarray(IMAGES), is_training=training)
    logits, activations = expected(net, exact(IMAGES))
    np.testing.assert_allclose(outputs["logits"], logits, rtol=1e-4, atol=1e-4)
    for found, wanted in zip(outputs["activations"], activations, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


def test_the_channels_may_come_first() -> None:
    last, first = make(), make("NCHW")
    wanted = last(jnp.asarray(IMAGES), is_training=True)
    turned = jnp.asarray(channels_first(IMAGES))
    first(turned, is_training=True)
    for theirs, ours in zip(first.trainable_variables, last.trainable_variables, strict=True):
        theirs.assign(ours.value.reshape(theirs.shape))
    np.testing.assert_allclose(first(turned, is_training=True)["logits"], wanted["logits"], rtol=1e-4, atol=1e-5)


def test_names_and_flags() -> None:
    net = make()
    net(jnp.asarray(IMAGES), is_training=True)
    assert [v.name for v in net.trainable_variables] == [
        "cifar10_conv_net/batch_norm_0/offset", "cifar10_conv_net/batch_norm_1/offset",
        "cifar10_conv_net/conv_2d_0/b", "cifar10_conv_net/conv_2d_0/w",
        "cifar10_conv_net/conv_2d_1/b", "cifar10_conv_net/conv_2d_1/w",
        "cifar10_conv_net/logits/b", "cifar10_conv_net/logits/w",
    ]  # fmt: skip
    assert {v.name.rpartition("/")[2] for v in net.non_trainable_variables} >= {"scale", "counter", "average"}


def test_training_updates_the_statistics_that_are_used_without_local_ones() -> None:
    net = make()
    net(jnp.asarray(IMAGES), is_training=True)
    before = net(jnp.asarray(IMAGES[:1]), is_training=False, test_local_stats=False)["logits"]
    net(jnp.asarray(3 * IMAGES + 1), is_training=True)
    after = net(jnp.asarray(IMAGES[:1]), is_training=False, test_local_stats=False)["logits"]
    assert np.abs(after - before).max() > 1e-3


def test_compiled_equals_eager_and_it_learns() -> None:
    net, optimizer = make(), mk.optimizers.Adam(0.02)
    labels = jnp.array([0, 1, 2, 1])
    eager = net(jnp.asarray(IMAGES), is_training=True)["logits"]
    compiled = mk.jit(lambda x: net(x, is_training=True)["logits"])(jnp.asarray(IMAGES))
    np.testing.assert_allclose(compiled, eager, rtol=1e-4, atol=1e-5)

    def loss() -> Any:
        return mk.losses.softmax_cross_entropy(net(jnp.asarray(IMAGES), is_training=True)["logits"], labels).mean()

    step = mk.jit(lambda: optimizer.minimize(loss, net))
    losses = [float(step()) for _ in range(60)]
    assert losses[-1] < 0.2 * losses[0]


def test_lengths_that_differ_are_refused() -> None:
    with pytest.raises(ValueError) as caught:
        mk.nets.Cifar10ConvNet(output_channels=[3, 2], strides=[1])
    assert str(caught.value) == (
        "The length of `output_channels` and `strides` must be equal. Received: 2 channels and 1 strides"
    )
