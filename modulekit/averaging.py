"""Averages of weights over training: a sibling of each trainable variable, which is never swapped in.

The weights that are trained and their averages live side by side. `update`, once behind each optimizer step, moves the
averages; `averaged` is a context in which reads of the weights give the averages instead. So the same evaluation runs
with either, nothing has to be put back, and an exception in between leaves nothing wrong.

An average begins with the weight that its first update sees, whether the model was built before or makes its variables
in the first step, compiled or not. It lives as long as the module holds its variable: a layer that is taken out takes
its averages along, and one that is added brings new ones.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from modulekit.core import births, collect, overlay
from modulekit.core.getters import custom_variable_getter
from modulekit.core.module import Module
from modulekit.core.names import absolute
from modulekit.core.variable import Variable

Tracked = Module | Mapping[str, Any] | Sequence[Any]
_SHOWN = 8


class _Average(NamedTuple):
    """The average of one variable, and how many updates are in it; those that began together share the count."""

    mean: Variable
    updates: Variable


class _Table:
    """What is averaged, and the average of each variable. It is no container: what it holds belongs to others."""

    def __init__(self, tracked: Tracked) -> None:
        self.tracked = tracked
        self.averages: dict[Variable, _Average] = {}

    def paths(self) -> dict[Variable, list[str]]:
        """Returns all paths to each variable, the first one first; the keys of a dict begin them as attributes do."""
        found: dict[Variable, list[str]] = {}
        for path, variable in collect.references(self.tracked, Variable, Module):
            if isinstance(self.tracked, Mapping):
                path = (("attribute", path[0][1]), *path[1:])
            found.setdefault(variable, []).append(collect.render(path))
        return found


class WeightAverage(Module):
    """Keeps an exponential moving average of each trainable variable: `a <- a + (1 - decay) (w - a)`, from `a = w`.

    The first update sets each average to its weight. With `debias`, update k counts as `(1 - decay) / (1 - decay^k)`
    instead of `1 - decay`, which gives the average that starts at zero with its bias divided out, as in Adam: early
    weights are forgotten sooner. Averages of half precision are kept in float32, and cast where they are read. Frozen
    variables keep their averages; a variable that no module holds any more loses it at the next update.

    Args:
      decay: how much of the past is kept, in [0, 1).
      tracked: a module, or a list, tuple or dict of modules and variables; they need not be built.
      debias: whether the first weights count like all others.
      name: the module's name.

    Attributes:
      averages: the variables `[...]` that hold the averages, by the first path of their weight in `tracked`.
      counts: variables that count updates: one for all averages that began together.

    Raises:
      ValueError: `decay` is outside of [0, 1).

    Sources: Polyak and Juditsky, Acceleration of stochastic approximation by averaging, 1992; the debiased form is that of
    Kingma and Ba, Adam, 2015, section 3.

    >>> import modulekit as mk
    >>> w = Variable(1.0, name="w")
    >>> average = WeightAverage(0.5, [w])
    >>> for value in (1.0, 2.0):
    ...     w.assign(value)
    ...     average.update()
    >>> with average.averaged():
    ...     float(w)
    1.5
    >>> float(w), float(average["[0]"])
    (2.0, 1.5)
    """

    def __init__(self, decay: float, tracked: Tracked, debias: bool = False, name: str | None = None) -> None:
        super().__init__(name=name)
        if not 0 <= decay < 1:
            raise ValueError(f"decay={decay}: expected a number in [0, 1), how much of the average an update keeps")
        self.decay = decay
        self.debias = debias
        self.averages: dict[str, Variable] = {}
        self.counts: tuple[Variable, ...] = ()
        self._table = _Table(tracked)

    def update(self) -> None:
        """Averages the current weights in; to be called once after each optimizer step, compiled with it or not.

        Raises:
          ValueError: there are no variables yet.
        """
        self._track()
        rates = {}
        for count in self.counts:
            count.assign_add(1)
            rates[count] = self._rate(count.current())
        for variable, (mean, updates) in self._table.averages.items():
            weight = jax.lax.stop_gradient(variable.current()).astype(mean.dtype)
            mean.assign(mean.current() + rates[updates].astype(mean.dtype) * (weight - mean.current()))

    def slot_owners(self) -> dict[Variable, Variable]:
        """Returns the weight of each average, which lies on a mesh as its weight does."""
        return {found.mean: weight for weight, found in self._table.averages.items()}

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Context in which reads of the weights give their averages; a weight without one is read as it is.

        Writes reach the weights themselves, and no gradient does. Functions compiled inside keep their programs apart from
        those outside, and compile once, however often the context is entered.
        """
        with custom_variable_getter(self._read):
            yield

    def __getitem__(self, place: str | Variable) -> Variable:
        named = isinstance(place, str)
        variables = [v for v, paths in self._table.paths().items() if place in paths] if named else [place]
        for variable in variables:
            if variable in self._table.averages:
                return self._table.averages[variable].mean
        raise KeyError(f"there is no average of {place!r}. {self._listed()}")

    def _listed(self) -> str:
        if not self.averages:
            return "There are none at all before the first update()"
        paths = list(self.averages)
        more = f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else ""
        return f"There are those of {', '.join(paths[:_SHOWN])}{more}"

    def _rate(self, count: jax.Array) -> jax.Array:
        """Returns the share of the new weights in the average, after as many updates as `count` says."""
        rate: Any = 1 - self.decay
        if self.debias and self.decay:
            rate = rate / -jnp.expm1(count * math.log(self.decay))
        return jnp.where(count == 1, 1.0, rate)

    def _read(self, variable: Any) -> Any:
        """Returns what stands for a variable in the context: the getter, of which there is one for each module."""
        known = self._table.averages.get(variable)
        if known is None:
            return variable
        mean = known.mean.current().astype(variable.dtype)
        return jax.lax.stop_gradient(jnp.where(known.updates.current() > 0, mean, variable.current()))

    def _track(self) -> None:
        """Makes the averages that are missing, and forgets those whose variables are gone."""
        table, paths = self._table, self._table.paths()
        if not paths:
            raise ValueError(
                f"there is nothing to average yet: {table.tracked!r} holds no variables. Call the module once, or mk.build "
                "it, before update()"
            )
        running = overlay.active()
        if running is not None:  # a compiled update depends on what the modules hold
            held = collect.references([table.tracked], Module, Module)
            running.ran.update((id(module), module) for _, module in held)
        missing = [v for v in paths if v.trainable and v not in table.averages and jnp.issubdtype(v.dtype, jnp.inexact)]
        known = {**table.averages, **self._made(missing)}
        table.averages = {v: known[v] for v in paths if v in known}
        averages = {paths[v][0]: mean for v, (mean, _) in table.averages.items()}
        if averages != self.averages:  # to set an attribute is to compile anew
            self.averages = averages
            self.counts = tuple(dict.fromkeys(updates for _, updates in table.averages.values()))

    def _made(self, variables: Sequence[Variable]) -> dict[Variable, _Average]:
        if not variables:
            return {}

        def make() -> dict[Variable, _Average]:
            count = Variable(jnp.zeros([], jnp.int32), trainable=False, name="count")
            return {v: _Average(Variable(_zeros(v), trainable=False, name=v.name), count) for v in variables}

        with absolute(self.scope_name):
            made: dict[Variable, _Average] = births.run_outside(make)
        return made


def _zeros(variable: Variable) -> jax.Array:
    """Returns zeros of a variable's shape, in float32 at least; on its devices."""
    return jnp.zeros_like(variable.stored(), jnp.promote_types(variable.dtype, jnp.float32))
