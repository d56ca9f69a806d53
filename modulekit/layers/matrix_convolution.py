"""Convolution as products of matrices, for platforms whose own convolution is slow, above all in gradients and loops.

Each window becomes a row of a matrix, which is multiplied with the kernel. Since that matrix repeats every input as often as
windows cover it, it is made for a part of the work at a time, which the caches of a processor hold, and made again for the
gradient.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from modulekit.layers.windows import stacked

_LARGEST_MATRIX = (
    4 * 2**20
)  # bytes; from 2 to 8 MB it makes no difference, above and below it costs up to twice the time
_MOST_TILES = 32  # of one example; each adds to the program
_LEAST_WORK = 2**15  # multiplications; below, it is calls that cost, not arithmetic


@functools.partial(jax.jit, static_argnames=("strides", "rates", "pairs", "groups"), inline=True)
def convolve(
    inputs: jax.Array,
    w: jax.Array,
    *,
    strides: tuple[int, ...],
    rates: tuple[int, ...],
    pairs: tuple[tuple[int, int], ...],
    groups: int,
) -> jax.Array:
    """Returns what `lax.conv_general_dilated` returns for channels in the last axis.

    Args:
      inputs: `[batch, *spatial, input_channels]`.
      w: `[*window, input_channels / groups, output_channels]`, of the same dtype.
      strides: the step of the window along each spatial axis.
      rates: the distance of the inputs that a window covers.
      pairs: how much each spatial axis is padded before and after.
      groups: into how many groups the channels are divided.

    Returns:
      `[batch, *positions, output_channels]`.
    """
    window = w.shape[:-2]
    padded = lax.pad(inputs, inputs.dtype.type(0), [(0, 0, 0), *((*pair, 0) for pair in pairs), (0, 0, 0)])
    product = functools.partial(_product, strides=strides, rates=rates, groups=groups)
    shape = jax.eval_shape(product, padded, w).shape
    example_bytes = math.prod(shape[1:-1]) * math.prod(window) * inputs.shape[-1] * inputs.dtype.itemsize
    if math.prod(window) == 1 or len(inputs) * example_bytes <= _LARGEST_MATRIX:
        return product(padded, w)

    tiles = _tile_count(shape[1], example_bytes)
    rows = shape[1] // tiles
    padded = _tiled(padded, tiles, rows * strides[0], (rows - 1) * strides[0] + (window[0] - 1) * rates[0] + 1)
    part = _largest_divisor(len(padded), _LARGEST_MATRIX * tiles // example_bytes)
    parts = padded.reshape(-1, part, *padded.shape[1:])
    made_again = jax.checkpoint(product, prevent_cse=False)
    wide = w.astype(jnp.promote_types(w.dtype, jnp.float32))  # in whose precision the gradients of the parts add up
    return lax.map(lambda inputs: made_again(inputs, wide.astype(w.dtype)), parts).reshape(shape)


def pays(inputs: jax.Array, w: jax.Array) -> bool:
    """Returns whether a convolution is large enough for products of matrices to be the faster form.

    Args:
      inputs: their size stands for the number of positions.
      w: `[*window, input_channels / groups, output_channels]`.
    """
    return inputs.size * math.prod(w.shape[:-2]) * w.shape[-1] >= _LEAST_WORK


def _product(
    inputs: jax.Array, w: jax.Array, strides: tuple[int, ...], rates: tuple[int, ...], groups: int
) -> jax.Array:
    """Returns the convolution of padded inputs, in one product."""
    *window, channels, outputs = w.shape
    windows = stacked(inputs, tuple(window), strides, rates)
    positions = windows.shape[: len(window) + 1]
    if groups == 1:
        products = windows.reshape(math.prod(positions), -1) @ w.reshape(-1, outputs)
    else:
        rows = windows.reshape(math.prod(positions), -1, groups, channels)
        kernels = w.reshape(-1, channels, groups, outputs // groups)
        products = jnp.einsum("pkgi,kigo->pgo", rows, kernels)
    return products.reshape(*positions, outputs)


def _tile_count(rows: int, example_bytes: int) -> int:
    """Returns into how many parts one example is cut along its first spatial axis, one if it need not or cannot be."""
    least = math.ceil(example_bytes / _LARGEST_MATRIX)
    return next((tiles for tiles in range(least, _MOST_TILES + 1) if rows % tiles == 0), 1)


def _tiled(inputs: jax.Array, tiles: int, step: int, height: int) -> jax.Array:
    """Returns `[batch * tiles, height, ...]`: parts of each example, `step` apart along the first spatial axis."""
    parts = [lax.slice_in_dim(inputs, tile * step, tile * step + height, axis=1) for tile in range(tiles)]
    return jnp.stack(parts, 1).reshape(-1, height, *inputs.shape[2:])


def _largest_divisor(number: int, most: int) -> int:
    """Returns the largest divisor of `number` up to `most`, 1 at least."""
    return max(divisor for divisor in range(1, max(most, 1) + 1) if number % divisor == 0)
