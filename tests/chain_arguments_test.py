"""Laws of what the chain behind an error says of arguments and modules: short, and never an error of its own."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from diagnostics import chain_of, origin_of

import modulekit as mk

X = np.ones([4, 5], np.float32)


class Raising(mk.Module):
    """Raises what it is told to."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise self.error


def called_with(*args: Any, **kwargs: Any) -> str:
    """Returns what the chain says of the arguments of a call."""
    (line,) = chain_of(lambda: Raising(ValueError())(*args, **kwargs))
    start = "  in Raising(error=ValueError()): called with "
    assert line.startswith(start)
    return line.removeprefix(start)


def test_arguments_are_told_in_short_whatever_they_are() -> None:
    assert called_with() == "nothing"
    assert called_with(X, 2, "a", None, is_training=True) == "float32[4,5], 2, 'a', None, is_training=True"
    assert called_with((X,), [X, {"x": X}]) == "(float32[4,5],), [float32[4,5], {'x': float32[4,5]}]"
    assert called_with(jnp.tanh, functools.partial(len)) == "tanh, functools.partial(<built-in function len>)"
    assert called_with(jax.random.key(0), jnp.ones([2], jnp.bfloat16)) == "key<fry>[], bfloat16[2]"
    assert called_with(mk.Variable(1.0, name="v"), mk.Linear(2)) == "Variable('v', float32[]), Linear(output_size=2)"
    assert called_with(deleted()) == "float32[4]"
    numbers = (number for number in range(3))
    assert called_with(numbers) == repr(numbers)[:77] + "..."
    assert next(numbers) == 0


def deleted() -> jax.Array:
    array = jnp.ones([4])
    array.delete()
    return array


def test_huge_arguments_are_cut() -> None:
    numbers = list(range(10_000))
    assert called_with(numbers) == str(numbers)[:197] + "..."
    assert called_with("a" * 1000) == "'" + "a" * 76 + "..."


class Unspeakable:
    """Fails to say what it is."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")


class Odd:
    """Looks like an array, and is none."""

    dtype = "f"
    shape = 3


class Unnamed:
    """Has a name that cannot be read."""

    @property
    def __name__(self) -> str:
        raise OSError("no name")

    def __call__(self) -> None: ...


def test_arguments_that_cannot_be_shown_do_not_replace_the_error() -> None:
    endless: list[Any] = []
    endless.append(endless)
    assert called_with(Unspeakable(), 1) == "<Unspeakable, which cannot be shown: RuntimeError>, 1"
    assert called_with(x=Odd()) == "x=<Odd, which cannot be shown: TypeError>"
    assert called_with(Unnamed()) == "<Unnamed, which cannot be shown: OSError>"
    assert called_with(endless) == "<list, which cannot be shown: RecursionError>"


class Holder(mk.Module):
    """Holds anything; it has attributes that arrays have as well."""

    def __init__(self, held: Any = 1.0) -> None:
        super().__init__()
        self.held = held
        self.shape, self.dtype = [3], "float32"

    def __call__(self, x: Any) -> Any:
        return x


def test_a_module_can_be_made_of_anything_and_is_told_by_it() -> None:
    assert called_with(Holder(), Holder(1.0), Holder(2)) == "Holder(), Holder(), Holder(held=2)"
    assert called_with(Holder(X), Holder(jnp.ones([2]))) == "Holder(held=float32[4,5]), Holder(held=float32[2])"
    assert called_with(Holder((X, X))) == "Holder(held=(float32[4,5], float32[4,5]))"
    assert called_with(Holder(Unspeakable())) == "Holder(held=<Unspeakable, which cannot be shown: RuntimeError>)"
    assert called_with(Holder([0] * 1000)) == "Holder(held=" + "[0, " + "0, " * 20 + "0..."


class State(NamedTuple):
    """As recurrent networks have them."""

    hidden: Any
    cell: Any


def test_named_tuples_are_told_field_by_field_traced_or_not() -> None:
    for wrap in (lambda f: f, mk.jit, mk.remat):
        assert chain_of(lambda wrap=wrap: wrap(Raising(ValueError()))(State(X, [X]))) == [
            "  in Raising(error=ValueError()): called with State(hidden=float32[4,5], cell=[float32[4,5]])"
        ]


class Mute(mk.Module):
    """Fails to say what it is."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")

    @mk.once
    def _initialize(self, x: Any) -> None:
        self.w = mk.Variable(jnp.ones([x.shape[-1], 2]), name="w")

    def __call__(self, x: Any) -> Any:
        self._initialize(x)
        return x @ self.w


def test_a_module_that_cannot_be_shown_does_not_replace_the_error() -> None:
    net = mk.Sequential([jnp.tanh])
    net.layers.append(Mute())
    net(X)  # builds Mute
    for run in (net, mk.jit(net)):
        assert chain_of(lambda run=run: run(X[:, 1:])) == [
            "  in layers[1] = <Mute, which cannot be shown: RuntimeError>: called with float32[4,4]; "
            f"built at {origin_of(__file__, 'builds Mute')}, for float32[4,5]",
            "  in Sequential(layers=[tanh]): called with float32[4,4]",
        ]
