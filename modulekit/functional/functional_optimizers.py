"""Optimizers as pairs of pure functions of their state and of the parameters."""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from modulekit.core.variable import Variable
from modulekit.functional.transformed import applied, used_by
from modulekit.functional.values import Values, ordered
from modulekit.optimizers import SGD, Adam, Momentum, Optimizer, RMSProp


class TransformedOptimizer(NamedTuple):
    """A pair of pure functions.

    Attributes:
      init: `state = init(params)`.
      apply: `params, state = apply(state, updates, params)`.
    """

    init: Callable[..., Any]
    apply: Callable[..., Any]


def optimizer(cls: type[Optimizer]) -> Callable[..., TransformedOptimizer]:
    """Returns a function that makes an optimizer of pure functions, from a class of optimizers.

    Args:
      cls: a class of optimizers, such as `mk.optimizers.Adam`.

    Returns:
      A function of the constructor's arguments that returns a named tuple `(init, apply)`. `state = init(params)` makes the
      state: slots, counters, and hyperparameters that are variables. `params, state = apply(state, updates, params)` takes
      one step; `updates` are gradients, a dict of the same variables or a structure of as many arrays, in JAX's order.

    Raises:
      ValueError: in `apply`, if updates are missing or do not fit, or `init` has not seen a parameter.

    Source: Sonnet 2, `snt.functional.optimizer`.

    >>> import modulekit as mk
    >>> w = mk.Variable(1.0, name="w")
    >>> momentum = mk.functional.optimizer(mk.optimizers.Momentum)(0.1, momentum=0.9)
    >>> params = mk.functional.transform(lambda: w * 2).init()
    >>> state = momentum.init(params)
    >>> params, state = momentum.apply(state, jax.tree.map(jnp.ones_like, params), params)
    >>> float(params[w]), float(w)
    (0.8999999761581421, 1.0)
    """

    def make(*args: Any, **kwargs: Any) -> TransformedOptimizer:
        made = cls(*args, **kwargs)
        return TransformedOptimizer(functools.partial(_init, made), functools.partial(_apply, made))

    parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]  # without self
    make.__name__ = make.__qualname__ = cls.__name__.lower()
    make.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return make


def _init(made: Optimizer, params: Mapping[Variable, Any]) -> Values:
    def first_step() -> None:
        for variable, value in params.items():
            variable.assign(value)
        made.apply([jnp.zeros(v.shape, v.dtype) for v in params], list(params))

    return Values({v: value for v, value in used_by(first_step).items() if v not in params})


def _apply(
    made: Optimizer, state: Mapping[Variable, Any], updates: Any, params: Mapping[Variable, Any]
) -> tuple[Values, Values]:
    trained = ordered(params)
    _, new = applied(made.apply, {**params, **state}, _listed(updates, trained), trained)
    return Values({v: new[v] for v in params}), Values({v: new[v] for v in state})


def _listed(updates: Any, trained: Sequence[Variable]) -> list[Any]:
    """Returns the updates in the order of the parameters."""
    if not isinstance(updates, Mapping):
        return jax.tree.leaves(updates)
    differing = [v.name for v in (*trained, *updates) if (v in trained) != (v in updates)]
    if differing:
        raise ValueError(f"`updates` and `params` must have the same variables. Only one of them has {differing}")
    return [updates[v] for v in trained]


sgd = optimizer(SGD)
sgd.__doc__ = """Returns `SGD` as a pair `(init, apply)` of pure functions. Arguments are those of `SGD`.

Source: Sonnet 2, `snt.functional.sgd`.

>>> sgd(0.1)._fields
('init', 'apply')
"""
adam = optimizer(Adam)
adam.__doc__ = """Returns `Adam` as a pair `(init, apply)` of pure functions. Arguments are those of `Adam`.

Source: Sonnet 2, `snt.functional.adam`.

>>> adam(0.1)._fields
('init', 'apply')
"""
rmsprop = optimizer(RMSProp)
rmsprop.__doc__ = """Returns `RMSProp` as a pair `(init, apply)` of pure functions. Arguments are those of `RMSProp`.

Source: Sonnet 2, `snt.functional.rmsprop`.

>>> rmsprop(0.1)._fields
('init', 'apply')
"""
momentum = optimizer(Momentum)
momentum.__doc__ = """Returns `Momentum` as a pair `(init, apply)` of pure functions. Arguments are those of `Momentum`.

Source: Sonnet 2, `snt.functional.momentum`.

>>> momentum(0.1, 0.9)._fields
('init', 'apply')
"""
