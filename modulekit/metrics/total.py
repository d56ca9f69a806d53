"""Sums over examples that do not depend on how the examples were batched."""

from typing import Any, Self, final

import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped

from modulekit.core.arithmetic import value_of
from modulekit.core.explain import summarize
from modulekit.core.variable import Variable
from modulekit.metrics.statistic import Statistic


@final
class Total(Statistic):
    """The sum over examples, `total = sum_i x_i`, of one array `x_i` per example, given as `[batch, ...]`.

    An integer total is an int32: exact, up to 2^31 - 1. A real one is kept in two float32 numbers, the second one for what
    the first has rounded off (Knuth's TwoSum), so that its error does not grow with the number of examples.

    Args:
      shape: that of one example's array.
      dtype: int32, or float32.
      name: the module's name.

    Source: Knuth, The Art of Computer Programming 2, 1997, 4.2.2.

    >>> total = Total([2])
    >>> total.add(jnp.array([[2.0**25, 0.0], [1.0, 3.0]]))
    >>> total.add(jnp.array([[-(2.0**25), 1.0]]))
    >>> total.value.tolist()
    [1.0, 4.0]
    """

    def __init__(self, shape: Any = (), dtype: Any = jnp.float32, name: str | None = None) -> None:
        super().__init__(name=name)
        self.sum = Variable(jnp.zeros(shape, dtype), trainable=False, name="sum")
        self.compensation: Variable | None = None
        if jnp.issubdtype(self.sum.dtype, jnp.floating):
            self.compensation = Variable(jnp.zeros(shape, dtype), trainable=False, name="compensation")

    def add(self, values: Shaped[Array, "batch ..."]) -> None:
        """Adds the arrays of a batch, `[batch, *shape]`; raises `ValueError` for other shapes."""
        values = jnp.asarray(value_of(values))
        if values.ndim == 0 or values.shape[1:] != self.sum.shape:
            expected = ", ".join(["batch", *map(str, self.sum.shape)])
            raise ValueError(f"a total expects one array per example, [{expected}]; got {summarize(values)}")
        if self.compensation is None:
            self.sum.assign_add(values.sum(axis=0, dtype=self.sum.dtype))
        else:
            self._add(*_compensated_sum(values.astype(self.sum.dtype)))

    def merge(self, other: Self) -> None:
        """Adds another total, of the same shape and dtype."""
        if self.compensation is None or other.compensation is None:
            self.sum.assign_add(other.sum.current())
        else:
            self._add(other.sum.current(), other.compensation.current())

    @property
    def value(self) -> jax.Array:
        """The sum so far, rounded once."""
        return self.sum.value if self.compensation is None else self.sum + self.compensation.value

    def reset(self) -> None:
        """Sets the sum to zero."""
        for variable in self.variables:
            variable.assign(jnp.zeros(variable.shape, variable.dtype))

    def _add(self, high: jax.Array, low: jax.Array) -> None:
        if self.compensation is None:
            return
        total, lost = _two_sum(self.sum.current(), high)
        lost = lost + low
        self.sum.assign(total)
        self.compensation.assign_add(jnp.where(jnp.isfinite(lost), lost, 0.0))  # inf - inf says nothing


@jax.jit  # one small program, also for who updates outside of compiled code
def _compensated_sum(values: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the sum of `values` over the first axis, added up in pairs, and what rounding took from it.

    >>> high, low = _compensated_sum(jnp.array([2.0**25, 1.0, 1.0, 1.0]))
    >>> float(high) + float(low) == 2.0**25 + 3
    True
    """
    high, low = values, jnp.zeros_like(values)
    while high.shape[0] > 1:
        if high.shape[0] % 2:
            one_more = [(0, 1), *[(0, 0)] * (high.ndim - 1)]
            high, low = jnp.pad(high, one_more), jnp.pad(low, one_more)
        half = high.shape[0] // 2
        total, lost = _two_sum(high[:half], high[half:])
        high, low = total, low[:half] + low[half:] + lost
    return high.sum(axis=0), low.sum(axis=0)  # of one row, or of none


def _two_sum(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns `a + b` rounded, and the rest, exactly. Source: Knuth, The Art of Computer Programming 2, 4.2.2."""
    total = a + b
    of_b = total - a
    return total, (a - (total - of_b)) + (b - of_b)
