"""The update of one member of an ensemble as a pure program.

Whether two members can be trained side by side is decided by what their updates compute, and not by what they look like:
each member's update is traced, and two updates are the same if the programs are, word for word, over variables of the same
shapes in the order of their use. An activation or a dropout rate that differs makes another program; a learning rate that
differs is an input of the same one.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxpr_as_fun

import modulekit as mk
from modulekit.core.overlay import bakes_reads
from modulekit.core.pieces import Grouping, tracing
from modulekit.core.randomness import default_stream
from modulekit.core.variable import Variable
from modulekit.transforms.settle import plain
from scenarios.base.moment import at
from scenarios.ensemble.numbers import replaced


@dataclass(frozen=True, eq=False)
class Program:
    """What one update of a member computes: `loss, new = program(changing, kept, numbers, key, step, batch)`.

    Attributes:
      writes: the variables that it changes, in the order of their names.
      reads: those that it only reads.
      layout: how the values of those that it changes lie together.
      numbers: the hyperparameters that are its inputs, by name.
      draws: whether it draws random numbers.
    """

    writes: tuple[Variable, ...]
    reads: tuple[Variable, ...]
    layout: Grouping
    numbers: Mapping[str, float]
    draws: bool
    _jaxpr: Any = field(repr=False)
    _text: str = field(repr=False)

    def __call__(
        self, changing: Sequence[Any], kept: Sequence[Any], numbers: Sequence[Any], key: Any, step: Any, batch: Any
    ) -> tuple[Any, list[Any]]:
        """Runs the program.

        Args:
          changing: the values of the variables that it changes, laid together.
          kept: of those that it only reads.
          numbers: of the hyperparameters.
          key: the data of the random key at which the draws begin.
          step: the number of updates before.
          batch: the examples.

        Returns:
          `(loss, new)`, where `new` are the new values of what changes, laid together.
        """
        leaves = jax.tree.leaves((list(changing), list(kept), list(numbers), key, step, batch))
        loss, *new = jaxpr_as_fun(self._jaxpr)(*leaves)
        return loss, new

    @property
    def variables(self) -> tuple[Variable, ...]:
        """All that it uses."""
        return *self.writes, *self.reads

    @property
    def flops(self) -> float:
        """Floating-point operations, as XLA counts them before it compiles; 0 where it does not tell."""
        function = jax.jit(jaxpr_as_fun(self._jaxpr))
        analysis = function.lower(*self._jaxpr.in_avals).cost_analysis()
        return float(analysis.get("flops", 0.0)) if isinstance(analysis, Mapping) else 0.0

    @property
    def is_constant(self) -> bool:
        """Whether nothing of the trace around has become part of the program."""
        return not any(isinstance(const, jax.core.Tracer) for const in self._jaxpr.consts)

    def is_same(self, other: "Program") -> bool:
        """Returns whether two programs compute the same function of their inputs."""
        if self._text != other._text or list(self.numbers) != list(other.numbers):
            return False
        return all(map(_is_same_array, self._jaxpr.consts, other._jaxpr.consts))


def trace(update: Callable[[Any], Any], optimizer: mk.Optimizer, numbers: Mapping[str, float], batch: Any) -> Program:
    """Returns the program of a member's update; makes the variables that do not exist yet, and changes none.

    Args:
      update: from a batch to the loss.
      optimizer: of the member.
      numbers: its hyperparameters that are to be inputs. One that the optimizer looks at in Python cannot be: then none is.
      batch: the structure of a batch, of `jax.ShapeDtypeStruct`s.
    """
    found, stream = mk.footprint(update, batch).by_name(), default_stream()
    own = (stream.key, stream.counter)
    writes = tuple(v for v in found.writes if v not in own)
    reads = tuple(v for v in found.reads if v not in found.writes and v not in own)
    layout = Grouping([(v.shape, v.dtype) for v in writes])

    def run(
        changing: list[Any], kept: list[Any], numbers: dict[str, Any], key: Any, step: Any, batch: Any
    ) -> list[Any]:
        # Apart from the trace around, so that the program is the same wherever it is traced.
        with tracing({}):
            values = (*layout.split(changing), *kept, key, jnp.zeros_like(stream.counter.stored()))
            bindings = dict(zip((*writes, *reads, *own), values, strict=True))
            with (
                replaced(optimizer, numbers),
                at(step),
                found.overlay(bindings, baked=bakes_reads()) as running,
            ):
                loss = plain(update(batch))
                found.check(running)
            return [loss, *layout.joined([running.values[v] for v in writes])]

    def traced(numbers: Mapping[str, float]) -> Any:
        changing = jax.eval_shape(layout.joined, [jax.ShapeDtypeStruct(v.shape, v.dtype) for v in writes])
        kept = [jax.ShapeDtypeStruct(v.shape, v.dtype) for v in reads]
        real = {name: jax.ShapeDtypeStruct((), jnp.float32, weak_type=True) for name in numbers}
        key = jax.ShapeDtypeStruct(stream.key.shape, stream.key.dtype)
        return jax.make_jaxpr(run)(changing, kept, real, key, jax.ShapeDtypeStruct((), jnp.int32), batch)

    try:
        jaxpr = traced(numbers)
    except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError):
        if not numbers:
            raise
        numbers = {}
        jaxpr = traced(numbers)
    in_order = {name: numbers[name] for name in sorted(numbers)}  # as JAX orders a dict
    return Program(writes, reads, layout, in_order, stream.counter in found.writes, jaxpr, str(jaxpr))


def _is_same_array(one: Any, other: Any) -> bool:
    if one is other:
        return True
    if isinstance(one, jax.core.Tracer) or isinstance(other, jax.core.Tracer):
        return False
    return one.dtype == other.dtype and np.array_equal(np.asarray(one), np.asarray(other))
