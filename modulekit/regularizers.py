"""Regularizers: functions of variables or arrays that give a penalty to add to a loss."""

import abc
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Num

from modulekit.core.arithmetic import ArrayLike, value_of
from modulekit.core.explain import summarize


class Regularizer(abc.ABC):
    """Abstract: gives the penalty of some arrays.

    Source: Sonnet 2, `snt.regularizers.Regularizer`.

    >>> class Largest(Regularizer):
    ...     def __call__(self, tensors):
    ...         return max(jnp.max(value_of(t)) for t in tensors)
    >>> float(Largest()([jnp.ones([2])]))
    1.0
    """

    @abc.abstractmethod
    def __call__(self, tensors: Sequence[ArrayLike]) -> Num[Array, ""]:
        """Returns one number, the penalty of all arrays together.

        Args:
          tensors: variables or arrays `[...]`, of any shapes.
        """


class _Scaled(Regularizer):
    """Abstract: `scale` times the sum over the arrays of a penalty of each."""

    def __init__(self, scale: float) -> None:
        if scale < 0:
            raise ValueError(f"scale must be >=0. Received: scale={scale}")
        self.scale = scale

    def __call__(self, tensors: Sequence[ArrayLike]) -> Num[Array, ""]:
        """Returns the penalty of all arrays together, 0 if there are none.

        Args:
          tensors: variables or arrays `[...]`, of any shapes unless the class says so.
        """
        if isinstance(tensors, Iterator):
            tensors = tuple(tensors)
        if not tensors:
            return jnp.zeros_like(value_of(self.scale))
        first, *others = (self._penalty(jnp.asarray(value_of(t))) for t in tensors)
        return self.scale * sum(others, start=first)

    @abc.abstractmethod
    def _penalty(self, tensor: jax.Array) -> Any:
        """Returns the penalty of one array, before it is scaled."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}(scale={self.scale})"


class L1(_Scaled):
    """`penalty = scale sum |t|`, over all elements of all arrays.

    Args:
      scale: the factor, not negative.

    Raises:
      ValueError: a negative `scale`.

    Source: Sonnet 2, `snt.regularizers.L1`.

    >>> float(L1(0.5)([jnp.array([1.0, -2.0])]))
    1.5
    """

    def _penalty(self, tensor: jax.Array) -> Any:
        return jnp.abs(tensor).sum()


class L2(_Scaled):
    """`penalty = scale sum t^2`, over all elements of all arrays.

    Args:
      scale: the factor, not negative.

    Raises:
      ValueError: a negative `scale`.

    Source: Sonnet 2, `snt.regularizers.L2`.

    >>> float(L2(0.5)([jnp.array([1.0, -2.0])]))
    2.5
    """

    def _penalty(self, tensor: jax.Array) -> Any:
        return jnp.square(tensor).sum()


class OffDiagonalOrthogonal(_Scaled):
    """`penalty = scale sum_{i != j} (W^T W)_ij^2`, summed over all arrays `W`: 0 if the columns of `W` are orthogonal.

    `W` is an array of at least two axes, `[*rest, columns]`, with all but the last taken together as rows.

    Args:
      scale: the factor, not negative.

    Raises:
      ValueError: a negative `scale`; on the call, an array of fewer than two axes.

    Sources: Brock, Donahue, Simonyan, Large scale GAN training for high fidelity natural image synthesis, 2018,
    section 3.1; Sonnet 2, `snt.regularizers.OffDiagonalOrthogonal`.

    >>> float(OffDiagonalOrthogonal(1.0)([jnp.array([[1.0, 2.0], [0.0, 1.0]])]))
    8.0
    """

    def _penalty(self, tensor: jax.Array) -> Any:
        if tensor.ndim < 2:
            raise ValueError(f"{self!r} expects arrays of shape [..., columns], rank >= 2, got {summarize(tensor)}")
        w = tensor.reshape(-1, tensor.shape[-1])
        gram = w.T @ w
        return jnp.where(jnp.eye(len(gram), dtype=bool), 0, jnp.square(gram)).sum()
