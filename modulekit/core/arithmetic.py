"""Operators that forward to a value, so that `x @ self.w + self.b` reads like the equation."""

import abc
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from modulekit.core.explain import ExplainedType

ArrayLike = Any


class Arithmetic(metaclass=ExplainedType):
    """Abstract: forwards operators to `.value`. `==` and `!=` stay identity."""

    __slots__ = ()
    _jax_remedy = "pass its .value to JAX functions"
    __array_ufunc__ = None  # NumPy leaves arithmetic with such an object on its right to the object

    @property
    @abc.abstractmethod
    def value(self) -> jax.Array:
        """The array that the operators act on."""

    @abc.abstractmethod
    def current(self) -> jax.Array:
        """Returns the array itself, where `.value` may be another view of it."""

    def ref(self) -> Self:
        """Returns the object itself; in TensorFlow, a reference that can be the key of a dict, as the object can be here."""
        return self

    def deref(self) -> Self:
        """Returns the object itself, which is its own reference."""
        return self

    def read_value(self) -> jax.Array:
        """Returns `.value`."""
        return self.value

    def numpy(self) -> np.ndarray[Any, Any]:
        """Returns the value as a NumPy array of its own."""
        return np.array(self.value)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        return np.array(self.value, dtype=dtype)

    def __float__(self) -> float:
        return float(self.value)

    def __int__(self) -> int:
        return int(self.value)

    def __len__(self) -> int:
        return len(self.value)

    def __iter__(self) -> Any:
        return iter(self.value)

    def __getitem__(self, index: Any) -> jax.Array:
        return self.value[index.value if isinstance(index, Arithmetic) else index]

    @property
    def T(self) -> jax.Array:  # noqa: N802 (the name arrays use)
        """The value with its axes reversed."""
        return self.value.T

    def __neg__(self) -> jax.Array:
        return -self.value

    def __pos__(self) -> jax.Array:
        return self.value

    def __abs__(self) -> jax.Array:
        return abs(self.value)

    def __add__(self, other: ArrayLike) -> jax.Array:
        return self.value + value_of(other)

    def __radd__(self, other: ArrayLike) -> jax.Array:
        return other + self.value

    def __sub__(self, other: ArrayLike) -> jax.Array:
        return self.value - value_of(other)

    def __rsub__(self, other: ArrayLike) -> jax.Array:
        return other - self.value

    def __mul__(self, other: ArrayLike) -> jax.Array:
        return self.value * value_of(other)

    def __rmul__(self, other: ArrayLike) -> jax.Array:
        return other * self.value

    def __truediv__(self, other: ArrayLike) -> jax.Array:
        return self.value / value_of(other)

    def __rtruediv__(self, other: ArrayLike) -> jax.Array:
        return other / self.value

    def __floordiv__(self, other: ArrayLike) -> jax.Array:
        return self.value // value_of(other)

    def __rfloordiv__(self, other: ArrayLike) -> jax.Array:
        return other // self.value

    def __mod__(self, other: ArrayLike) -> jax.Array:
        return self.value % value_of(other)

    def __rmod__(self, other: ArrayLike) -> jax.Array:
        return other % self.value

    def __pow__(self, other: ArrayLike) -> jax.Array:
        return self.value ** value_of(other)

    def __rpow__(self, other: ArrayLike) -> jax.Array:
        return other**self.value

    def __matmul__(self, other: ArrayLike) -> jax.Array:
        return self.value @ value_of(other)

    def __rmatmul__(self, other: ArrayLike) -> jax.Array:
        return array_of(other) @ self.value

    def __lt__(self, other: ArrayLike) -> jax.Array:
        return self.value < value_of(other)

    def __le__(self, other: ArrayLike) -> jax.Array:
        return self.value <= value_of(other)

    def __gt__(self, other: ArrayLike) -> jax.Array:
        return self.value > value_of(other)

    def __ge__(self, other: ArrayLike) -> jax.Array:
        return self.value >= value_of(other)


def value_of(value: ArrayLike) -> ArrayLike:
    """Returns the array behind `value` if it is a variable or a view of one, else `value` itself."""
    return value.value if isinstance(value, Arithmetic) else value


def array_of(value: ArrayLike) -> jax.Array:
    """Returns `value` as an array. One that is an array stays as it is: `jnp.asarray` records a conversion of a tracer."""
    value = value_of(value)
    return value if isinstance(value, jax.Array) else jnp.asarray(value)
