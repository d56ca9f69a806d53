"""Metrics: modules that accumulate values over batches.

`Sum` and `Mean` are Sonnet's: they add up what they are given, call by call. `ExampleMean` and `Accuracy` weigh every
example the same however the examples are batched.
"""

import abc
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer, Shaped

from modulekit.core.arithmetic import array_of, value_of
from modulekit.core.explain import summarize
from modulekit.core.module import Module
from modulekit.core.once import once
from modulekit.core.variable import Variable


class Metric(Module):
    """Abstract: four verbs, `initialize`, `update`, `value` and `reset`.

    Source: Sonnet 2, `snt.Metric`.

    >>> class Largest(Metric):
    ...     @once
    ...     def initialize(self, value):
    ...         self.largest = Variable(value, trainable=False, name="largest")
    ...     def update(self, value):
    ...         self.initialize(value)
    ...         self.largest.assign(jnp.maximum(self.largest.value, value))
    ...     @property
    ...     def value(self):
    ...         return self.largest.value
    ...     def reset(self):
    ...         self.largest.assign(-jnp.inf)
    >>> largest = Largest()
    >>> [float(largest(value)) for value in (1.0, 3.0, 2.0)]
    [1.0, 3.0, 3.0]
    """

    @abc.abstractmethod
    def initialize(self, value: Any) -> None:
        """Makes the variables, from the first value."""

    @abc.abstractmethod
    def update(self, value: Any) -> None:
        """Accumulates a value, `[...]`, of any shape that stays the same."""

    @property
    @abc.abstractmethod
    def value(self) -> jax.Array:
        """The metric of all that was accumulated."""

    @abc.abstractmethod
    def reset(self) -> None:
        """Forgets what was accumulated."""

    def __call__(self, value: Any) -> jax.Array:
        """Accumulates a value, `[...]`, and returns the metric so far."""
        self.update(value)
        return self.value


class Sum(Metric):
    """The element-wise sum of the values given, `sum_t = sum_{t-1} + x_t`.

    Args:
      name: the module's name.

    Source: Sonnet 2, `snt.Sum`.

    >>> total = Sum()
    >>> total(jnp.array([1.0, 2.0])).tolist(), total(jnp.array([3.0, 4.0])).tolist()
    ([1.0, 2.0], [4.0, 6.0])
    """

    def __init__(self, name: str | None = None) -> None:
        super().__init__(name=name)
        self.sum: Variable | None = None

    @once
    def initialize(self, value: Any) -> None:
        """Makes the sum, of the shape and dtype of `value`."""
        self.sum = _zeros_like(value, "sum")

    def update(self, value: Any) -> None:
        """Adds `value`, `[...]`, an array of the shape of the first one; raises `ValueError` for another shape."""
        self.initialize(value)
        _add(self, self.sum, value)

    @property
    def value(self) -> jax.Array:
        """The sum so far."""
        return _made(self, self.sum).value

    def reset(self) -> None:
        """Sets the sum to zero."""
        total = _made(self, self.sum)
        total.assign(jnp.zeros(total.shape, total.dtype))


class Mean(Metric):
    """The element-wise mean over calls, `mean_t = (x_1 + ... + x_t) / t`.

    Each call counts once, whatever its batch size; see `ExampleMean`.

    Args:
      name: the module's name.

    Source: Sonnet 2, `snt.Mean`.

    >>> mean = Mean()
    >>> float(mean(1.0)), float(mean(3.0))
    (1.0, 2.0)
    """

    def __init__(self, name: str | None = None) -> None:
        super().__init__(name=name)
        self.sum: Variable | None = None
        self.count = Variable(jnp.zeros([], jnp.int32), trainable=False, name="count")

    @once
    def initialize(self, value: Any) -> None:
        """Makes the sum, of the shape and dtype of `value`."""
        self.sum = _zeros_like(value, "sum")

    def update(self, value: Any) -> None:
        """Adds `value`, `[...]`, of the shape of the first one, and counts one; raises `ValueError` for another shape."""
        self.initialize(value)
        _add(self, self.sum, value)
        self.count.assign_add(1)

    @property
    def value(self) -> jax.Array:
        """The mean so far."""
        return _made(self, self.sum) / self.count

    def reset(self) -> None:
        """Sets sum and count to zero."""
        total = _made(self, self.sum)
        total.assign(jnp.zeros(total.shape, total.dtype))
        self.count.assign(0)


class ExponentialMovingAverage(Metric):
    """`h <- h - (1 - decay) (h - value)`, `average = h / (1 - decay^t)` after t updates: an average that starts unbiased.

    Args:
      decay: how much of the past is kept, in [0, 1); a number or a scalar array.
      name: the module's name.

    Attributes:
      average: a variable of the shape `[...]` and dtype of the value; None before the first one.

    Sources: the correction is that of Kingma and Ba, Adam, 2015, section 3; Sonnet 2, `snt.ExponentialMovingAverage`.

    >>> average = ExponentialMovingAverage(0.9)
    >>> [round(float(average(value)), 3) for value in (1.0, 2.0)]
    [1.0, 1.526]
    """

    def __init__(self, decay: Any, name: str | None = None) -> None:
        super().__init__(name=name)
        self.decay = decay
        self._counter = Variable(jnp.zeros([], jnp.int32), trainable=False, name="counter")
        self._hidden: Variable | None = None
        self.average: Variable | None = None

    @once
    def initialize(self, value: Any) -> None:
        """Makes the averages, of the shape and dtype of `value`."""
        self._hidden = _zeros_like(value, "hidden")
        self.average = _zeros_like(value, "average")

    def update(self, value: Any) -> None:
        """Averages `value` in, `[...]`, an array of the shape of the first one."""
        self.initialize(value)
        hidden, average = _made(self, self._hidden), _made(self, self.average)
        self._counter.assign_add(1)
        count = self._counter.current().astype(hidden.dtype)
        decay = jnp.asarray(value_of(self.decay), hidden.dtype)
        value = jax.lax.stop_gradient(array_of(value))  # as in Sonnet, where no gradient passes an assignment
        hidden.assign_sub((hidden.current() - value) * (1 - decay))
        average.assign(hidden.current() / (1 - decay**count))

    @property
    def value(self) -> jax.Array:
        """The average so far."""
        return _made(self, self.average).value

    def reset(self) -> None:
        """Forgets all values."""
        self._counter.assign(0)
        for variable in (_made(self, self._hidden), _made(self, self.average)):
            variable.assign(jnp.zeros(variable.shape, variable.dtype))


class ExampleMean(Metric):
    """The mean over all examples, `mean = sum_i m_i v_i / sum_i m_i`, the same for any batch sizes.

    `m` is the mask, 1 for all examples without one. The sum is kept in two float32 numbers, the second one for what the
    first has rounded off (Knuth's TwoSum), so that its error does not grow with the number of examples; they are counted
    as integers, exactly up to 2^31 - 1.

    Args:
      name: the module's name.

    Sources: Flax, `nnx.metrics.Average`; the sum is that of Knuth, The Art of Computer Programming 2, 1997, 4.2.2.

    >>> mean = ExampleMean()
    >>> mean.update(jnp.array([1.0, 1.0, 1.0]))
    >>> float(mean(jnp.array([5.0])))
    2.0
    """

    def __init__(self, name: str | None = None) -> None:
        super().__init__(name=name)
        self.initialize()

    @once
    def initialize(self, value: Any = None) -> None:
        """Makes sum, compensation and count."""
        self.sum = Variable(jnp.zeros([]), trainable=False, name="sum")
        self.compensation = Variable(jnp.zeros([]), trainable=False, name="compensation")
        self.count = Variable(jnp.zeros([], jnp.int32), trainable=False, name="count")

    def update(self, value: Shaped[Array, " batch"], mask: Shaped[Array, " batch"] | None = None) -> None:
        """Adds the values of a batch.

        Args:
          value: `[batch]`, one value per example.
          mask: `[batch]`, true for the examples that count; all of them if None.

        Raises:
          ValueError: not one value per example.
        """
        values = jnp.asarray(value_of(value))
        if values.ndim != 1:
            raise ValueError(f"{self!r} expects one value per example, [batch]; got {summarize(values)}")
        values = values.astype(jnp.float32)
        if mask is not None:
            if jnp.shape(mask) != values.shape:
                raise ValueError(
                    f"{self!r} expects one mask value for each of {values.size} examples; got {summarize(mask)}"
                )
            values = jnp.where(mask, values, 0.0)
        added, lost_inside = _compensated_sum(values)
        total, lost = _two_sum(self.sum.current(), added)
        lost = lost + lost_inside
        self.sum.assign(total)
        self.compensation.assign_add(jnp.where(jnp.isfinite(lost), lost, 0.0))  # inf - inf says nothing
        self.count.assign_add(values.shape[0] if mask is None else jnp.count_nonzero(mask).astype(jnp.int32))

    @property
    def value(self) -> Float[Array, ""]:
        """The mean over all examples so far; NaN before the first."""
        return (self.sum + self.compensation.value) / self.count

    def reset(self) -> None:
        """Forgets all examples."""
        for variable in (self.sum, self.compensation, self.count):
            variable.assign(0)


class Accuracy(Module):
    """The share of examples whose largest logit is the label's, the same for any batch sizes.

    `accuracy = mean_i y_i`, where `y_i = 1 if argmax_c logits[i, c] == labels[i] else 0`.

    Args:
      name: the module's name.

    Source: Flax, `nnx.metrics.Accuracy`.

    >>> accuracy = Accuracy()
    >>> accuracy.update(jnp.array([[0.1, 0.9], [0.8, 0.2]]), jnp.array([1, 1]))
    >>> float(accuracy.value)
    0.5
    """

    def __init__(self, name: str | None = None) -> None:
        super().__init__(name=name)
        self.mean = ExampleMean()

    def update(self, logits: Float[Array, "batch classes"], labels: Integer[Array, " batch"]) -> None:
        """Adds a batch: `logits` `[batch, classes]` and integer `labels` `[batch]`."""
        self.mean.update(correct(logits, labels))

    @property
    def value(self) -> Float[Array, ""]:
        """The share so far; NaN before the first example."""
        return self.mean.value

    def reset(self) -> None:
        """Forgets all examples."""
        self.mean.reset()


def correct(logits: Float[Array, "batch classes"], labels: Integer[Array, " batch"]) -> Float[Array, " batch"]:
    """Returns 1 for each example whose largest logit is its label's: `y_i = 1 if argmax_c logits[i, c] == labels[i] else 0`.

    Args:
      logits: `[batch, classes]`; of equal ones, the first is the largest.
      labels: `[batch]`, integers.

    Returns:
      `[batch]`.

    Raises:
      ValueError: the shapes do not fit.

    Source: Flax, `nnx.metrics.Accuracy`.

    >>> correct(jnp.array([[0.1, 0.9], [0.8, 0.2]]), jnp.array([1, 1])).tolist()
    [1.0, 0.0]
    """
    logits, labels = jnp.asarray(logits), jnp.asarray(labels)
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(
            f"expected logits [batch, classes] and labels [batch], got {summarize(logits)} and {summarize(labels)}"
        )
    return (logits.argmax(axis=-1) == labels).astype(jnp.float32)


def _compensated_sum(values: Float[Array, " n"]) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Returns the sum of `values`, added up in pairs, and what rounding took from it.

    >>> high, low = _compensated_sum(jnp.array([2.0**25, 1.0, 1.0, 1.0]))
    >>> float(high) + float(low) == 2.0**25 + 3
    True
    """
    high, low = values, jnp.zeros_like(values)
    while high.shape[0] > 1:
        if high.shape[0] % 2:
            high, low = jnp.pad(high, (0, 1)), jnp.pad(low, (0, 1))
        total, lost = _two_sum(high[::2], high[1::2])
        high, low = total, low[::2] + low[1::2] + lost
    return high.sum(), low.sum()


def _two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """Returns `a + b` rounded, and the rest, exactly. Source: Knuth, The Art of Computer Programming 2, 4.2.2."""
    total = a + b
    of_b = total - a
    return total, (a - (total - of_b)) + (b - of_b)


def _zeros_like(value: Any, name: str) -> Variable:
    shape, dtype = jnp.shape(value_of(value)), jnp.result_type(value_of(value))
    return Variable(jnp.zeros(shape, dtype), trainable=False, name=name)


def _add(metric: Module, total: Variable | None, value: Any) -> None:
    """Adds a value of the shape of the total, where an assignment would also take one that broadcasts to it."""
    total, array = _made(metric, total), array_of(value)
    if array.shape != total.shape:
        raise ValueError(
            f"{metric!r} accumulates values of shape {list(total.shape)}, that of the first one, got {summarize(array)}: "
            "use another metric for another shape"
        )
    total.assign_add(array)


def _made(metric: Module, variable: Variable | None) -> Variable:
    if variable is None:
        raise ValueError(f"{metric!r} has no value yet: call it, or its update, first")
    return variable
