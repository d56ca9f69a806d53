"""One run of a scenario: puts together what the loop needs, and restores what was saved."""

import functools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

import modulekit as mk
from modulekit.averaging import WeightAverage
from modulekit.checkpoints import CheckpointStore, check_writable
from modulekit.core.module import modules_in
from modulekit.core.processes import is_first, whole
from modulekit.core.randomness import default_stream
from modulekit.core.variable import Variable
from modulekit.data import Arrays, Pipeline, Stream, stream
from scenarios.base.batches import GroupedBatches, Indices, chosen
from scenarios.base.compilation import kept_programs
from scenarios.base.devices import Devices
from scenarios.base.evaluating import Around, Evaluator, compiled
from scenarios.base.feeding import Chunk, Fed, Feed, arrays_feed
from scenarios.base.hooks import Hook, JsonLines
from scenarios.base.identity import identity
from scenarios.base.lock import sole_use
from scenarios.base.loop import Loop
from scenarios.base.manifest import write_manifest
from scenarios.base.moment import at
from scenarios.base.nonfinite import NonFiniteError, examine, keep
from scenarios.base.parts import is_optimizer, ties_by_path, variables_by_path, with_parts
from scenarios.base.progress import progress_hook
from scenarios.base.result import Result
from scenarios.base.saving import Progress, Saver, holds_states, open_store, progress_in
from scenarios.base.settings import Settings
from scenarios.base.stepping import Stepper
from scenarios.base.stopping import LeftAtOnce

Function = Callable[..., Any]
_METHODS = {
    "evaluate": 1,
    "measure": 1,
    "pictures": 1,
    "check": 2,
    "prepare": 2,
    "around": 1,
}  # arguments before the parts


@dataclass
class Run:
    """Runs a scenario's functions on parts and data.

    Args:
      scenario: the scenario.
      settings: its settings.
      parts: the models, optimizers and losses, by name, with the scenario's own state.
      data: the examples of training.
      eval_data: the examples of evaluation, if there are any.
      hooks: hear the events.
      state: those of the parts that the scenario made.

    Attributes:
      devices: where variables and examples lie.
    """

    scenario: Any
    settings: Settings
    parts: dict[str, Any]
    data: Any
    eval_data: Any = None
    hooks: Sequence[Hook] = ()
    state: Mapping[str, mk.Module] = field(default_factory=dict)
    _average: WeightAverage | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.name = type(self.scenario).__name__
        self.devices = Devices(self.settings.mesh, self.settings.placement, self.scenario.has_members)
        if self.data is None:
            raise TypeError("data is None: where updates need no examples, give data=np.zeros([1]) and batch_size=1")
        self.examples: Arrays | Stream = self._stream() if _is_stream(self.data) else Arrays(self.data)
        self.eval_examples = None if self.eval_data is None else Arrays(self.eval_data)
        if isinstance(self.examples, Arrays):
            self.choose(0, 1)  # checks the sizes
        methods = {
            name: self.method(name) for name in _METHODS
        }  # which are looked at now, and not in the middle of a run
        if self.eval_examples is not None and methods["evaluate"] is None and methods["measure"] is None:
            raise TypeError(f"{self.name} was given eval_data, and has no method evaluate(batch, **parts)")

    def __call__(self) -> Result:
        """Trains, from the newest saved state if there is one."""
        if self.settings.directory is not None:
            check_writable(self.settings.directory, "save_dir")
        writes = is_first()  # of several processes
        with sole_use(self.settings.directory), self.prepared() as prepared:
            saver, hooks, progress = prepared.saver, [*self.hooks], prepared.progress
            if self.settings.directory is not None and writes:
                write_manifest(self.settings.directory, self.identity(), progress.step, prepared.parameters)
                hooks.append(JsonLines(self.settings.directory / "log.jsonl"))
            if self.settings.progress and writes:
                hooks.append(progress_hook())
            loop = Loop(
                self.name, self.settings, prepared.feed, prepared.stepper, prepared.evaluator, saver, hooks,
                functools.partial(self.explain, prepared), self._alarms,
            )  # fmt: skip
            metrics, reason = loop.run(progress)
        return Result(
            progress.step, metrics, progress.history, self.settings.directory, prepared.parameters, reason,
            progress.skipped, progress.seconds, self._average,
            self.state, progress.alarms,
        )  # fmt: skip

    @contextmanager
    def prepared(self, step: int | None = None, restore: bool = True) -> Iterator["Prepared"]:
        """Context in which all that a run needs is there, and the variables are those of a saved state.

        The default random stream is afterwards as it was: a run has random numbers of its own.

        Args:
          step: up to which the saved state may be; None for the newest one.
          restore: False leaves saved states alone.
        """
        settings = self.settings
        if settings.directory is not None:
            check_writable(settings.directory, "save_dir")
        default = default_stream()
        kept = (default.key.current(), default.counter.current())
        with ExitStack() as closing:
            if settings.cache_dir is not None:
                check_writable(Path(settings.cache_dir), "cache_dir")
                closing.enter_context(kept_programs(settings.cache_dir))
            closing.callback(default.key.assign, kept[0])
            closing.callback(default.counter.assign, kept[1])
            store, saver, progress = None, None, Progress()
            if restore and settings.directory is not None and holds_states(settings.directory):
                store = self._opened(settings.directory, closing)
                progress = progress_in(store, step)
            feed = self._feed(progress)
            closing.callback(feed.close)
            stepper, kept_parts = self.made(feed.batch)
            check, prepare = self.method("check"), self.method("prepare")
            if check is not None:
                check(self.examples if isinstance(self.examples, Arrays) else None, self.eval_examples)
            variables = variables_by_path(kept_parts)
            if settings.directory is not None and restore:
                self._check_held(stepper, variables)
                store = store or self._opened(settings.directory, closing)
                saver = Saver(store, variables, ties_by_path(kept_parts), self.identity(), self.hooks)
                restored = saver.restore(settings.steps, step)
                if restored is not None:
                    progress = restored
                    if settings.steps_per_call is None:
                        stepper = self._stepper(feed.batch, progress.in_loop)
            if prepare is not None:
                progress.form = prepare(feed.batch, progress.form)
            yield Prepared(feed, stepper, self._evaluator(), saver, variables, progress)

    def made(self, batch: Any) -> tuple[Stepper, dict[str, Any]]:
        """Makes the variables that do not exist yet, and puts all where they are to lie.

        Args:
          batch: the structure of a batch, of `jax.ShapeDtypeStruct`s.

        Returns:
          What runs updates, and the parts with the average of the weights.
        """
        with self.devices.making(self.parts):
            stepper = self._stepper(batch, None)
        parts = self.parts if self._average is None else {**self.parts, "ema": self._average}
        self.devices.place(parts)
        return stepper, parts

    def _opened(self, directory: Path, closing: ExitStack) -> CheckpointStore:
        """Opens the store of states, to be closed at the end: at once where the user has left at once."""
        store = open_store(directory, self.settings)
        closing.push(lambda kind, error, at: None if isinstance(error, LeftAtOnce) else store.close())
        return store

    def identity(self) -> dict[str, Any]:
        """Returns what the run is made of."""
        eval_data = None if self.eval_examples is None else self.eval_examples.fingerprint()
        data = self.examples.fingerprint() if isinstance(self.examples, Arrays) else self.examples.describe()
        return identity(self.scenario, self.settings, self.parts, data, eval_data)

    def method(self, name: str) -> Function | None:
        """Returns a method that a scenario may leave out, as a function that has its parts; None where it is left out."""
        method = getattr(self.scenario, name, None)
        return None if method is None else with_parts(method, f"{self.name}.{name}", _METHODS[name], self.parts)

    def choose(self, step: int, count: int) -> Indices:
        """Returns which examples in memory updates take, `[count, ..., batch]`."""
        if not isinstance(self.examples, Arrays):
            raise TypeError(f"a stream brings its own batches: {self.examples.describe()}")
        return chosen(self.scenario, self.settings, self.examples.size, step, count)

    def bare_update(self, batch: Any, step: Any = 0) -> Any:
        """The scenario's update as a function of a batch and the number of updates before it."""
        with at(step):
            return self.scenario.update(batch, **self.parts)

    @functools.cached_property
    def update(self) -> Function:
        """The same, with the average of the weights behind it."""
        if self.settings.ema_decay is None:
            return self.bare_update
        modules = {n: p for n, p in self.parts.items() if not is_optimizer(p) and next(modules_in(p), None) is not None}
        self._average = average = WeightAverage(self.settings.ema_decay, modules, name="ema")

        def averaging(batch: Any, step: Any = 0) -> Any:
            metrics = self.bare_update(batch, step)
            average.update()
            return metrics

        return averaging

    @functools.cached_property
    def evaluate(self) -> Function | None:
        """The scenario's evaluation as a function of a batch, None if it has none."""
        return self.method("evaluate")

    @functools.cached_property
    def _evaluate_batch(self) -> Function | None:
        """The evaluation of the examples of an update that was not finite, compiled once."""
        return None if self.evaluate is None else compiled(self.evaluate)

    def _feed(self, saved: Progress) -> Feed:
        """Returns what brings the examples, from where the saved run stands."""
        s, everywhere = self.settings, self.devices.everywhere
        place = None if everywhere is None else self.place_of_stack
        if isinstance(self.examples, Arrays):
            return arrays_feed(self.examples, self.choose, saved.step, s.data_on_device, everywhere, place)
        if saved.position is not None:
            self.examples.restore(saved.position)
        if s.directory is not None and not self.examples.resumable:
            print(f"{self.name} on {self.examples.describe()}", file=sys.stderr, flush=True)
        return Fed(self.examples, place=place)

    def place_of_stack(self, shape: tuple[int, ...]) -> jax.sharding.Sharding | None:
        """Returns how a stack of batches from the host lies, `[count, ..., batch, ...]`; None for one device."""
        return self.devices.place_of(shape, self.leading + 1)

    def _stepper(self, batch: Any, in_loop: bool | None) -> Stepper:
        s = self.settings
        chosen = min(s.steps_per_call, max(s.steps, 1)) if isinstance(s.steps_per_call, int) else None
        around = self.method("around") if s.ema_decay is None else None  # averages read the weights of each step
        return Stepper(self.update, batch, self._slots, s.seed, chosen, in_loop, around, self.devices, self.leading)

    def _slots(self) -> set[Variable]:
        optimizers = {name: part for name, part in self.parts.items() if is_optimizer(part)}
        return set(variables_by_path(optimizers).values())

    def _evaluator(self) -> Evaluator | None:
        evaluate = None if self.eval_examples is None else self.evaluate
        measure, pictures = self._of_data("measure"), self._of_data("pictures")
        if evaluate is None and measure is None and pictures is None:
            return None
        views: dict[str, Around] = {"": nullcontext}
        if self._average is not None:
            views["ema_"] = self._average.averaged
        size = self.settings.eval_batch_size
        return Evaluator(evaluate, self.eval_examples, size, views, self.settings.seed, measure, pictures, self.devices)

    def _of_data(self, name: str) -> Function | None:
        """Returns a method that looks at the parts and all evaluation data, as a function without arguments."""
        method = self.method(name)
        return None if method is None else functools.partial(method, self.eval_examples)

    def _alarms(self, metrics: Mapping[str, float]) -> list[str]:
        method = getattr(self.scenario, "alarms", None)
        return [] if method is None else list(method(metrics))

    def _check_held(self, stepper: Stepper, variables: Mapping[str, Variable]) -> None:
        held = set(variables.values())
        outside = [v for v in stepper.variables if v not in held]
        if outside:
            raise ValueError(
                f"{self.name}.update changes {outside[0].describe()} (made at {outside[0].origin}), which no part holds, so "
                "that it could not be saved: pass the module that holds it as a part"
            )

    def _flat(self, batch: Any) -> Any:
        """Returns the examples of an update as one batch, where it takes several."""
        leading = self.leading
        return jax.tree.map(lambda a: a.reshape(-1, *a.shape[leading + 1 :]), batch) if leading else batch

    @property
    def leading(self) -> int:
        """The number of axes of an update's data before that of the batch."""
        if isinstance(self.examples, Arrays):
            return self.choose(0, 1).ndim - 2
        return int(isinstance(self.examples, GroupedBatches))

    def _stream(self) -> Stream:
        batches = self.scenario.batches_per_update
        return stream(self.data) if batches == 1 else GroupedBatches(stream(self.data), batches)

    def explain(
        self, prepared: "Prepared", progress: Progress, chunk: Chunk, index: int, metrics: Mapping[str, float]
    ) -> NonFiniteError:
        """Returns the error for an update that gave values that are not finite, from its chunk and its place there."""
        stepper = prepared.stepper
        held = {v: path for path, v in prepared.variables.items()}
        values = stepper.attempt(progress.step, chunk, index)
        written = {held.get(v, v.name): value for v, value in zip(stepper.variables, values, strict=True)}
        indices = None if chunk.indices is None else chunk.indices[index].reshape(-1)
        leaves, structure = jax.tree.flatten(self._flat(chunk.batch(index)))
        batch = jax.tree.unflatten(structure, whole(leaves))
        program = self._evaluate_batch
        evaluate = None if program is None else functools.partial(program, step=np.int32(progress.step))
        error = examine(progress.step + 1, metrics, indices, batch, written, evaluate, progress.losses)
        if self.settings.directory is not None and is_first():
            folder = keep(error, metrics, indices, batch, self.settings.directory)
            error.add_note(f"its examples and the losses before it are in {folder}")
        return error


@dataclass(frozen=True)
class Prepared:
    """All that a run needs, its variables included.

    Attributes:
      feed: brings the training examples.
      stepper: runs updates.
      evaluator: evaluates, if there is evaluation data.
      saver: saves, if there is a directory.
      variables: by path, all that the run changes.
      progress: how far the run is.
    """

    feed: Feed
    stepper: Stepper
    evaluator: Evaluator | None
    saver: Saver | None
    variables: Mapping[str, Variable]
    progress: Progress

    @property
    def parameters(self) -> int:
        """The number of trainable numbers, each shared variable counted once."""
        return sum(v.size for v in self.variables.values() if v.trainable)


def _is_stream(data: Any) -> bool:
    """Returns whether data comes batch by batch, and is not a structure of arrays."""
    if isinstance(data, Stream | Pipeline):
        return True
    is_structure = isinstance(data, Arrays | Mapping | tuple | list | str) or hasattr(data, "__array__")
    return not is_structure and (callable(data) or hasattr(data, "__iter__"))
