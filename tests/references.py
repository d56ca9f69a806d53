"""What tests of layers compare with: plain loops in float64, finite differences, and eager execution."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from catalogue import assert_near

import modulekit as mk

HALF = (jnp.bfloat16, jnp.float16)
Pairs = Sequence[tuple[int, int]]


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    """Returns normal numbers in float32, the same for the same arguments."""
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


def exact(value: Any) -> np.ndarray:
    """Returns an array or variable in float64."""
    return np.asarray(value.numpy() if isinstance(value, mk.Variable) else value).astype(np.float64)


def same_padding(size: int, window: int, stride: int = 1, rate: int = 1) -> tuple[int, int]:
    """Returns what "SAME" pads: outputs at every stride, the surplus behind."""
    outputs, span = -(-size // stride), (window - 1) * rate + 1
    total = max((outputs - 1) * stride + span - size, 0)
    return total // 2, total - total // 2


def positions(sizes: Sequence[int]) -> Any:
    """Yields all positions in a grid."""
    return itertools.product(*(range(size) for size in sizes))


def convolution(
    x: np.ndarray, w: np.ndarray, stride: Sequence[int], rate: Sequence[int], padding: Pairs, groups: int = 1
) -> np.ndarray:
    """Returns the convolution of `[batch, *spatial, channels]` with `[*window, channels / groups, outputs]`, by its sum."""
    n, outputs = w.ndim - 2, w.shape[-1]
    x = np.pad(x, [(0, 0), *padding, (0, 0)])
    counts = [(x.shape[1 + a] - (w.shape[a] - 1) * rate[a] - 1) // stride[a] + 1 for a in range(n)]
    y = np.zeros([len(x), *counts, outputs])
    inputs_of_group, outputs_of_group = w.shape[-2], outputs // groups
    for p in positions(counts):
        for k in positions(w.shape[:n]):
            at = tuple(p[a] * stride[a] + k[a] * rate[a] for a in range(n))
            for g in range(groups):
                i = slice(g * inputs_of_group, (g + 1) * inputs_of_group)
                o = slice(g * outputs_of_group, (g + 1) * outputs_of_group)
                y[(slice(None), *p, o)] += x[(slice(None), *at, i)] @ w[k][:, o]
    return y


def transposed_convolution(
    x: np.ndarray,
    w: np.ndarray,
    stride: Sequence[int],
    rate: Sequence[int],
    before: Sequence[int],
    sizes: Sequence[int],
) -> np.ndarray:
    """Returns `y[q] += x[p] w[k]^T` wherever `p stride + k rate - before = q`, for `w: [*window, outputs, inputs]`."""
    n = w.ndim - 2
    y = np.zeros([len(x), *sizes, w.shape[-2]])
    for p in positions(x.shape[1:-1]):
        for k in positions(w.shape[:n]):
            q = tuple(p[a] * stride[a] + k[a] * rate[a] - before[a] for a in range(n))
            if all(0 <= q[a] < sizes[a] for a in range(n)):
                y[(slice(None), *q)] += x[(slice(None), *p)] @ w[k].T
    return y


def channels_first(x: Any) -> Any:
    """Returns `[batch, *spatial, channels]` as `[batch, channels, *spatial]`."""
    return np.moveaxis(np.asarray(x), -1, 1)


def channels_last(x: Any) -> np.ndarray:
    """Returns `[batch, channels, *spatial]` as `[batch, *spatial, channels]`."""
    return np.moveaxis(np.asarray(x), 1, -1)


def difference_quotient(loss: Callable[[np.ndarray], float], at: np.ndarray, step: float = 1e-5) -> np.ndarray:
    """Returns the gradient of a float64 function, by central differences."""
    result = np.zeros(at.shape)
    for index in np.ndindex(at.shape):
        up, down = at.copy(), at.copy()
        up[index] += step
        down[index] -= step
        result[index] = (loss(up) - loss(down)) / (2 * step)
    return result


def assert_gradients(
    layer: Callable[[jax.Array], jax.Array],
    x: np.ndarray,
    variables: Sequence[mk.Variable],
    reference: Callable[..., Any],
) -> None:
    """Asserts that the gradients to the input and to variables are those of a reference, by finite differences.

    Args:
      layer: what is called.
      x: the input.
      variables: those that it uses.
      reference: the same in NumPy, as a function of the input and the values of the variables.
    """
    image = mk.Variable(x, name="image")
    weight = normal(*np.shape(reference(exact(x), *map(exact, variables))), seed=99)
    found = mk.grad(lambda: jnp.sum(layer(image.value) * weight), [image, *variables])()
    values = [exact(x), *map(exact, variables)]
    for place, gradient in enumerate(found):

        def loss(value: np.ndarray, place: int = place) -> float:
            return float((reference(*values[:place], value, *values[place + 1 :]) * weight).sum())

        np.testing.assert_allclose(gradient, difference_quotient(loss, values[place]), rtol=2e-4, atol=2e-4)


def assert_transforms(make: Callable[[], Any], x: np.ndarray) -> None:
    """Asserts that outputs and gradients under jit, scan and vmap are the eager ones, from the first call of a module."""
    steps = jnp.stack([jnp.asarray(x), jnp.asarray(x[::-1])])

    def fresh() -> Any:
        mk.seed(3)
        return make()

    module = fresh()
    expected = jnp.stack([module(step) for step in steps])
    assert_near(mk.jit(fresh())(steps[0]), expected[0])
    scanned = fresh()
    assert_near(mk.scan(lambda _, step: (None, scanned(step)), None, steps)[1], expected)
    assert_near(mk.vmap(module)(steps), expected)
    losses = mk.grad(lambda step: jnp.sum(module(step) ** 2), module)
    assert_near(mk.jit(losses)(steps[0]), losses(steps[0]))
    assert all(np.abs(gradient).max() > 0 for gradient in losses(steps[0]))


def op_count(function: Callable[..., Any], *arguments: Any) -> int:
    """Returns the number of operations in what a function is lowered to, before the compiler sees it."""
    text = function.lower(*arguments).as_text() if hasattr(function, "lower") else ""
    assert text, "give a compiled function"
    return sum("stablehlo." in line for line in text.splitlines())


def deviation_of(variable: mk.Variable) -> tuple[float, float]:
    """Returns the deviation of a variable's values, and how far it may be from the true one by chance (5 sigma)."""
    values = exact(variable)
    return float(values.std()), 5 * float(values.std()) / math.sqrt(2 * values.size)
