"""One run of a scenario: puts together what the loop needs, and restores what was saved."""

import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from typing import Any

import modulekit as mk
from modulekit.averaging import WeightAverage
from modulekit.checkpoints import CheckpointStore, check_writable
from modulekit.core.randomness import default_stream
from modulekit.core.variable import Variable
from modulekit.data import Arrays, batch_indices
from scenarios.base.evaluating import Around, Evaluator
from scenarios.base.feeding import Chunk, Feed, Resident
from scenarios.base.hooks import Hook, JsonLines
from scenarios.base.identity import identity
from scenarios.base.loop import Loop
from scenarios.base.nonfinite import NonFiniteError, examine, keep
from scenarios.base.parts import ties_by_path, variables_by_path
from scenarios.base.progress import progress_hook
from scenarios.base.result import Result
from scenarios.base.saving import Progress, Saver, open_store
from scenarios.base.settings import Settings
from scenarios.base.stepping import Stepper

Function = Callable[..., Any]


@dataclass
class Run:
    """Runs a scenario's functions on parts and data.

    Args:
      scenario: the scenario, with a method `update` and perhaps `evaluate` and `check`.
      settings: its settings.
      parts: the models, optimizers and losses, by name.
      data: the examples of training.
      eval_data: the examples of evaluation, if there are any.
      hooks: hear the events.
    """

    scenario: Any
    settings: Settings
    parts: dict[str, Any]
    data: Any
    eval_data: Any = None
    hooks: Sequence[Hook] = ()
    _average: WeightAverage | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.name = type(self.scenario).__name__
        self.examples = Arrays(self.data)
        self.eval_examples = None if self.eval_data is None else Arrays(self.eval_data)
        batch_indices(self.examples.size, self.settings.batch_size, self.settings.seed, 0, 1)  # checks the sizes
        if self.eval_examples is not None and self._method("evaluate") is None:
            raise TypeError(f"{self.name} was given eval_data, and has no method evaluate(batch, **parts)")

    def __call__(self) -> Result:
        """Runs, and leaves the default random stream as it was: the run has random numbers of its own."""
        if self.settings.directory is not None:
            check_writable(self.settings.directory, "save_dir")
        stream = default_stream()
        kept = (stream.key.current(), stream.counter.current())
        try:
            with ExitStack() as closing:
                return self._run(closing)
        finally:
            stream.key.assign(kept[0])
            stream.counter.assign(kept[1])

    def _run(self, closing: ExitStack) -> Result:
        settings = self.settings
        saver, progress, hooks = None, Progress(), [*self.hooks]
        feed = self._feed()
        closing.callback(feed.close)
        stepper = self._stepper(feed, None)
        if self._method("check") is not None:
            self.scenario.check(self.examples, self.eval_examples, **self.parts)
        variables = variables_by_path(self._kept_parts())
        if settings.directory is not None:
            self._check_held(stepper, variables)
            store = open_store(settings)
            closing.callback(store.close)
            saver = self._saver(store, variables)
            restored = saver.restore(settings.steps)
            if restored is not None:
                progress = restored
                if settings.steps_per_call is None:
                    stepper = self._stepper(feed, progress.in_loop)
            hooks.append(JsonLines(settings.directory / "log.jsonl"))
        if settings.progress:
            hooks.append(progress_hook())
        explain = functools.partial(self._explain, stepper, variables)
        loop = Loop(self.name, settings, feed, stepper, self._evaluator(), saver, hooks, explain)
        metrics, reason = loop.run(progress)
        parameters = sum(v.size for v in variables.values() if v.trainable)
        return Result(
            progress.step, metrics, progress.history, settings.directory, parameters, reason, progress.skipped,
            dict(progress.seconds), self._average,
        )  # fmt: skip

    def _method(self, name: str) -> Function | None:
        return getattr(self.scenario, name, None)

    def _feed(self) -> Feed:
        return Resident(self.examples, self.settings.batch_size, self.settings.seed)

    def _stepper(self, feed: Feed, in_loop: bool | None) -> Stepper:
        s = self.settings
        chosen = None if s.steps_per_call is None else min(s.steps_per_call, max(s.steps, 1))
        return Stepper(self.update, feed.batch, self._slots, s.seed, chosen, in_loop)

    @functools.cached_property
    def update(self) -> Function:
        """The scenario's update as a function of a batch, with the average of the weights behind it."""
        update = functools.partial(self.scenario.update, **self.parts)
        if self.settings.ema_decay is None:
            return update
        modules = {n: p for n, p in self.parts.items() if isinstance(p, mk.Module) and not isinstance(p, mk.Optimizer)}
        self._average = average = WeightAverage(self.settings.ema_decay, modules, name="ema")

        def averaging(batch: Any) -> Any:
            metrics = update(batch)
            average.update()
            return metrics

        return averaging

    def _kept_parts(self) -> dict[str, Any]:
        return self.parts if self._average is None else {**self.parts, "ema": self._average}

    def _slots(self) -> set[Variable]:
        optimizers = {name: part for name, part in self.parts.items() if isinstance(part, mk.Optimizer)}
        return set(variables_by_path(optimizers).values())

    def _evaluator(self) -> Evaluator | None:
        if self._method("evaluate") is None or self.eval_examples is None:
            return None
        evaluate = functools.partial(self.scenario.evaluate, **self.parts)
        views: dict[str, Around] = {"": nullcontext}
        if self._average is not None:
            views["ema_"] = self._average.averaged
        return Evaluator(evaluate, self.eval_examples, self.settings.eval_batch_size, views)

    def _check_held(self, stepper: Stepper, variables: Mapping[str, Variable]) -> None:
        held = set(variables.values())
        outside = [v for v in stepper.variables if v not in held]
        if outside:
            raise ValueError(
                f"{self.name}.update changes {outside[0].describe()} (made at {outside[0].origin}), which no part holds, so "
                "that it could not be saved: pass the module that holds it as a part"
            )

    def _saver(self, store: CheckpointStore, variables: Mapping[str, Variable]) -> Saver:
        eval_data = None if self.eval_examples is None else self.eval_examples.fingerprint()
        made_of = identity(self.scenario, self.settings, self.parts, self.examples.fingerprint(), eval_data)
        return Saver(store, variables, ties_by_path(self._kept_parts()), made_of, self.hooks)

    def _explain(
        self,
        stepper: Stepper,
        variables: Mapping[str, Variable],
        progress: Progress,
        chunk: Chunk,
        index: int,
        metrics: Mapping[str, float],
    ) -> NonFiniteError:
        evaluate = self._method("evaluate")
        held = {v: path for path, v in variables.items()}
        written = {held.get(v, v.name): v for v in stepper.variables}
        used = [*stepper.footprint.reads, *stepper.footprint.writes]
        indices = None if chunk.indices is None else chunk.indices[index]
        batch = chunk.batch(index)
        error = examine(
            progress.step + 1, metrics, indices, batch, stepper.replay(progress.step),
            None if evaluate is None else functools.partial(evaluate, **self.parts), written, used, progress.losses,
        )  # fmt: skip
        if self.settings.directory is not None:
            folder = keep(error, metrics, indices, batch, self.settings.directory)
            error.add_note(f"its examples and the losses before it are in {folder}")
        return error
