"""A scenario: how models are trained, apart from which models.

The constructor takes settings. Calling the scenario takes the parts (models, optimizers, losses) and the data, and runs.
A new scenario is one class with one method, `update`; the base compiles it, runs many steps in one program, feeds data,
logs, evaluates, saves, resumes and stops.
"""

import abc
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, overload

from modulekit.core.overlay import active, bakes_reads
from scenarios.base import requests
from scenarios.base.hooks import Hook, checked_hooks
from scenarios.base.identity import in_words
from scenarios.base.mesh_plan import MeshPlan
from scenarios.base.moment import current_means, current_step
from scenarios.base.parts import made_state, named_parts
from scenarios.base.planning import plan, settings_of_plan, stand_ins
from scenarios.base.preflight import Preflight, preflight
from scenarios.base.rehearsal import rehearse
from scenarios.base.repetition import Repetition, repeat
from scenarios.base.replaying import Replay, replay
from scenarios.base.result import Result
from scenarios.base.run import Run
from scenarios.base.settings import Settings, checked_settings
from scenarios.base.verification import Verification, verify


class Scenario(abc.ABC):
    """Base class of all scenarios.

    A subclass defines `update(self, batch, *, part, another_part, ...)`, whose keyword arguments name the parts that a
    call takes. That is all it must define. It may also define, with those of the parts that it names wherever `...` stands:

    - `evaluate(self, batch, *, ...)`: returns a dict of arrays `[batch]`, one value per example; their means are exact for
      any batch size.
    - `measure(self, eval_data, *, ...)`: returns a dict of numbers that are no means over examples. It is called at each
      evaluation, outside of any program, with `mk.data.Arrays`, or None where there is no evaluation data. `self.means` are
      then the means that `evaluate` has given.
    - `pictures(self, eval_data, *, ...)`: returns a dict of pictures `[height, width]` or `[height, width, 3]` with values
      in [0, 1], which each evaluation writes to `pictures` in the run's directory.
    - `alarms(self, metrics)`: returns sentences about what is wrong, from the metrics of an evaluation.
    - `check(self, data, eval_data, *, ...)`: raises if the parts do not fit together; called when all variables exist, with
      `mk.data.Arrays`, or None for a stream and where there is no evaluation data.
    - `state(self)`: returns a dict of modules that belong to one run, such as counters. They are passed on as parts, saved
      with them, and returned as `result.state`.
    - `indices(self, size, step, count)`: returns which of `size` examples in memory updates take, `[count, ..., batch]`,
      from the settings and the number of updates before; batches have these axes. Where there is no such method, an update
      takes `batches_per_update` batches: `[batch]`, or `[batches_per_update, batch]` where that is above 1.
    - `example(cls)`: a class method that returns a small `scenarios.testing.Case`, on which `check_scenario` tries it.
    - `prepare(self, batch, form, *, ...)`: decides in which of several forms a run computes, and returns it as JSON can hold
      it. It is called before the first update, outside of any program, with the structure of its examples and what it has
      returned for an earlier part of the run, else None.
    - `has_members`: whether it trains members side by side, which `placement="members"` divides among the devices.
    - `around(self, batch, *, ...)`: returns a context in which a compiled loop runs its updates: what is cheaper to do once
      than before each of them. `batch` has the structure of their examples. An update must also do without it.

    `self.step` is the number of updates before, in `update`, `evaluate`, `measure` and `pictures`. Random numbers are
    functions of the seed and the step.

    Args:
      steps: the number of updates.
      **settings: see `scenarios.Settings`.

    Raises:
      ValueError, TypeError: a setting is out of range.

    >>> import jax.numpy as jnp, modulekit as mk, scenarios
    >>> class Fit(scenarios.Scenario):
    ...     def update(self, batch, *, model, optimizer):
    ...         x, y = batch
    ...         return {"loss": optimizer.minimize(lambda: ((model(x) - y) ** 2).mean(), model)}
    >>> x = jnp.linspace(-1, 1, 32)[:, None]
    >>> fit = Fit(100, batch_size=32, log_interval=10, progress=False)
    >>> result = fit(mk.Linear(1), mk.optimizers.SGD(0.5), data=(x, 5 * x))
    >>> result.step, result.metrics["loss"] < 1e-3
    (100, True)
    """

    def __init__(self, steps: int, **settings: Any) -> None:
        self.settings = checked_settings(type(self).__name__, steps, settings)

    def __repr__(self) -> str:
        return in_words(self, self.settings)

    batches_per_update: int = 1
    has_members: bool = False

    @property
    def step(self) -> Any:
        """The number of updates before the one that runs, or before the evaluation: in programs a scalar array."""
        return current_step()

    @property
    def means(self) -> Mapping[str, float]:
        """The means of `evaluate` over all evaluation examples, in `measure`; empty where there are none."""
        return current_means()

    @abc.abstractmethod
    def update(self, batch: Any, *args: Any, **parts: Any) -> Mapping[str, Any]:
        """Changes the parts by one step, and returns a dict of scalar metrics.

        Args:
          batch: the data's structure, with `batch_size` examples.
          *args: none; it lets a subclass name its parts.
          **parts: what the scenario was called with.
        """

    def __call__(
        self, *args: Any, data: Any, eval_data: Any = None, hooks: Iterable[Hook] = (), **parts: Any
    ) -> Result:
        """Runs the scenario.

        Args:
          *args: the parts, in the order of `update`'s keyword arguments.
          data: an array, or a tuple, list or dict of arrays that share their first axis; or batches one after the other:
            what `mk.data.stream` takes, but for lists and tuples. Where updates need no examples: `np.zeros([1])`, with
            `batch_size=1`.
          eval_data: arrays likewise; evaluated at the end, and every `eval_interval` updates.
          hooks: functions that hear the events of the run (`scenarios.base.events`); one that returns a
            `scenarios.Stop` ends it.
          **parts: parts by name.

        Returns:
          The result. The parts themselves are trained.

        Raises:
          NonFiniteError: an update gave a loss that is not finite; it was not applied.
          KeyboardInterrupt: on Ctrl-C, after the current program has finished and the state is saved.
          CheckpointError: the run's directory holds a state that does not fit, or another process trains in it.
        """
        run = self._run(args, data, eval_data, hooks, parts)
        requests.respond(self.settings.directory, run)
        return run()

    def verify_resume(
        self,
        *args: Any,
        data: Any,
        eval_data: Any = None,
        hooks: Iterable[Hook] = (),
        at: int | None = None,
        **parts: Any,
    ) -> Verification:
        """Trains copies of the parts without a break, and with a save, a fresh process and a resume in between.

        Args:
          *args: as for a call.
          data: as for a call.
          eval_data: as for a call.
          hooks: as for a call.
          at: the step after which to break; None for the middle.
          **parts: as for a call.

        Returns:
          What was compared; nothing differed.

        Raises:
          ResumeError: something differs; the message names the first array that does.
          ValueError: something cannot be pickled, or there is no such step.
        """
        run = self._run(args, data, eval_data, hooks, parts)
        return verify(run, max(1, self.settings.steps // 2) if at is None else at)

    def replay(
        self, step: int, /, *args: Any, data: Any, eval_data: Any = None, hooks: Iterable[Hook] = (), **parts: Any
    ) -> Replay:
        """Rebuilds a step: its examples, its random numbers and, from the newest state saved before it, its weights.

        Args:
          step: its number, the first one being 1.
          *args: as for a call.
          data: as for a call.
          eval_data: as for a call.
          hooks: as for a call.
          **parts: as for a call; afterwards they are as after the step.

        Raises:
          ValueError: there is no such step.
        """
        return replay(self._run(args, data, eval_data, hooks, parts), step)

    def reproduce(
        self,
        *args: Any,
        data: Any,
        eval_data: Any = None,
        hooks: Iterable[Hook] = (),
        repeated_steps: int = 20,
        **parts: Any,
    ) -> Repetition:
        """Runs the first steps of the run in `save_dir` again, and compares the losses. Nothing is written there.

        Args:
          *args: as for a call; parts as they were when the run began.
          data: as for a call.
          eval_data: as for a call.
          hooks: as for a call.
          repeated_steps: how many; the run has kept the losses of its first 100.
          **parts: as for a call.

        Raises:
          CheckpointError: `save_dir` holds no run.
        """
        return repeat(self._run(args, data, eval_data, hooks, parts), repeated_steps)

    def dry_run(self, *args: Any, data: Any, eval_data: Any = None, hooks: Iterable[Hook] = (), **parts: Any) -> Result:
        """Runs two updates, an evaluation of one batch, a save and a restore, and takes all of it back.

        Args:
          *args: as for a call; variables that do not exist yet are made, and keep their first values.
          data: as for a call.
          eval_data: as for a call.
          hooks: as for a call.
          **parts: as for a call.

        Returns:
          The result of the two updates. What a run would raise, this raises now.
        """
        return rehearse(self._run(args, data, eval_data, hooks, parts))

    @overload
    def preflight(
        self,
        *args: Any,
        data: Any,
        eval_data: Any = None,
        hooks: Iterable[Hook] = (),
        overfit: bool = True,
        memory_limit: int | None = None,
        mesh: None = None,
        **parts: Any,
    ) -> Preflight: ...

    @overload
    def preflight(
        self,
        *args: Any,
        data: Any,
        memory_limit: int | None = None,
        mesh: Mapping[str, int],
        placement: str | Mapping[str, Any] | None = None,
        **parts: Any,
    ) -> MeshPlan: ...

    def preflight(
        self,
        *args: Any,
        data: Any,
        eval_data: Any = None,
        hooks: Iterable[Hook] = (),
        overfit: bool = True,
        memory_limit: int | None = None,
        mesh: Mapping[str, int] | None = None,
        placement: str | Mapping[str, Any] | None = None,
        **parts: Any,
    ) -> Preflight | MeshPlan:
        """Says what a run will cost in memory, time and disk, and what is wrong with it; then all is as it was.

        With a `mesh` it says instead what an update will take on each of those devices, which need not be there: another
        process compiles it for them. Nothing runs then, no variable is made here, and values of parts and data do not count:
        data may hold `jax.ShapeDtypeStruct([examples, ...], dtype)` in place of arrays, and `eval_data`, `hooks` and `check`
        are not looked at. What is switched on in this process, such as a precision, is not in the other one.

        Args:
          *args: as for a call; variables that do not exist yet are made, and keep their first values.
          data: as for a call.
          eval_data: as for a call.
          hooks: as for a call; they hear nothing.
          overfit: whether to train on one batch for a while, to see whether it can be learned by heart.
          memory_limit: bytes of memory to reckon with; None for those of the device. On a mesh, those of each device; what
            an update takes is then compared with them if they are given, and all examples are taken to lie on the devices
            where they fit in half of them, unless `data_on_device` says so.
          mesh: how many devices there are along each axis, such as `{"data": 256, "model": 2}`.
          placement: how variables lie on the mesh; as in the settings if None.
          **parts: as for a call.

        Returns:
          The report: `print` it, read its `warnings`, or keep `in_json()`. What an update would raise, this raises now.
          With a mesh, a `scenarios.MeshPlan`.
        """
        if mesh is not None:
            settings = settings_of_plan(self.settings, mesh, placement)
            run = self._run(args, stand_ins(data), None, (), parts, replace(settings, mesh=None))
            return plan(run, settings, memory_limit)
        return preflight(self._run(args, data, eval_data, hooks, parts), overfit, memory_limit)

    def _run(
        self,
        args: tuple[Any, ...],
        data: Any,
        eval_data: Any,
        hooks: Iterable[Hook],
        parts: Mapping[str, Any],
        settings: Settings | None = None,
    ) -> Run:
        if active() is not None or bakes_reads():
            raise RuntimeError(
                f"{type(self).__name__} was called inside a transform: a scenario compiles its own steps"
            )
        state = made_state(self)
        named = named_parts(self.update, type(self).__name__, args, parts, state)
        return Run(self, settings or self.settings, {**named, **state}, data, eval_data, checked_hooks(hooks), state)
