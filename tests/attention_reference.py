"""Attention in plain loops, float64: what the tests of attention compare with."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from references import exact

import modulekit as mk

PROJECTIONS = ("query", "key", "value", "output")


def softmax(scores: np.ndarray) -> np.ndarray:
    """Returns weights that sum to one."""
    powers = np.exp(scores - scores.max())
    return powers / powers.sum()


def attended(q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Returns the sum over keys, one head and query at a time; zeros where the mask leaves no key.

    Args:
      q: `[batch, query_time, heads, key_size]`.
      k: `[batch, key_time, kv_heads, key_size]`.
      v: `[batch, key_time, kv_heads, value_size]`.
      mask: `[batch, heads, query_time, key_time]`.
    """
    batch, time, heads, size = q.shape
    y = np.zeros([batch, time, heads, v.shape[-1]])
    for b, t, h in np.ndindex(batch, time, heads):
        group = h // (heads // k.shape[2])
        seen = [s for s in range(k.shape[1]) if mask[b, h, t, s]]
        if seen:
            weights = softmax(np.array([q[b, t, h] @ k[b, s, group] for s in seen]) / np.sqrt(size))
            y[b, t, h] = sum(weight * v[b, s, group] for weight, s in zip(weights, seen, strict=True))
    return y


def rotated(x: np.ndarray, first: int = 0, base: float = 10_000.0) -> np.ndarray:
    """Returns `[batch, time, heads, size]` with each pair of neighbors multiplied by its rotation matrix."""
    y = np.zeros(x.shape)
    size = x.shape[-1]
    for t in range(x.shape[1]):
        for i in range(size // 2):
            angle = (first + t) / base ** (2 * i / size)
            turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
            y[:, t, :, 2 * i : 2 * i + 2] = x[:, t, :, 2 * i : 2 * i + 2] @ turn.T
    return y


def weights_of(layer: Any) -> dict[str, mk.Variable]:
    """Returns a layer's variables by path, such as `query.w`."""
    return dict(layer.paths())


def multi_head(
    layer: Any,
    query: Any,
    key: Any = None,
    value: Any = None,
    mask: Any = True,
    weights: Mapping[str, Any] | None = None,
) -> np.ndarray:
    """Returns a `MultiHeadAttention`'s output, for its own weights where none are given."""
    named = {path: exact(weight) for path, weight in (weights or weights_of(layer)).items()}
    query = exact(query)
    key = query if key is None else exact(key)
    value = key if value is None else exact(value)

    def projected(x: np.ndarray, name: str, heads: int) -> np.ndarray:
        return (x @ named[f"{name}.w"] + named.get(f"{name}.b", 0)).reshape(*x.shape[:2], heads, -1)

    q = projected(query, "query", layer.num_heads)
    k, v = projected(key, "key", layer.num_kv_heads), projected(value, "value", layer.num_kv_heads)
    if layer.positions is not None:
        q, k = rotated(q), rotated(k)
    full = np.broadcast_to(mask, [query.shape[0], layer.num_heads, query.shape[1], key.shape[1]])
    return projected(attended(q, k, v, full).reshape(*query.shape[:2], -1), "output", 1)[:, :, 0]
