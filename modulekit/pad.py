"""Paddings: how much is put before and after an axis before a window slides over it.

A padding is a function of the effective kernel size, which is what a kernel spans once its rate has spread it:
`(kernel - 1) * rate + 1`. A layer takes one for all its spatial axes or one for each.
"""

from collections.abc import Callable, Sequence
from typing import Any

from modulekit.core.explain import summarize

Padding = Callable[[int], Sequence[int]] | Sequence[int]
Paddings = Padding | Sequence[Padding]

__all__ = ["causal", "create", "full", "reverse_causal", "same", "valid"]


def valid(effective_kernel_size: int) -> list[int]:
    """Pads nothing: `before = after = 0`.

    Args:
      effective_kernel_size: `k`, what the kernel spans: `(kernel - 1) * rate + 1`.

    Returns:
      `[before, after]`.

    Source: Sonnet 2, `snt.pad.valid`.

    >>> valid(5)
    [0, 0]
    """
    return [0, 0]


def same(effective_kernel_size: int) -> list[int]:
    """Pads so that a window with stride 1 gives as many outputs as inputs: `before = (k - 1) // 2`, `after = k // 2`.

    Args:
      effective_kernel_size: `k`, what the kernel spans: `(kernel - 1) * rate + 1`.

    Returns:
      `[before, after]`.

    Source: Sonnet 2, `snt.pad.same`.

    >>> same(5), same(4)
    ([2, 2], [1, 2])
    """
    return [(effective_kernel_size - 1) // 2, effective_kernel_size // 2]


def full(effective_kernel_size: int) -> list[int]:
    """Pads as much as leaves one input under each window: `before = after = k - 1`.

    Args:
      effective_kernel_size: `k`, what the kernel spans: `(kernel - 1) * rate + 1`.

    Returns:
      `[before, after]`.

    Source: Sonnet 2, `snt.pad.full`.

    >>> full(5)
    [4, 4]
    """
    return [effective_kernel_size - 1, effective_kernel_size - 1]


def causal(effective_kernel_size: int) -> list[int]:
    """Pads before the axis, so that no output depends on a later input: `before = k - 1`, `after = 0`.

    Args:
      effective_kernel_size: `k`, what the kernel spans: `(kernel - 1) * rate + 1`.

    Returns:
      `[before, after]`.

    Source: Sonnet 2, `snt.pad.causal`.

    >>> causal(5)
    [4, 0]
    """
    return [effective_kernel_size - 1, 0]


def reverse_causal(effective_kernel_size: int) -> list[int]:
    """Pads after the axis, so that no output depends on an earlier input: `before = 0`, `after = k - 1`.

    Args:
      effective_kernel_size: `k`, what the kernel spans: `(kernel - 1) * rate + 1`.

    Returns:
      `[before, after]`.

    Source: Sonnet 2, `snt.pad.reverse_causal`.

    >>> reverse_causal(5)
    [0, 4]
    """
    return [0, effective_kernel_size - 1]


def create(
    padding: Paddings,
    kernel: int | Sequence[int],
    rate: int | Sequence[int],
    n: int,
    channel_index: int,
) -> list[list[int]]:
    """Returns what to pad on every axis of an input, batch and channels included.

    It is `[before, after] = padding((kernel - 1) * rate + 1)` for a spatial axis, and `[0, 0]` for batch and channels.

    Args:
      padding: a function of the effective kernel size that returns `[before, after]`, or a sequence of one or `n` of
        them. In place of a function may stand what it would return.
      kernel: the kernel size, one for all spatial axes or one for each.
      rate: the dilation rate, one for all spatial axes or one for each.
      n: the number of spatial axes.
      channel_index: 1 if channels come before the spatial axes; anything else if they come last.

    Returns:
      `n + 2` lists `[before, after]`.

    Raises:
      TypeError: a sequence has neither 1 nor `n` elements, or a padding is neither a function nor a sequence.
      ValueError: a padding is not two numbers, 0 or above.

    Source: Sonnet 2, `snt.pad.create`. Pairs of numbers are an addition.

    >>> create(causal, kernel=3, rate=[1, 2], n=2, channel_index=-1)
    [[0, 0], [2, 0], [4, 0], [0, 0]]
    """
    kernels, rates = per_axis(kernel, n, "kernel"), per_axis(rate, n, "rate")
    paddings = per_axis(padding, n, "padding")
    spatial = [_pair(p, (k - 1) * r + 1) for p, k, r in zip(paddings, kernels, rates, strict=True)]
    return [[0, 0], [0, 0], *spatial] if channel_index == 1 else [[0, 0], *spatial, [0, 0]]


def _pair(padding: Any, effective_kernel_size: int) -> list[int]:
    if not callable(padding) and (padding is None or isinstance(padding, str | int)):
        raise TypeError(
            f"padding {summarize(padding)} is not callable: expected a function of the effective kernel size, such as "
            "mk.pad.same, or [before, after]"
        )
    pair = padding(effective_kernel_size) if callable(padding) else padding
    if pair is None or isinstance(pair, str | int) or len(pair) != 2 or min(pair) < 0:
        raise ValueError(
            f"padding {summarize(padding)} gives {summarize(pair)} for an effective kernel size of "
            f"{effective_kernel_size}: expected [before, after], two numbers from 0"
        )
    return [int(pair[0]), int(pair[1])]


def per_axis(value: Any, n: int, name: str) -> tuple[Any, ...]:
    """Returns `n` values: one repeated, or a sequence of `n` as it is.

    Args:
      value: one value, or a sequence of one or `n` of them.
      n: the number of axes.
      name: what the value is, for the message.

    Raises:
      TypeError: a sequence has neither 1 nor `n` elements.
    """
    if not isinstance(value, Sequence) or isinstance(value, str):
        return (value,) * n
    if len(value) not in (1, n):
        raise TypeError(
            f"{name} must be a scalar or sequence of length 1 or sequence of length {n}. "
            f"Received: {name}={summarize(value)}"
        )
    return tuple(value) * n if len(value) == 1 else tuple(value)
