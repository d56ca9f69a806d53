"""One run of a scenario: puts together what the loop needs, and restores what was saved."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from modulekit.checkpoints import check_writable
from modulekit.core.randomness import default_stream
from modulekit.core.variable import Variable
from modulekit.data import Arrays, batch_indices
from scenarios.base.evaluating import Evaluator
from scenarios.base.hooks import Hook, JsonLines
from scenarios.base.loop import Loop
from scenarios.base.nonfinite import NonFiniteError, examine
from scenarios.base.parts import ties_by_path, variables_by_path
from scenarios.base.progress import progress_hook
from scenarios.base.result import Result
from scenarios.base.saving import Progress, Saver
from scenarios.base.settings import Settings
from scenarios.base.stepping import Stepper

Function = Callable[..., Any]


@dataclass
class Run:
    """Runs a scenario's functions on parts and data.

    Args:
      name: the scenario's name.
      settings: its settings.
      update: its `update(batch, **parts)`.
      evaluate: its `evaluate(batch, **parts)`, if it has one.
      check: its `check(data, eval_data, **parts)`, if it has one.
    """

    name: str
    settings: Settings
    update: Function
    evaluate: Function | None = None
    check: Function | None = None

    def __call__(self, parts: dict[str, Any], data: Any, eval_data: Any, hooks: list[Hook]) -> Result:
        """Runs, and leaves the default random stream as it was: the run has random numbers of its own."""
        examples = Arrays(data)
        eval_examples = None if eval_data is None else Arrays(eval_data)
        batch_indices(examples.size, self.settings.batch_size, self.settings.seed, 0, 1)  # checks the sizes
        if eval_examples is not None and self.evaluate is None:
            raise TypeError(f"{self.name} was given eval_data, and has no method evaluate(batch, **parts)")
        if self.settings.directory is not None:
            check_writable(self.settings.directory, "save_dir")
        stream = default_stream()
        kept = (stream.key.current(), stream.counter.current())
        try:
            return self._run(parts, examples, eval_examples, hooks)
        finally:
            stream.key.assign(kept[0])
            stream.counter.assign(kept[1])

    def _run(self, parts: dict[str, Any], data: Arrays, eval_data: Arrays | None, hooks: list[Hook]) -> Result:
        settings = self.settings
        stepper = self._stepper(parts, data, None)
        if self.check is not None:
            self.check(data, eval_data, **parts)
        variables = variables_by_path(parts)
        progress, saver = Progress(), None
        if settings.directory is not None:
            saved = self._all_saved(variables, stepper)
            saver = Saver(settings.directory, saved, ties_by_path(parts), self._identity(data))
            restored = saver.restore(settings.steps)
            if restored is not None:
                progress = restored
                if settings.steps_per_call is None:
                    stepper = self._stepper(parts, data, progress.in_loop)
            hooks = [*hooks, JsonLines(settings.directory / "log.jsonl")]
        if settings.progress:
            hooks = [*hooks, progress_hook()]
        loop = Loop(
            self.name, settings, data, stepper, self._evaluator(parts, eval_data), saver, hooks,
            functools.partial(self._explain, parts, stepper, variables),
        )  # fmt: skip
        try:
            metrics, reason = loop.run(progress)
        finally:
            if saver is not None:
                saver.close()
        parameters = sum(v.size for v in variables.values() if v.trainable)
        return Result(progress.step, metrics, progress.history, settings.directory, parameters, reason)

    def _stepper(self, parts: Mapping[str, Any], data: Arrays, in_loop: bool | None) -> Stepper:
        s = self.settings
        update = functools.partial(self.update, **parts)
        chosen = None if s.steps_per_call is None else min(s.steps_per_call, max(s.steps, 1))
        return Stepper(update, data.arrays, s.batch_size, s.seed, chosen, in_loop)

    def _evaluator(self, parts: Mapping[str, Any], eval_data: Arrays | None) -> Evaluator | None:
        if self.evaluate is None or eval_data is None:
            return None
        return Evaluator(functools.partial(self.evaluate, **parts), eval_data, self.settings.eval_batch_size)

    def _all_saved(self, variables: dict[str, Variable], stepper: Stepper) -> dict[str, Variable]:
        held = set(variables.values())
        outside = [v for v in stepper.variables if v not in held]
        if outside:
            raise ValueError(
                f"{self.name}.update changes {outside[0].describe()} (made at {outside[0].origin}), which no part holds, so "
                "that it could not be saved: pass the module that holds it as a part"
            )
        return variables

    def _identity(self, data: Arrays) -> dict[str, Any]:
        return {
            "scenario": self.name,
            "seed": self.settings.seed,
            "batch_size": self.settings.batch_size,
            "log_interval": self.settings.log_interval,
            "data": data.fingerprint(),
        }

    def _explain(
        self,
        parts: Mapping[str, Any],
        stepper: Stepper,
        variables: Mapping[str, Variable],
        step: int,
        metrics: Mapping[str, float],
        indices: np.ndarray[Any, Any],
    ) -> NonFiniteError:
        evaluate = None if self.evaluate is None else functools.partial(self.evaluate, **parts)
        held = {v: path for path, v in variables.items()}
        written = {held.get(v, v.name): v for v in stepper.variables}
        used = [*stepper.footprint.reads, *stepper.footprint.writes]
        return examine(
            step, metrics, indices, stepper.batch(indices), stepper.replay(step - 1), evaluate, written, used
        )
