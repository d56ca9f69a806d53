"""Functions with modules in them as pairs of pure functions, in the way of Haiku and of Sonnet's `functional`.

`init` finds out which variables a function uses, and returns their first values; `apply` runs it with the values that it
is given. The variables only name the values: neither changes what they hold.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from modulekit.core.explain import summarize
from modulekit.core.overlay import Overlay, bakes_reads
from modulekit.core.variable import Variable
from modulekit.functional.values import Values
from modulekit.transforms.settle import plain

_HAS_STATE = "Stateful networks must use `transform_with_state(f)`"


class Transformed(NamedTuple):
    """A pair of pure functions.

    Attributes:
      init: `params = init(*args)`.
      apply: `result = apply(params, *args)`.
    """

    init: Callable[..., Any]
    apply: Callable[..., Any]


class TransformedWithState(NamedTuple):
    """A pair of pure functions of a network with state.

    Attributes:
      init: `params, state = init(*args)`.
      apply: `result, state = apply(params, state, *args)`.
    """

    init: Callable[..., Any]
    apply: Callable[..., Any]


@contextlib.contextmanager
def variables() -> Iterator[None]:
    """Context in which modules for `transform` are made.

    Here any module can be transformed, wherever it was made; the context changes nothing and keeps Sonnet's code running.

    Source: Sonnet 2, `snt.functional.variables`.

    >>> import modulekit as mk
    >>> with mk.functional.variables():
    ...     layer = mk.Linear(3)
    >>> layer
    Linear(output_size=3)
    """
    yield


def transform_with_state(f: Callable[..., Any]) -> TransformedWithState:
    """Returns a function that uses modules as a pair of pure functions, with its state handed in and out.

    `params, state = init(*args)` runs `f` once and returns the values that the variables which it used had before: the
    trainable ones, and the others (moving averages, counters, random streams). `result, state = apply(params, state, *args)`
    runs `f` with values. What `f` assigns to a trainable variable counts for the rest of that call only.

    Args:
      f: a function or module that reads and writes variables.

    Returns:
      A named tuple `(init, apply)`. `params` and `state` are dicts from variables to arrays which every JAX transform takes,
      as it takes `apply`; `init` runs as it is or in `mk.jit`.

    Raises:
      ValueError: in `apply`, where `f` uses a variable that is in neither dict, or makes one; or where a value does not
        fit its variable.

    Source: Sonnet 2, `snt.functional.transform_with_state`. There a variable made in `init` has no value outside, and here
    it keeps its first one; and there a random draw is no state.

    >>> import modulekit as mk
    >>> average = mk.functional.transform_with_state(mk.ExponentialMovingAverage(0.5))
    >>> params, state = average.init(3.0)
    >>> first, state = average.apply(params, state, 3.0)
    >>> second, state = average.apply(params, state, 6.0)
    >>> float(first), float(second)
    (3.0, 5.0)
    """

    def init(*args: Any, **kwargs: Any) -> tuple[Values, Values]:
        used = used_by(f, *args, **kwargs)
        params = Values({v: value for v, value in used.items() if v.trainable})
        return params, Values({v: value for v, value in used.items() if v not in params})

    def apply(params: Mapping[Variable, Any], state: Mapping[Variable, Any], *args: Any, **kwargs: Any) -> Any:
        result, new = applied(f, {**params, **state}, *args, **kwargs)
        return result, Values({v: new[v] for v in state})

    return TransformedWithState(init, apply)


def transform(f: Callable[..., Any]) -> Transformed:
    """Returns a function that uses modules as a pair of pure functions.

    `params = init(*args)` runs `f` once and returns the values that the trainable variables which it used had before;
    `result = apply(params, *args)` runs `f` with values.

    Args:
      f: a function or module that reads trainable variables, and no others.

    Returns:
      A named tuple `(init, apply)`, as for `transform_with_state`.

    Raises:
      ValueError: in `init` and `apply`, where `f` uses variables that are not trainable; and as for `transform_with_state`.

    Source: Sonnet 2, `snt.functional.transform`.

    >>> import modulekit as mk, jax, jax.numpy as jnp
    >>> layer = mk.Linear(1, w_init=mk.initializers.Ones())
    >>> f = mk.functional.transform(layer)
    >>> params = f.init(jnp.ones([1, 2]))
    >>> params[layer.w].tolist()
    [[1.0], [1.0]]
    >>> f.apply(jax.tree.map(lambda p: p + 1, params), jnp.ones([1, 2])).tolist()
    [[5.0]]
    """
    return without_state(transform_with_state(f))


def without_state(with_state: TransformedWithState) -> Transformed:
    """Returns what `transform_with_state` returned without the state, which there must not be.

    Args:
      with_state: a pair `(init, apply)` of functions that take and return a state.

    Raises:
      ValueError: in `init` and `apply`, where there is a state.

    Source: Sonnet 2, `snt.functional.without_state`.

    >>> import modulekit as mk
    >>> f = mk.functional.without_state(mk.functional.transform_with_state(mk.ExponentialMovingAverage(0.5)))
    >>> f.init(3.0)
    Traceback (most recent call last):
        ...
    ValueError: Stateful networks must use `transform_with_state(f)`: the function uses 'exponential_moving_average/... more
    """

    def init(*args: Any, **kwargs: Any) -> Any:
        params, state = with_state.init(*args, **kwargs)
        _check_stateless(state)
        return params

    def apply(params: Any, *args: Any, **kwargs: Any) -> Any:
        result, state = with_state.apply(params, {}, *args, **kwargs)
        _check_stateless(state)
        return result

    return Transformed(init, apply)


def used_by(f: Callable[..., Any], *args: Any, **kwargs: Any) -> Values:
    """Runs a function, and returns the values that the variables which it read or wrote had before. Nothing changes."""
    with Overlay(baked=bakes_reads()) as running:
        f(*args, **kwargs)
    return Values({v: v.value for v in (*running.touched, *running.written)})


def applied(f: Callable[..., Any], given: Mapping[Variable, Any], *args: Any, **kwargs: Any) -> tuple[Any, Values]:
    """Runs a function with values in place of those of the variables; returns its result and the new values."""
    bindings = {v: _checked(v).conforming(value) for v, value in given.items()}
    with Overlay(bindings, baked=bakes_reads()) as running:
        result = plain(f(*args, **kwargs))
    if running.born:
        raise ValueError(
            f"Apply function cannot create new variables: it made {_named(running.born)}. Call init first, with arguments "
            "that lead to the same calls"
        )
    unknown = [v for v in (*running.touched, *running.written) if v not in bindings]
    if unknown:
        raise ValueError(
            f"the function uses {_named(unknown)}, which params and state do not have. Use those that init returns for "
            "arguments that lead to the same calls, such as the same is_training"
        )
    return result, Values({v: running.values[v] for v in bindings})


def _checked(key: Any) -> Variable:
    if not isinstance(key, Variable):
        raise TypeError(f"params and state are dicts from variables to arrays, and one has the key {summarize(key)}")
    return key


def _check_stateless(state: Mapping[Variable, Any]) -> None:
    if state:
        raise ValueError(f"{_HAS_STATE}: the function uses {_named(state)}")


def _named(listed: Any) -> str:
    names = [v.name for v in listed]
    return ", ".join(map(repr, names[:2])) + (f" and {len(names) - 2} more" if len(names) > 2 else "")
