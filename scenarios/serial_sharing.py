"""Serial sharing: phases of training, one after the other, on models that have variables in common."""

import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

import modulekit as mk
from modulekit.data import Arrays, batch_indices
from modulekit.metrics import correct
from scenarios.base.calling import call_model
from scenarios.base.parts import variables_by_path
from scenarios.base.scenario import Scenario
from scenarios.ensemble.ensemble_model import average_for
from scenarios.ensemble.splits import parts as equal_parts
from scenarios.objective import Loss, Penalty, Reduction, checked_reduction, objective
from scenarios.supervised import check_classes, pair


class Phases(mk.Module):
    """What a run keeps of its phases.

    Attributes:
      initial_loss: a variable `[phases]`, the loss before the first update of each; NaN before that.
    """

    @mk.once
    def prepare(self, count: int) -> None:
        """Makes the variable."""
        self.initial_loss = mk.Variable(jnp.full([count], jnp.nan), trainable=False, name="initial_loss")


class SerialSharing(Scenario):
    """Trains models one after the other: phase p minimizes `E_p[loss(f_p(x), y)]` on the p-th part of the data.

    `SerialSharing(steps, phases=2, ...)(models, optimizers, loss, data=(inputs, targets), eval_data=(inputs, targets))`,
    with a model and an optimizer for each phase, and perhaps a part `penalty`, a function of a model whose value is added
    to its loss. Models may hold the same variables, by reference or by name (`mk.variable_scope`): then a phase goes on
    from what the one before has learned. All phases are one run and one program, which resumes at any step.

    Evaluations report the loss, and for integer targets the accuracy, of the last update's phase, and those of each
    phase's model as `phase0_loss`, ... `result.state["phases"].initial_loss` are the losses at which phases began.

    Args:
      steps: the number of updates of all phases.
      phases: how many there are; the data is split into as many equal parts, one behind the other.
      lengths: updates of each phase; None for equal parts of `steps`. The last one lasts until the end.
      shared: True demands that the models share trainable variables, each with each, False that they share none; None takes
        both.
      reduction: whether the losses of a batch are taken as their "mean" or "sum".
      **settings: see `scenarios.Settings`.

    Raises:
      ValueError: a setting is out of range, or the models are not as `shared` says.

    >>> import jax.numpy as jnp, modulekit as mk
    >>> x = jnp.linspace(-1, 1, 32)[:, None]
    >>> model, rates = mk.Linear(1), (0.3, 0.1)
    >>> train = SerialSharing(200, shared=True, batch_size=8, progress=False)
    >>> result = train(
    ...     [model, model], [mk.optimizers.SGD(rate) for rate in rates], mk.losses.squared_error, data=(x, 5 * x))
    >>> first, second = result.state["phases"].initial_loss.numpy()
    >>> bool(second < 0.1 * first)
    True
    """

    def __init__(
        self,
        steps: int,
        phases: int = 2,
        lengths: Sequence[int] | None = None,
        shared: bool | None = None,
        reduction: Reduction = "mean",
        **settings: Any,
    ) -> None:
        super().__init__(steps, **settings)
        if isinstance(phases, bool) or not isinstance(phases, int) or phases < 1:
            raise ValueError(f"phases={phases!r}: expected an integer of at least 1")
        if lengths is not None and (len(lengths) != phases or any(length < 1 for length in lengths)):
            raise ValueError(f"lengths={list(lengths)}: expected {phases} numbers of updates, each at least 1")
        if lengths is None and 0 < steps < phases:
            raise ValueError(f"steps={steps} are too few for {phases} phases: give more steps, or fewer phases")
        self.phases = phases
        self.lengths = None if lengths is None else tuple(lengths)
        self.shared = shared
        self.reduction = checked_reduction(reduction)

    @property
    def starts(self) -> tuple[int, ...]:
        """The number of updates before each phase."""
        lengths = self.lengths or [max(1, self.settings.steps // self.phases)] * self.phases
        return tuple(itertools.accumulate(lengths[:-1], initial=0))

    def state(self) -> Mapping[str, mk.Module]:
        """Returns what a run keeps of its phases."""
        return {"phases": Phases()}

    def indices(self, size: int, step: int, count: int) -> Any:
        """Returns which examples updates take, `[count, batch]`: each phase those of its part, in an order of its own."""
        found = [np.zeros([0, self.settings.batch_size], np.int32)]
        ends = (*self.starts[1:], step + count)
        for phase, (part, start, end) in enumerate(zip(equal_parts(size, self.phases), self.starts, ends, strict=True)):
            first, last = max(step, start), min(step + count, end)
            try:
                places = batch_indices(
                    len(part), self.settings.batch_size, self.settings.seed, max(first - start, 0), max(last - first, 0)
                )
            except ValueError as error:
                raise ValueError(f"phase {phase}: {error}") from None
            found.append(places + np.int32(part.start))
        return np.concatenate(found)

    def update(
        self,
        batch: Any,
        *,
        models: Sequence[Any],
        optimizers: Sequence[mk.Optimizer],
        loss: Loss,
        penalty: Penalty | None = None,
        phases: Phases,
    ) -> Mapping[str, Any]:
        """Takes one step with the phase's model; returns its loss before, and the number of the phase."""
        inputs, targets = pair(batch, "data")
        self._check_counts(models, optimizers)
        phases.prepare(self.phases)

        def step(model: Any, optimizer: mk.Optimizer) -> Any:
            value = lambda: objective(model, inputs, targets, loss, penalty, self.reduction)  # noqa: E731
            return jnp.asarray(optimizer.minimize(value, model, weight=len(targets)), jnp.float32)

        steps = [functools.partial(step, model, optimizer) for model, optimizer in zip(models, optimizers, strict=True)]
        phase = self._phase(self.step)
        before = mk.switch(phase, steps)
        begins = (jnp.arange(self.phases) == phase) & (jnp.asarray(self.starts) == self.step)
        phases.initial_loss.assign(jnp.where(begins, before, phases.initial_loss.value))
        return {"loss": before, "phase": phase}

    def evaluate(self, batch: Any, *, models: Sequence[Any], loss: Loss, **parts: Any) -> Mapping[str, Any]:
        """Returns the loss of each example, and for integer targets whether it is right: of the phase and of each model."""
        inputs, targets = batch
        values: dict[str, list[Any]] = {}
        for model in models:
            outputs = call_model(model, inputs, False)
            values.setdefault("loss", []).append(loss(outputs, targets))
            if average_for(outputs, targets) == "probabilities":
                values.setdefault("accuracy", []).append(correct(outputs, targets))
        phase = self._phase(jnp.maximum(self.step - 1, 0))
        current = {name: jnp.stack(columns)[phase] for name, columns in values.items()}
        each = {f"phase{p}_{name}": column for name, columns in values.items() for p, column in enumerate(columns)}
        return {**current, **each}

    def check(
        self,
        data: Arrays | None,
        eval_data: Arrays | None,
        *,
        models: Sequence[Any],
        loss: Loss,
        phases: Phases,
        **parts: Any,
    ) -> None:
        """Raises `ValueError` where models are not as `shared` says, a target is no class, or the data is a stream."""
        if data is None:
            raise ValueError("each phase has a part of the data, which a stream has not: give arrays")
        for model in models:
            check_classes(model, loss, data, eval_data)
        held = [variables_by_path({f"models[{index}]": model}) for index, model in enumerate(models)]
        for (one, ours), (other, theirs) in itertools.combinations(enumerate(held), 2):
            common = [path for path, v in ours.items() if v.trainable and v in set(theirs.values())]
            if self.shared and not common:
                raise ValueError(
                    f"models {one} and {other} share no trainable variable, and shared=True demands it: use the same layers "
                    "in both, or variables of the same name in a VariableStore that both hold"
                )
            if self.shared is False and common:
                raise ValueError(
                    f"models {one} and {other} share {', '.join(common)}, and shared=False demands that they share nothing: "
                    "give each variables of its own"
                )

    def _phase(self, step: Any) -> Any:
        """Returns the number of the phase of the update after `step` updates."""
        return (jnp.asarray(self.starts) <= step).sum() - 1

    def _check_counts(self, models: Any, optimizers: Any) -> None:
        for name, given in (("models", models), ("optimizers", optimizers)):
            count = len(given) if isinstance(given, Sequence) else 1
            if not isinstance(given, Sequence) or count != self.phases:
                raise ValueError(f"{self.phases} phases need {self.phases} {name} in a list, and got {count}")
