"""The catalogue of modules: one table, and a new row enrols a module in every law.

A row says how to make a fresh module and how to call it. The law tests run each row through every transform, copy,
process and failure, and compare with plain eager execution.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import modulekit as mk
from modulekit.core.randomness import default_stream

STEPS = 3
SEED = 7


class Affine(mk.Module):
    """The example of the design."""

    def __init__(self, output_size: int, name: str | None = None) -> None:
        super().__init__(name=name)
        self.output_size = output_size

    @mk.once
    def _initialize(self, x: jax.Array) -> None:
        self.w = mk.Variable(mk.initializers.TruncatedNormal(0.05)([x.shape[-1], self.output_size], x.dtype), name="w")
        self.b = mk.Variable(jnp.zeros([self.output_size], x.dtype), name="b")

    def __call__(self, x: jax.Array) -> jax.Array:
        self._initialize(x)
        return x @ self.w + self.b


class TiedPair(mk.Module):
    """A layer and its transpose: one weight in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = mk.Linear(3)
        self.decode = self.encode.transpose()

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.decode(jnp.tanh(self.encode(x)))


class Containers(mk.Module):
    """Modules in lists, tuples and dicts."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = [mk.Sequential([mk.Linear(4, name="first"), jnp.tanh]), (mk.Linear(4, name="second"),)]
        self.heads = {"left": mk.Linear(2, name="left"), "right": [{"inner": mk.Linear(2, name="right")}]}

    def __call__(self, x: jax.Array) -> jax.Array:
        hidden = jnp.tanh(self.stages[1][0](self.stages[0](x)))
        return self.heads["left"](hidden) * self.heads["right"][0]["inner"](hidden)


class DropoutNet(mk.Module):
    """Dropout from the default stream."""

    def __init__(self, rate: float = 0.5) -> None:
        super().__init__()
        self.hidden = mk.Linear(6, name="hidden")
        self.dropout = mk.Dropout(rate)
        self.output = mk.Linear(2, name="output")

    def __call__(self, x: jax.Array, is_training: bool) -> jax.Array:
        return self.output(self.dropout(jnp.tanh(self.hidden(x)), is_training))


class Noisy(mk.Module):
    """A user of a random stream of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stream = mk.RandomStream(3)
        self.linear = mk.Linear(2)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.linear(x)
        return y + jax.random.normal(self.stream.next_key(), y.shape)


class Averaging(mk.Module):
    """Writes a counter and a moving average on each call."""

    def __init__(self, decay: float = 0.9) -> None:
        super().__init__()
        self.decay = decay
        self.linear = mk.Linear(2)
        self.count = mk.Variable(0, trainable=False, name="count")
        self.average = mk.Variable(jnp.zeros([2]), trainable=False, name="average")

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.linear(x)
        self.count.assign_add(1)
        self.average.assign(self.decay * self.average + (1 - self.decay) * y.mean(axis=0))
        return y - self.average


class SharedTwice(mk.Module):
    """One layer, held under two attributes and called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = mk.Linear(5)
        self.second = self.first

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.second(jnp.tanh(self.first(x)))


def affine_by_name(x: jax.Array, output_size: int) -> jax.Array:
    """Asks for its variables by name."""
    with mk.variable_scope("affine", reuse=mk.AUTO_REUSE):
        w = mk.get_variable("w", [x.shape[-1], output_size])
        b = mk.get_variable("b", [output_size])
    return x @ w + b


class ByName(mk.Module):
    """A function of named variables, with a store."""

    def __init__(self) -> None:
        super().__init__()
        self.store = mk.VariableStore()

    def __call__(self, x: jax.Array) -> jax.Array:
        with self.store:
            return jnp.tanh(affine_by_name(affine_by_name(x, 5), 5))


@dataclasses.dataclass
class Scaled(mk.Module):
    """A dataclass."""

    output_size: int
    scale: float = 0.5

    @mk.once
    def _initialize(self, x: jax.Array) -> None:
        self.linear = mk.Linear(self.output_size)
        self.gain = mk.Variable(jnp.full([self.output_size], self.scale), name="gain")

    def __call__(self, x: jax.Array) -> jax.Array:
        self._initialize(x)
        return self.linear(x) * self.gain


@dataclasses.dataclass(frozen=True, eq=False)
class Row:
    """One module of the catalogue.

    Attributes:
      name: of the row.
      make: returns a fresh module.
      inputs: the arguments of a call.
      options: its keyword arguments.
      has_weights: whether there is anything to train.
    """

    name: str
    make: Callable[[], Any]
    inputs: tuple[np.ndarray, ...]
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    has_weights: bool = True

    def fresh(self, seed: int = SEED) -> Any:
        """Returns a fresh module, with all randomness started anew."""
        mk.seed(seed)
        return self.make()

    def call(self, module: Any, *inputs: Any) -> Any:
        """Returns what the module returns, for the row's own inputs where none are given."""
        return module(*(inputs or self.inputs), **self.options)

    def loss(self, module: Any, *inputs: Any) -> Any:
        """Returns a scalar loss of a call."""
        return jnp.mean(jnp.square(self.call(module, *inputs) - 0.5))

    def steps(self, count: int = STEPS) -> tuple[np.ndarray, ...]:
        """Returns inputs for several calls, different ones, stacked."""
        return tuple(
            np.stack([x * (1.0 - 0.25 * i) + 0.1 * i for i in range(count)]).astype(x.dtype) for x in self.inputs
        )


def _features(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


X = _features(4, 5)

ROWS = [
    Row("linear", lambda: mk.Linear(3), (X,)),
    Row("linear_without_bias", lambda: mk.Linear(3, with_bias=False), (X,)),
    Row("tied_pair", TiedPair, (X,)),
    Row("sequential", lambda: mk.Sequential([mk.Linear(4, name="one"), jnp.tanh, mk.Linear(2, name="two")]), (X,)),
    Row("containers", Containers, (X,)),
    Row("dropout_in_training", DropoutNet, (X,), {"is_training": True}),
    Row("mlp", lambda: mk.nets.MLP([6, 2]), (X,)),
    Row("mlp_with_dropout", lambda: mk.nets.MLP([6, 2], dropout_rate=0.4), (X,), {"is_training": True}),
    Row("random_stream", Noisy, (X,)),
    Row("moving_average", Averaging, (X,)),
    Row("shared_twice", SharedTwice, (X,)),
    Row("mean", mk.metrics.Mean, (X,), has_weights=False),
    Row("sum", mk.metrics.Sum, (X,), has_weights=False),
    Row("example_mean", mk.metrics.ExampleMean, (X[0],), has_weights=False),
    Row("by_name", ByName, (X,)),
    Row("dataclass", lambda: Scaled(3), (X,)),
    Row("affine", lambda: Affine(3), (X,)),
]
TRAINED = [row for row in ROWS if row.has_weights]


def name_of(value: Any) -> str:
    """Returns a row's or function's name, as a test's identifier."""
    return getattr(value, "name", None) or getattr(value, "__name__", repr(value))


def variables_of(module: Any) -> list[mk.Variable]:
    """Returns everything a call may write: the module's variables and the default random stream's."""
    return [*module.paths().values(), *default_stream().variables]


def state(module: Any) -> dict[str, np.ndarray]:
    """Returns copies of all values by path, those of the default random stream included."""
    values = {path: variable.numpy() for path, variable in module.paths().items()}
    return values | {f"default_stream.{path}": v.numpy() for path, v in default_stream().paths().items()}


def assert_bitwise(actual: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """Asserts that two states have the same paths and the same bits."""
    assert actual.keys() == expected.keys()
    for path, value in expected.items():
        assert actual[path].dtype == value.dtype, path
        np.testing.assert_array_equal(actual[path], value, err_msg=path, strict=True)


def assert_near(actual: Any, expected: Any) -> None:
    """Asserts that two structures agree up to what reordering float32 arithmetic costs."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert jnp.result_type(a) == jnp.result_type(b)
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=2e-5, atol=2e-6)


def assert_concrete(variables: Sequence[mk.Variable]) -> None:
    """Asserts that each variable holds an array that can be read outside of any trace."""
    for variable in variables:
        assert not isinstance(variable.value, jax.core.Tracer), variable
        assert np.asarray(variable.value).shape == variable.shape
