"""Many updates in one compiled program.

`Stepper` holds two forms of the same update: a loop over many steps, and a single step. The loop saves the cost of
going in and out of a program; but XLA may compile a loop's body worse than the same code on its own (a convolution on
CPU by an order of magnitude), so which form runs is decided by measuring the user's own update. XLA may also round the
two differently in the last bits: a run keeps to one form, and a loop of 1 step gives the same bits as one of 500.

An update is not applied if its metrics, the new weights or the optimizers' slots are not finite: all variables stay
those before it. The loop only notices that something went wrong; the same steps are then run again one by one, in the
same program, up to that one. No program chooses between old values and new ones: that would change how XLA fuses the
arithmetic before it.
"""

import functools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from time import perf_counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import modulekit as mk
from modulekit.core.arithmetic import value_of
from modulekit.core.pieces import Grouping
from modulekit.core.processes import agreed, whole
from modulekit.core.randomness import default_stream
from modulekit.core.storage import Holdings, forms_of, spread, stored_arrays
from modulekit.core.variable import Variable
from modulekit.transforms.settle import Footprint
from scenarios.base.devices import Devices
from scenarios.base.feeding import Chunk
from scenarios.base.pacing import Pacing

Metrics = dict[str, np.ndarray[Any, Any]]


class Stepper:
    """Runs an update many times; `pacing` says in which form, and how many steps a call should have.

    Args:
      update: a function of a batch and the number of updates before it that returns a dict of scalar metrics.
      batch: the structure of a batch, of `jax.ShapeDtypeStruct`s.
      slots: returns the variables that must stay finite beside the trainable ones.
      seed: of the random numbers; those of step k are a function of (seed, k).
      steps_per_call: how many steps one program runs at most, always in a loop; None measures and chooses.
      in_loop: the form that an earlier part of the run has found to be faster; None where that is not known.
      around: returns a context in which a loop runs its updates, from the structure of a batch; None for none.
      devices: where variables and examples lie; one device if None.
      leading: the number of axes of an update's examples before that of the batch.
    """

    def __init__(
        self,
        update: Callable[[Any, Any], Mapping[str, Any]],
        batch: Any,
        slots: Callable[[], Collection[Variable]],
        seed: int,
        steps_per_call: int | None,
        in_loop: bool | None = None,
        around: Callable[[Any], AbstractContextManager[None]] | None = None,
        devices: Devices | None = None,
        leading: int = 0,
    ) -> None:
        self._update = update
        self._around = around
        self._slots = slots
        self._seed = seed
        self._devices, self._leading = devices or Devices(None, "data_parallel"), leading
        self.pacing = Pacing(steps_per_call, in_loop)
        self.footprint = self._examine(batch)

    def _examine(self, batch: Any) -> Footprint:
        """Finds out which variables the update uses, and makes those that do not exist yet."""
        names: list[str] = []

        def examined(batch: Any, step: Any) -> dict[str, Any]:
            metrics = checked_metrics(self._update(batch, step))
            names.extend(metrics)
            return metrics

        found = mk.footprint(examined, batch, jax.ShapeDtypeStruct((), jnp.int32)).by_name()
        self._names = list(dict.fromkeys(names))
        stream = default_stream()
        self._draws = stream.counter in found.writes
        if self._draws:
            found.writes.update({stream.key: None, stream.counter: None})
        spread((*found.reads, *found.writes))  # a run rounds as it does in a process of its own
        known = found.copy()
        self._many = mk.jit(self._run_many, donate=False, known=known)  # the arrays before are needed if it fails
        self._one = mk.jit(self._run_one, donate=False, known=known)
        return found

    @property
    def variables(self) -> list[Variable]:
        """The variables that the update writes, without the random stream, which starts anew at each step."""
        stream = default_stream()
        return [v for v in self.footprint.writes if v is not stream.key and v is not stream.counter]

    def lowered(self, source: Any, row: Any) -> jax.stages.Lowered:
        """Returns the program of a single step before XLA compiles it. Nothing runs, and variables need no values.

        Args:
          source: the examples of a chunk, as `jax.ShapeDtypeStruct`s with their shardings.
          row: what the step takes of them, as one without.
        """
        numbers = [
            jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=self._devices.everywhere)
            for a in (row, jax.ShapeDtypeStruct((), jnp.int32))
        ]
        return self._one.lower(source, *numbers)

    def attempt(self, step: int, chunk: Chunk, index: int) -> list[Any]:
        """Returns the values that a step, at a place in a chunk, would give `variables`, which stay as they are."""
        with self._undone():
            self._run_step(step, chunk, index)
            return whole(stored_arrays(self.variables))

    def run(self, step: int, chunk: Chunk, meanwhile: Callable[[], None] = lambda: None) -> tuple[int, Metrics]:
        """Runs the steps from `step` on.

        Args:
          step: the number of the first step, 0 being the first of the run.
          chunk: the examples of each step.
          meanwhile: is called while the program runs.

        Returns:
          `(done, metrics)`: the number of steps applied, and arrays `[min(done + 1, count)]` of the metrics of each. If
          `done < count`, the step after gave values that are not finite, and was not applied.
        """
        if self.pacing.in_loop is None:
            self._try_both(step, chunk)
        began = perf_counter()
        run = self._run_loop if self.pacing.in_loop else self._run_one_by_one
        done, table = run(step, chunk, meanwhile)
        columns = np.asarray(table)[: min(done + 1, chunk.count)].T
        self.pacing.learn(chunk.count, agreed(perf_counter() - began))
        return done, dict(zip(self._names, columns, strict=True))

    def _try_both(self, step: int, chunk: Chunk) -> None:
        """Lets `pacing` choose the form, on the first step of a chunk and with nothing changed."""
        again = replace(chunk, rows=np.repeat(chunk.rows[:1], len(chunk.rows), axis=0))

        def loop(count: int) -> None:
            with self._undone():
                self._call_loop(step, again, count)

        def alone(count: int) -> None:
            with self._undone():
                for _ in range(count):
                    jax.block_until_ready(self._call_one(step, chunk, 0))

        self.pacing.choose(loop, alone)

    @contextmanager
    def _undone(self) -> Iterator[None]:
        """Context after which the variables are what they were."""
        before = Holdings(self.variables)
        try:
            yield
            Holdings(self.variables).wait()
        finally:
            before.give_back()

    def _run_loop(self, step: int, chunk: Chunk, meanwhile: Callable[[], None]) -> tuple[int, Any]:
        """Runs many steps; if a value went wrong on the way, runs them again from the start, looking at each."""
        before = Holdings(self.variables)
        sound, table = self._call_loop(step, chunk, chunk.count)
        meanwhile()
        if sound:
            return chunk.count, table
        before.give_back()
        return self._run_one_by_one(step, chunk, lambda: None)

    def _run_one_by_one(self, step: int, chunk: Chunk, meanwhile: Callable[[], None]) -> tuple[int, Any]:
        """Runs steps up to the first that is not finite, and takes that one back."""
        variables, done, rows = self.variables, 0, []
        for index in range(chunk.count):
            before = Holdings(variables)
            finite, metrics = self._run_step(step + done, chunk, index)
            rows.append(metrics)
            meanwhile()
            if not finite:
                before.give_back()
                break
            done += 1
        return done, np.stack(jax.device_get(rows))

    def _run_step(self, step: int, chunk: Chunk, index: int) -> tuple[Any, Any]:
        """Runs the step at a place in a chunk, in the form of the run; returns whether all went well, and the metrics."""
        if self.pacing.in_loop is False:
            return self._call_one(step, chunk, index)
        again = replace(chunk, rows=np.repeat(chunk.rows[index : index + 1], len(chunk.rows), axis=0))
        sound, table = self._call_loop(step, again, 1)
        return sound, table[0]

    def _call_loop(self, step: int, chunk: Chunk, count: int) -> tuple[Any, Any]:
        # Never a single row: XLA would take its batch out of the loop, and round what depends on it in another way.
        rows = np.repeat(chunk.rows, 2, axis=0) if len(chunk.rows) == 1 else chunk.rows
        return self._many(chunk.source, *self._put(rows, np.int32(step), np.int32(count)))

    def _call_one(self, step: int, chunk: Chunk, index: int) -> tuple[Any, Any]:
        return self._one(chunk.source, *self._put(chunk.rows[index], np.int32(step)))

    def _put(self, *numbers: Any) -> Any:
        return self._devices.put(numbers)

    # The programs.

    def _step(self, source: Any, row: Any, step: Any) -> Any:
        """Runs the update; returns its metrics, `[names]`, since an array for each would cost each step an operation."""
        self._restart_stream(step)
        batch = self._devices.divided(_examples(source, row), self._leading)
        metrics = checked_metrics(self._update(batch, step))
        return jnp.stack([jnp.asarray(metrics[name], jnp.float32) for name in self._names])

    def _guarded(self) -> list[Any]:
        """Returns the values that must stay finite: weights, and slots of optimizers."""
        slots = set(self._slots())
        guarded = [v for v in self.variables if (v.trainable or v in slots) and jnp.issubdtype(v.dtype, jnp.inexact)]
        return Grouping(forms_of(guarded)).joined([v.current() for v in guarded])

    def _restart_stream(self, step: Any) -> None:
        """Random numbers of a step are a function of (seed, step)."""
        if self._draws:
            default_stream().restart(jax.random.fold_in(jax.random.key(self._seed), step))

    def _run_one(self, source: Any, row: Any, step: Any) -> tuple[Any, Any]:
        """Runs one step; returns whether all went well, and the metrics, `[names]`."""
        metrics = self._step(source, row, step)
        return self._devices.shown((_all_finite((metrics, *self._guarded())), metrics))

    def _run_many(self, source: Any, rows: Any, first: Any, count: Any) -> tuple[Any, Any]:
        """Runs `count` steps unless a metric is not finite; returns whether all went well, and a table `[rows, names]`."""

        def body(state: Any) -> Any:
            index, _, table = state
            metrics = self._step(source, rows[index], first + index)
            return index + 1, _all_finite([metrics]), table.at[index].set(metrics)

        batch = jax.eval_shape(_examples, source, rows[0])
        with nullcontext() if self._around is None else self._around(batch):
            _, finite, table = self._loop(body, rows, count)
        return self._devices.shown((finite & _all_finite(self._guarded()), table))

    def _loop(self, body: Callable[[Any], Any], rows: Any, count: Any) -> Any:
        table = jnp.zeros([rows.shape[0], len(self._names)], jnp.float32)
        start = (jnp.zeros([], jnp.int32), jnp.ones([], bool), table)
        known = self.footprint.copy() if self._around is None else None  # inside it, other variables may be written
        return mk.while_loop(lambda s: (s[0] < count) & s[1], body, start, known=known)


def _examples(source: Any, row: Any) -> Any:
    return jax.tree.map(lambda array: array[row], source)


def _all_finite(values: Iterable[Any]) -> Any:
    return functools.reduce(jnp.logical_and, (jnp.isfinite(value).all() for value in values), jnp.ones([], bool))


def checked_metrics(metrics: Any) -> dict[str, Any]:
    """Returns what an update returned, or raises `TypeError` if it is no dict of scalars."""
    if not isinstance(metrics, Mapping) or not metrics:
        raise TypeError(
            f"update must return a dict of scalar metrics, such as {{'loss': loss}}; it returned {metrics!r}"
        )
    for name, value in metrics.items():
        if name == "step":
            raise ValueError("a metric cannot be named 'step', which is the history's own column: give it another name")
        if jnp.shape(value) != ():
            raise TypeError(
                f"update must return scalar metrics, and {name!r} has shape {list(jnp.shape(value))}: take its .mean()"
            )
    return {name: value_of(value) for name, value in metrics.items()}
