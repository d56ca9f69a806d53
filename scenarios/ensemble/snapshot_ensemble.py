"""Snapshot ensembles: the members are one model at several times of one run."""

import copy
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

import modulekit as mk
from modulekit.data import Arrays
from modulekit.metrics import correct
from scenarios.base.calling import call_model
from scenarios.base.scenario import Scenario
from scenarios.ensemble.ensemble_model import EnsembleModel, average_for, averaged
from scenarios.ensemble.numbers import real_numbers, replaced
from scenarios.objective import Loss, Penalty, Reduction, checked_reduction, objective
from scenarios.supervised import check_classes, pair


class Snapshots(mk.Module):
    """Copies of a model, frozen, one for the end of each cycle.

    Args:
      count: how many are kept.

    Attributes:
      models: the copies, modules; there are none before the first update.
      taken: a variable, how many hold a snapshot.
    """

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count
        self.models: list[Any] = []

    @mk.once
    def prepare(self, model: Any, inputs: Any) -> None:
        """Makes the copies, of a model that is built from the structure of its inputs."""
        mk.build(lambda x: call_model(model, x, True), inputs)
        self.models = [copy.deepcopy(model) for _ in range(self.count)]
        self.taken = mk.Variable(jnp.zeros([], jnp.int32), trainable=False, name="taken")
        for snapshot in self.models:
            snapshot.freeze()

    @property
    def ensemble(self) -> EnsembleModel:
        """The snapshots that have been taken, as one model.

        Raises:
          ValueError: there are none.
        """
        taken = int(self.taken) if self.models else 0
        if not taken:
            raise ValueError("no snapshot has been taken yet: the first one is taken at the end of the first cycle")
        return EnsembleModel(self.models[:taken])


class SnapshotEnsemble(Scenario):
    """Trains one model with a learning rate that is restarted, and keeps the model at the end of each cycle.

    `SnapshotEnsemble(steps, snapshots=5, ...)(model, optimizer, loss, data=(inputs, targets))`, perhaps with a part
    `penalty`, a function of the model. With cycles of C updates, update t (from 0) has the learning rate
    `a(t) = a_0 / 2 (1 + cos(pi (t mod C) / C))`, where `a_0` is the optimizer's own. `result.state["snapshots"].ensemble`
    is the ensemble, an `EnsembleModel` of frozen modules. Evaluations report its loss and accuracy, or the model's before
    there is a snapshot, and those of the model as `model_loss`, ...

    Args:
      steps: the number of updates.
      snapshots: how many are kept, the last ones.
      cycle: updates from one restart to the next; None for `steps // snapshots`. Updates left over begin a cycle that
        leaves no snapshot.
      reduction: whether the losses of a batch are taken as their "mean" or "sum".
      **settings: see `scenarios.Settings`.

    Raises:
      ValueError: a setting is out of range, or the optimizer has no learning rate that could be set.

    Source: Huang, Li, Pleiss, Liu, Hopcroft and Weinberger, Snapshot ensembles: train 1, get M for free, 2017, equation 2;
    there C is rounded up.

    >>> import jax.numpy as jnp, modulekit as mk
    >>> x = jnp.linspace(-1, 1, 32)[:, None]
    >>> train = SnapshotEnsemble(90, snapshots=3, batch_size=8, progress=False)
    >>> result = train(mk.Linear(1), mk.optimizers.SGD(0.3), mk.losses.squared_error, data=(x, 5 * x))
    >>> len(result.state["snapshots"].ensemble)
    3
    """

    def __init__(
        self,
        steps: int,
        snapshots: int = 5,
        cycle: int | None = None,
        reduction: Reduction = "mean",
        **settings: Any,
    ) -> None:
        super().__init__(steps, **settings)
        for name, value in (("snapshots", snapshots), ("cycle", cycle)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError(f"{name}={value!r}: expected an integer of at least 1")
        if cycle is None and 0 < steps < snapshots:
            raise ValueError(f"steps={steps} are too few for {snapshots} cycles: give more steps, or fewer snapshots")
        self.snapshots = snapshots
        self.cycle = cycle
        self.reduction = checked_reduction(reduction)

    @property
    def cycle_length(self) -> int:
        """Updates from one restart of the learning rate to the next."""
        return self.cycle or max(1, self.settings.steps // self.snapshots)

    def state(self) -> Mapping[str, mk.Module]:
        """Returns the place of the snapshots."""
        return {"snapshots": Snapshots(self.snapshots)}

    def update(
        self,
        batch: Any,
        *,
        model: Any,
        optimizer: mk.Optimizer,
        loss: Loss,
        penalty: Penalty | None = None,
        snapshots: Snapshots,
    ) -> Mapping[str, Any]:
        """Takes one step, and the snapshot at the end of a cycle; returns the loss before it, and the learning rate."""
        inputs, targets = pair(batch, "data")
        snapshots.prepare(model, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), inputs))
        position = self.step % self.cycle_length
        rate = self._largest_rate(optimizer) * (1 + jnp.cos(jnp.pi * position / self.cycle_length)) / 2
        value = lambda: objective(model, inputs, targets, loss, penalty, self.reduction)  # noqa: E731
        with replaced(optimizer, {"learning_rate": rate}):
            before = optimizer.minimize(value, model, weight=len(targets))
        number = self.step // self.cycle_length
        mk.cond(position + 1 == self.cycle_length, lambda: _take(snapshots, model, number), lambda: 0)
        return {"loss": before, "learning_rate": rate}

    def evaluate(self, batch: Any, *, model: Any, loss: Loss, snapshots: Snapshots, **parts: Any) -> Mapping[str, Any]:
        """Returns the loss of each example, and for integer targets whether it is right: of the snapshots, of the model."""
        inputs, targets = batch
        own = call_model(model, inputs, False)
        average = average_for(own, targets)
        outputs = [call_model(snapshot, inputs, False) for snapshot in snapshots.models]
        taken = snapshots.taken.value
        is_counted = jnp.concatenate([taken[None] == 0, jnp.arange(len(outputs)) < taken])
        together = averaged([own, *outputs], average, is_counted)
        named = {"": together, "model_": own}
        values = {f"{name}loss": loss(found, targets) for name, found in named.items()}
        if average == "probabilities":
            values.update({f"{name}accuracy": correct(found, targets) for name, found in named.items()})
        return values

    def check(self, data: Arrays | None, eval_data: Arrays | None, *, model: Any, loss: Loss, **parts: Any) -> None:
        """Raises `ValueError` where an integer target is no class of the model."""
        check_classes(model, loss, data, eval_data)

    def _largest_rate(self, optimizer: mk.Optimizer) -> float:
        rate = real_numbers(optimizer).get("learning_rate")
        if rate is None:
            raise ValueError(
                f"{optimizer!r} has no learning rate that is a number, which SnapshotEnsemble lets fall and restarts: give "
                "an optimizer such as mk.optimizers.Momentum(0.1, 0.9), without Scheduled"
            )
        return rate


def _take(snapshots: Snapshots, model: Any, number: Any) -> int:
    """Writes the model's values into the copy for a cycle."""
    place = number % snapshots.count
    for index, snapshot in enumerate(snapshots.models):
        for copied, own in zip(snapshot.paths().values(), model.paths().values(), strict=True):
            copied.assign(jnp.where(index == place, own.current(), copied.current()))
    snapshots.taken.assign(jnp.minimum(number + 1, snapshots.count))
    return 0
