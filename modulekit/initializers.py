"""Initializers: functions of (shape, dtype) that make first weights.

A random initializer draws from the run's seed and the name of the scope in which it is called, so that first weights do
not depend on the order in which layers are made. Values are concrete under
any trace.
"""

import abc
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from modulekit.core.births import computing, is_traced
from modulekit.core.draws import next_initial_key
from modulekit.core.explain import summarize
from modulekit.core.samples import drawn, normal, truncated, uniform

_TRUNCATED_STDDEV = 0.87962566103423978  # of a standard normal truncated at -2 and 2


class Initializer(abc.ABC):
    """Abstract: makes the first value of a variable.

    Source: Sonnet 2, `snt.initializers.Initializer`.

    >>> class Range(Initializer):
    ...     def __call__(self, shape, dtype):
    ...         return jnp.arange(math.prod(shape), dtype=dtype).reshape(shape)
    >>> Range()([2, 2], jnp.float32).tolist()
    [[0.0, 1.0], [2.0, 3.0]]
    """

    @abc.abstractmethod
    def __call__(self, shape: Sequence[int], dtype: Any) -> jax.Array:
        """Returns an array of this shape and dtype."""

    def __repr__(self) -> str:
        inner = ", ".join(f"{key}={summarize(value)}" for key, value in vars(self).items() if value is not None)
        return f"{type(self).__name__}({inner})"


def _numerical(dtype: Any) -> Any:
    dtype = jax.dtypes.canonicalize_dtype(dtype)
    if not jnp.issubdtype(dtype, jnp.number):
        raise ValueError(f"Expected integer or floating point type, got {dtype}")
    return dtype


def _floating(dtype: Any) -> Any:
    dtype = jax.dtypes.canonicalize_dtype(dtype)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"Expected floating point type, got {dtype}")
    return dtype


def _sizes(shape: Any) -> tuple[int, ...]:
    """Returns a shape as a tuple of integers: one size, or a sequence or array of them."""
    sizes = (shape,) if isinstance(shape, int | np.integer) else shape
    return tuple(operator.index(size) for size in sizes)


def _draw(sample: Callable[[jax.Array, Any], jax.Array], dtype: Any, seed: int | None) -> jax.Array:
    """Draws in single precision at least: JAX draws half-precision numbers from few and biased values."""
    working = jnp.promote_types(dtype, jnp.float32) if jnp.issubdtype(dtype, jnp.floating) else dtype
    with computing():
        return sample(next_initial_key(seed=seed), working).astype(dtype)


class Zeros(Initializer):
    """Zeros: `w = 0`.

    Source: Sonnet 2, `snt.initializers.Zeros`.

    >>> Zeros()([2], jnp.float32).tolist()
    [0.0, 0.0]
    """

    def __call__(self, shape: Sequence[int], dtype: Any) -> jax.Array:
        """Returns an array of this shape and dtype."""
        return Constant(0)(shape, dtype)


class Ones(Initializer):
    """Ones: `w = 1`.

    Source: Sonnet 2, `snt.initializers.Ones`.

    >>> Ones()([2], jnp.int32).tolist()
    [1, 1]
    """

    def __call__(self, shape: Sequence[int], dtype: Any) -> jax.Array:
        """Returns an array of this shape and dtype."""
        return Constant(1)(shape, dtype)


class Constant(Initializer):
    """One number everywhere: `w = value`.

    Args:
      value: the number.

    Raises:
      TypeError: `value` is no scalar.

    Source: Sonnet 2, `snt.initializers.Constant`.

    >>> Constant(3)([2], jnp.float32).tolist()
    [3.0, 3.0]
    """

    def __init__(self, value: float) -> None:
        if not np.isscalar(value):
            raise TypeError(f"Invalid type for value: {type(value)} (expected scalar).")
        self.value = value

    def __call__(self, shape: Sequence[int], dtype: Any) -> jax.Array:
        """Returns an array of this shape and dtype."""
        dtype = _numerical(dtype)
        if jnp.issubdtype(dtype, jnp.integer) and isinstance(self.value, float | np.floating):
            raise TypeError(f"Cannot convert {self.value!r}, a floating-point number, to {dtype}: give an integer")
        with computing():
            full: Any = jnp.full if is_traced() else np.full  # NumPy's is no program to compile
            return jnp.asarray(full(_sizes(shape), self.value, dtype))


class RandomUniform(Initializer):
    """Draws uniformly: `w ~ Uniform(minval, maxval)`, each element by itself, in `[minval, maxval)`.

    Args:
      minval: the lower bound.
      maxval: the upper bound.
      seed: stands in for the seed set by `mk.seed`.

    Source: Sonnet 2, `snt.initializers.RandomUniform`.

    >>> RandomUniform(0, 1, seed=0)([3], jnp.float32).shape
    (3,)
    """

    def __init__(self, minval: float = 0, maxval: float = 1, seed: int | None = None) -> None:
        self.minval = minval
        self.maxval = maxval
        self.seed = seed

    def __call__(self, shape: Sequence[int], dtype: Any) -> jax.Array:
        """Returns an array of this shape and dtype."""
        dtype, shape = _numerical(dtype), _sizes(shape)
        if jnp.issubdtype(dtype, jnp.integer):
            return _draw(lambda key, d: jax.random.randint(key, shape, self.minval, self.maxval, d), dtype, self.seed)
        return _draw(lambda key, d: drawn(uniform, key, shape, d, self.minval, self.maxval), dtype, self.seed)


class _Normal(Initializer):
    """Abstract: draws from a normal distribution, whole or truncated."""

    def __init__(self, mean: float = 0.0, stddev: float = 1.0, seed: int | None = None) -> None:
        self.mean = mean
        self.stddev = stddev
        self.seed = seed


class RandomNormal(_Normal):
    """Draws from a normal distribution: `w ~ Normal(mean, stddev^2)`, each element by itself.

    Args:
      mean: its mean.
      stddev: its standard deviation.
      seed: stands in for the seed set by `mk.seed`.

    Source: Sonnet 2, `snt.initializers.RandomNormal`.

    >>> RandomNormal(seed=0)([3], jnp.float32).shape
    (3,)
    """

    def __call__(self, shape: Sequence[int], dtype: Any) -> jax.Array:
        """Returns an array of this shape and dtype."""
        dtype = _floating(dtype)
        return _draw(lambda key, d: drawn(normal, key, _sizes(shape), d, self.mean, self.stddev), dtype, self.seed)


class TruncatedNormal(_Normal):
    """Draws from a normal distribution, without the values more than two standard deviations from the mean.

    `w ~ Normal(mean, stddev^2)`, each element by itself, given that `|w - mean| <= 2 stddev`.

    `stddev` is that of the normal distribution before it is cut; the values that remain have 0.8796 of it.

    Args:
      mean: the mean.
      stddev: the standard deviation before truncation.
      seed: stands in for the seed set by `mk.seed`.

    Source: Sonnet 2, `snt.initializers.TruncatedNormal`.

    >>> values = TruncatedNormal(stddev=0.05, seed=0)([100, 100], jnp.float32)
    >>> bool(abs(values).max() <= 0.1)
    True
    """

    def __call__(self, shape: Sequence[int], dtype: Any) -> jax.Array:
        """Returns an array of this shape and dtype."""
        dtype = _floating(dtype)
        return _draw(lambda key, d: drawn(truncated, key, _sizes(shape), d, self.mean, self.stddev), dtype, self.seed)


class Identity(Initializer):
    """The identity matrix times `gain`, repeated over leading axes: `w[..., i, j] = gain if i == j else 0`.

    It has the shape `[..., rows, columns]`.

    Args:
      gain: the factor.

    Raises:
      ValueError: on the call, a shape of fewer than two axes.

    Source: Sonnet 2, `snt.initializers.Identity`.

    >>> Identity(2.0)([2, 2], jnp.float32).tolist()
    [[2.0, 0.0], [0.0, 2.0]]
    """

    def __init__(self, gain: float = 1.0) -> None:
        self.gain = gain

    def __call__(self, shape: Sequence[int], dtype: Any) -> jax.Array:
        """Returns an array of this shape and dtype."""
        dtype, shape = _numerical(dtype), _sizes(shape)
        if jnp.issubdtype(dtype, jnp.integer) and isinstance(self.gain, float | np.floating):
            raise TypeError(f"Cannot convert gain={self.gain!r}, a floating-point number, to {dtype}: give an integer")
        _check_matrix(shape)
        with computing():
            eye = np.eye(shape[-2], shape[-1]) * self.gain
            return jnp.asarray(np.broadcast_to(eye, shape), dtype)


class Orthogonal(Initializer):
    """A matrix with orthonormal columns (or rows, if it is wide) times `gain`, uniform over all such matrices.

    `w^T w = gain^2 I`, or `w w^T = gain^2 I` if it is wide. In a shape `[..., columns]`, all axes but the last are taken
    together as rows.

    Args:
      gain: the factor.
      seed: stands in for the seed set by `mk.seed`.

    Source: Saxe, McClelland, Ganguli, Exact solutions to the nonlinear dynamics of learning in deep linear neural
    networks, 2013; Sonnet 2, `snt.initializers.Orthogonal`.

    >>> q = Orthogonal(seed=0)([4, 3], jnp.float32)
    >>> bool(jnp.allclose(q.T @ q, jnp.eye(3), atol=1e-5))
    True
    """

    def __init__(self, gain: float = 1.0, seed: int | None = None) -> None:
        self.gain = gain
        self.seed = seed

    def __call__(self, shape: Sequence[int], dtype: Any) -> jax.Array:
        """Returns an array of this shape and dtype."""
        dtype, shape = _floating(dtype), _sizes(shape)
        _check_matrix(shape)
        rows, columns = math.prod(shape[:-1]), shape[-1]
        tall = (max(rows, columns), min(rows, columns))
        with computing():
            q, r = jnp.linalg.qr(jax.random.normal(next_initial_key(seed=self.seed), tall, jnp.float32))
            q = q * jnp.sign(jnp.diag(r))  # without this the distribution is not uniform
            return (self.gain * (q.T if rows < columns else q)).reshape(shape).astype(dtype)


class VarianceScaling(Initializer):
    """Draws with mean 0 and `variance = scale / max(1, n)`, where `n` counts a weight's inputs or outputs.

    A weight has the shape `[*window, inputs, outputs]`; how they are counted, `fans` tells.

    Args:
      scale: the factor, positive.
      mode: what `n` is: "fan_in" (inputs), "fan_out" (outputs) or "fan_avg" (their mean).
      distribution: "truncated_normal" (with that deviation after truncation), "normal" or "uniform".
      seed: stands in for the seed set by `mk.seed`.

    Raises:
      ValueError: an argument is none of these.

    Sources: Glorot and Bengio 2010 (fan_avg); He et al. 2015 (fan_in, scale 2); LeCun et al. 1998 (fan_in, scale 1);
    Sonnet 2, `snt.initializers.VarianceScaling`.

    >>> w = VarianceScaling(2.0, distribution="uniform", seed=0)([600, 10], jnp.float32)
    >>> bool(abs(w).max() <= 0.1)
    True
    """

    def __init__(
        self,
        scale: float = 1.0,
        mode: str = "fan_in",
        distribution: str = "truncated_normal",
        seed: int | None = None,
    ) -> None:
        if scale <= 0.0:
            raise ValueError(f"`scale` must be positive float. Received: scale={scale}")
        if mode not in ("fan_in", "fan_out", "fan_avg"):
            raise ValueError(f"Invalid `mode` argument: {mode!r}; use 'fan_in', 'fan_out' or 'fan_avg'")
        distribution = distribution.lower()
        if distribution not in ("truncated_normal", "normal", "uniform"):
            raise ValueError(
                f"Invalid `distribution` argument: {distribution!r}; use 'truncated_normal', 'normal' or 'uniform'"
            )
        self.scale = scale
        self.mode = mode
        self.distribution = distribution
        self.seed = seed

    def __call__(self, shape: Sequence[int], dtype: Any) -> jax.Array:
        """Returns an array of this shape and dtype."""
        dtype, shape = _floating(dtype), _sizes(shape)
        fan_in, fan_out = fans(shape)
        fan = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}[self.mode]
        variance = self.scale / max(1.0, fan)
        if self.distribution == "uniform":
            limit = math.sqrt(3.0 * variance)
            return RandomUniform(-limit, limit, self.seed)(shape, dtype)
        if self.distribution == "normal":
            return RandomNormal(0.0, math.sqrt(variance), self.seed)(shape, dtype)
        return TruncatedNormal(0.0, math.sqrt(variance) / _TRUNCATED_STDDEV, self.seed)(shape, dtype)


def fans(shape: Sequence[int]) -> tuple[int, int]:
    """Returns how many inputs and outputs a weight connects: `fan_in = window inputs`, `fan_out = window outputs`.

    Args:
      shape: `[*window, inputs, outputs]`, where `window` is the product of the sizes; `[size]` has two fans of that size,
        and `[]` two of 1.

    Returns:
      `(fan_in, fan_out)`.

    Source: Glorot and Bengio 2010, section 4.2; Sonnet 2, `snt.initializers.VarianceScaling`.

    >>> fans([5, 5, 3, 8])
    (75, 200)
    """
    if len(shape) == 0:
        return 1, 1
    if len(shape) == 1:
        return shape[0], shape[0]
    window = math.prod(shape[:-2])
    return window * shape[-2], window * shape[-1]


def _check_matrix(shape: Sequence[int]) -> None:
    if len(shape) < 2:
        raise ValueError(f"The tensor to initialize must be at least two-dimensional; it has shape {list(shape)}")
