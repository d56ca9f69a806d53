"""Ensembles: independent members, trained side by side in one program where their updates are the same."""

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np

import modulekit as mk
from modulekit.core.processes import are_several
from modulekit.core.variable import Variable
from modulekit.data import Arrays, batch_indices
from modulekit.metrics import correct
from modulekit.optimizers.base import hyperparameters
from scenarios.base.calling import call_model
from scenarios.base.devices import Devices
from scenarios.base.moment import at
from scenarios.base.parts import variables_by_path
from scenarios.base.scenario import Scenario
from scenarios.ensemble.ensemble_model import average_for, averaged, refuse_repeated
from scenarios.ensemble.forms import fastest, is_worth_a_trial
from scenarios.ensemble.lanes import Form, Group, grouped, running_groups, side_by_side
from scenarios.ensemble.members import Members
from scenarios.ensemble.numbers import differing
from scenarios.ensemble.programs import Program, trace
from scenarios.ensemble.splits import SPLITS, Split, member_indices
from scenarios.objective import Loss, Penalty, Reduction, checked_reduction, objective
from scenarios.supervised import check_classes, pair

Update = Callable[[Any], Any]
Roster = list[tuple[Any, mk.Optimizer]]


class Ensemble(Scenario):
    """Trains models independently of each other: `min E[loss(f_k(x), y)]` for each member k.

    `Ensemble(steps, ...)(models, optimizers, loss, data=(inputs, targets), eval_data=(inputs, targets))`, with an optimizer
    for each model, and perhaps a part `penalty`, a function of a model whose value is added to its loss. Members whose
    updates are the same program, whatever their weights, learning rates, seeds and examples, are trained by one program
    over their stacked variables; the others one after the other. A member is trained as `Supervised` would train it
    alone, with its seed and its examples. With `mesh={"members": 8}, placement="members"`, those side by side are divided
    evenly among eight devices, each of which computes its own members; between loops, every device has all variables.

    Evaluations report the loss, and for integer targets the accuracy, of the averaged prediction, and those of each
    member as `member0_loss`, ... `EnsembleModel(models)` is the trained ensemble as a model.

    Args:
      steps: the number of updates of each member.
      seeds: of the members' random numbers and, but for `split="shared"`, of the order of their examples, one for each;
        None for `seed`, `seed + 1`, ...
      split: which examples members see. "shared": all the same batches, in the order of `seed`. "shuffled": all examples,
        each in its own order. "bootstrap": each a sample of its own, drawn once with replacement. "disjoint": equal parts
        of the data, one behind the other. All but the first need `seeds`.
      reduction: whether the losses of a batch are taken as their "mean" or "sum".
      patience: a member stops when its evaluation loss has not fallen in so many evaluations, one after the other; None
        for never. Its variables then keep their bits.
      form: how members whose updates are the same program are updated: "vmap", all at once; "scan", one after the other
        in a loop; "separate", each by instructions of its own. None tries all before the first step where there is much
        arithmetic (`scenarios.ensemble.forms`), since convolutions may be the faster one after the other on a CPU; a run
        keeps to what was found. Little arithmetic, and several devices: "vmap".
      **settings: see `scenarios.Settings`.

    Raises:
      ValueError, TypeError: a setting is out of range, or the members do not fit together.

    Sources: Hansen and Salamon, Neural network ensembles, 1990; Breiman, Bagging predictors, 1996, for "bootstrap".

    >>> import jax.numpy as jnp, modulekit as mk
    >>> x = jnp.linspace(-1, 1, 32)[:, None]
    >>> models, rates = [mk.Linear(1), mk.Linear(1)], [0.3, 0.1]
    >>> train = Ensemble(200, seeds=[0, 1], split="bootstrap", batch_size=8, progress=False)
    >>> optimizers = [mk.optimizers.SGD(rate) for rate in rates]
    >>> result = train(models, optimizers, mk.losses.squared_error, data=(x, 5 * x), eval_data=(x, 5 * x))
    >>> result.metrics["loss"] < 1e-3, sorted(result.metrics)
    (True, ['loss', 'member0_loss', 'member1_loss'])
    """

    has_members = True

    def __init__(
        self,
        steps: int,
        seeds: Sequence[int] | None = None,
        split: Split = "shared",
        reduction: Reduction = "mean",
        patience: int | None = None,
        form: Form | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(steps, **settings)
        if split not in SPLITS:
            raise ValueError(f"split={split!r} is none of {', '.join(map(repr, SPLITS))}")
        if seeds is None and split != "shared":
            raise ValueError(f"split={split!r} gives each member examples of its own: give seeds, one for each member")
        if patience is not None and (isinstance(patience, bool) or not isinstance(patience, int) or patience < 1):
            raise ValueError(f"patience={patience!r}: expected a number of evaluations, at least 1, or None")
        self.seeds = None if seeds is None else checked_seeds(seeds)
        self.split = split
        self.reduction = checked_reduction(reduction)
        self.patience = patience
        if form not in (None, *get_args(Form)):
            raise ValueError(f"form={form!r} is none of {', '.join(map(repr, get_args(Form)))}, None")
        self.form = form

    def state(self) -> Mapping[str, mk.Module]:
        """Returns what a run keeps of its members."""
        return {"members": Members()}

    def indices(self, size: int, step: int, count: int) -> Any:
        """Returns which examples updates take: `[count, batch]`, or `[count, members, batch]`."""
        if self.seeds is None or self.split == "shared":
            return batch_indices(size, self.settings.batch_size, self.settings.seed, step, count)
        return member_indices(self.split, size, self.settings.batch_size, self.seeds, step, count)

    def update(
        self,
        batch: Any,
        *,
        models: Any,
        optimizers: Sequence[mk.Optimizer],
        loss: Loss,
        penalty: Penalty | None = None,
        members: Members,
    ) -> Mapping[str, Any]:
        """Takes one step with each member; returns the mean of their losses before it, and each of them."""
        groups = running_groups()
        if groups is None:
            parts = {"models": models, "optimizers": optimizers, "loss": loss, "penalty": penalty, "members": members}
            with self.around(batch, **parts):
                return self.update(batch, **parts)
        count = len(list(models))
        active = None if self.patience is None else members.training(count)
        losses: dict[int, Any] = {}
        for group in groups:
            found = group.update(self._keys(count), self.step, active, batch, self.split != "shared")
            losses.update(zip(group.members, found, strict=True))
        in_order = jnp.stack([losses[member] for member in range(count)])
        return {"loss": in_order.mean(), **{f"member{member}_loss": in_order[member] for member in range(count)}}

    @contextmanager
    def around(self, batch: Any, *, members: Members, **parts: Any) -> Iterator[None]:
        """Context in which members that can be are stacked; `batch` gives the structure of the examples."""
        with side_by_side(self._groups(batch, self.form or members.form or "vmap", members, **parts)):
            yield

    def prepare(self, batch: Any, form: Form | None, *, members: Members, **parts: Any) -> Form:
        """Returns the form of the update: what the settings or `form` say, else what a trial does."""
        if self.form is not None or self.settings.mesh is not None:  # several devices compute all members at once
            members.form = self.form or "vmap"
        else:
            members.form = form or members.form or self._fastest(batch, members, parts)
        return members.form

    def _fastest(self, batch: Any, members: Members, parts: Mapping[str, Any]) -> Form:
        """Returns the fastest form of the update, and tries them where that is not clear."""

        def update(groups: tuple[Group, ...], batch: Any) -> Mapping[str, Any]:
            with side_by_side(groups):
                return self.update(batch, members=members, **parts)

        if are_several() or not is_worth_a_trial(self._groups(batch, "vmap", members, **parts)):
            return "vmap"
        forms: tuple[Form, ...] = get_args(Form)
        updates = {form: functools.partial(update, self._groups(batch, form, members, **parts)) for form in forms}
        with at(np.int32(0)):
            return fastest(updates, batch)

    def _groups(
        self,
        batch: Any,
        form: Form,
        members: Members,
        models: Any,
        optimizers: Sequence[mk.Optimizer],
        loss: Loss,
        penalty: Penalty | None = None,
    ) -> tuple[Group, ...]:
        """Returns the members that are trained together, for batches of a structure."""
        roster = self._roster(models, optimizers)
        find_out = functools.partial(self._grouped, batch, form, roster, loss, penalty)
        return members.groups(batch, form, [*models, *optimizers], find_out)

    def _grouped(
        self, batch: Any, form: Form, roster: Roster, loss: Loss, penalty: Penalty | None
    ) -> tuple[Group, ...]:
        """Traces the update of each member, and returns those that are the same together."""
        updates = [self._member_update(model, optimizer, loss, penalty) for model, optimizer in roster]
        numbers = differing([optimizer for _, optimizer in roster])
        programs = [
            trace(update, optimizer, own, self._examples_of(batch, member, len(roster)))
            for member, (update, (_, optimizer), own) in enumerate(zip(updates, roster, numbers, strict=True))
        ]
        refuse_dependent(programs, {"models": [model for model, _ in roster]})
        devices = Devices(self.settings.mesh, self.settings.placement, self.has_members)
        return grouped(programs, form, devices)

    def evaluate(self, batch: Any, *, models: Any, loss: Loss, **parts: Any) -> Mapping[str, Any]:
        """Returns the loss of each example, and for integer targets whether it is right: averaged, and by member."""
        inputs, targets = batch
        outputs = [call_model(model, inputs, False) for model in models]
        average = getattr(models, "average", None) or average_for(outputs[0], targets)
        named = {"": averaged(outputs, average), **{f"member{k}_": found for k, found in enumerate(outputs)}}
        values = {f"{name}loss": loss(found, targets) for name, found in named.items()}
        if average_for(outputs[0], targets) == "probabilities":
            values.update({f"{name}accuracy": correct(found, targets) for name, found in named.items()})
        return values

    def measure(self, eval_data: Arrays | None, *, models: Any, members: Members, **parts: Any) -> Mapping[str, Any]:
        """With `patience`, stops the members that do not get better, and returns how many still train."""
        if self.patience is None:
            return {}
        losses = [self.means[f"member{member}_loss"] for member in range(len(list(models)))]
        return {"training": members.judge(self.step, losses, self.patience)}

    def check(
        self,
        data: Arrays | None,
        eval_data: Arrays | None,
        *,
        models: Any,
        optimizers: Sequence[mk.Optimizer],
        loss: Loss,
        penalty: Penalty | None = None,
        members: Members,
    ) -> None:
        """Raises `ValueError` where a target is no class of a model, or two members would stay the same."""
        if data is None and self.split != "shared":
            raise ValueError(f"split={self.split!r} chooses among examples in memory: a stream takes split='shared'")
        if self.patience is not None and eval_data is None:
            raise ValueError(f"patience={self.patience} counts evaluations: give eval_data, and eval_interval")
        for model in models:
            check_classes(model, loss, data, eval_data)
        roster = self._roster(models, optimizers)
        seeds = self._member_seeds(len(roster))
        for (one, first), (other, second) in itertools.combinations(enumerate(roster), 2):
            see_the_same = self.split == "shared" or (self.split != "disjoint" and seeds[one] == seeds[other])
            if not see_the_same or not _look_the_same(first, second):
                continue
            update = self._member_update(*first, loss, penalty)
            if seeds[one] == seeds[other] or (data is not None and not self._draws(update, data)):
                raise ValueError(
                    f"members {one} and {other} are identical: they have the same first weights, optimizers and examples, "
                    "and would stay the same. Make each model anew, or give seeds and split='shuffled' or 'bootstrap'"
                )

    def _roster(self, models: Any, optimizers: Any) -> Roster:
        """Returns the members' models and optimizers in pairs."""
        listed = list(models)
        if isinstance(optimizers, mk.Optimizer) or len(list(optimizers)) != len(listed):
            given = "one" if isinstance(optimizers, mk.Optimizer) else str(len(list(optimizers)))
            raise ValueError(
                f"{len(listed)} models need {len(listed)} optimizers, and got {given}: each member counts its own steps, so "
                "make one for each, as in [mk.optimizers.Adam() for _ in models]"
            )
        if self.seeds is not None and len(self.seeds) != len(listed):
            raise ValueError(f"{len(listed)} models need as many seeds, and got {len(self.seeds)}")
        refuse_repeated(listed)
        refuse_repeated(optimizers)
        return list(zip(listed, optimizers, strict=True))

    def _member_update(self, model: Any, optimizer: mk.Optimizer, loss: Loss, penalty: Penalty | None) -> Update:
        def update(batch: Any) -> Any:
            inputs, targets = pair(batch, "data")
            value = lambda: objective(model, inputs, targets, loss, penalty, self.reduction)  # noqa: E731
            return optimizer.minimize(value, model, weight=len(targets))

        return update

    def _member_seeds(self, count: int) -> tuple[int, ...]:
        return tuple(self.settings.seed + k for k in range(count)) if self.seeds is None else self.seeds

    def _keys(self, count: int) -> Any:
        """Returns the data of the keys at which the members' draws of this step begin: those of `Supervised`."""
        keys = jnp.stack([jax.random.key(seed) for seed in self._member_seeds(count)])
        return jax.random.key_data(jax.vmap(jax.random.fold_in, (0, None))(keys, self.step))

    def _examples_of(self, batch: Any, member: int, count: int) -> Any:
        """Returns the structure of a member's batch."""
        is_own = self.split != "shared"

        def of(leaf: Any) -> jax.ShapeDtypeStruct:
            if is_own and (len(leaf.shape) < 2 or leaf.shape[0] != count):
                raise ValueError(
                    f"split={self.split!r} needs examples [{count} members, batch, ...], and got {list(leaf.shape)}: "
                    "a stream takes split='shared'"
                )
            return jax.ShapeDtypeStruct(leaf.shape[1:] if is_own else leaf.shape, leaf.dtype)

        return jax.tree.map(of, batch)

    def _draws(self, update: Update, data: Arrays) -> bool:
        """Returns whether a member's update draws random numbers."""
        shape = (self.settings.batch_size,)
        batch = jax.tree.map(lambda a: jax.ShapeDtypeStruct((*shape, *a.shape[1:]), a.dtype), data.arrays)
        with mk.trial() as trial:
            program = trace(update, mk.optimizers.SGD(0.0), {}, batch)
            trial.rollback()
        return program.draws


def checked_seeds(seeds: Sequence[int]) -> tuple[int, ...]:
    """Returns the seeds, or raises `ValueError` if one is no integer from 0 to 2^32 - 1."""
    for member, seed in enumerate(seeds):
        if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed < 2**32:
            raise ValueError(f"seeds[{member}]={seed!r} is no integer from 0 to 2^32 - 1")
    return tuple(int(seed) for seed in seeds)


def refuse_dependent(programs: Sequence[Program], parts: Mapping[str, Any]) -> None:
    """Raises `ValueError` if a variable that one member changes is used by another one, and names it."""
    changed_by: dict[Variable, int] = {}
    for member, program in enumerate(programs):
        for variable in program.writes:
            changed_by.setdefault(variable, member)
    for member, program in enumerate(programs):
        for variable in program.variables:
            owner = changed_by.get(variable, member)
            if owner != member:
                paths = {v: path for path, v in variables_by_path(parts).items()}
                raise ValueError(
                    f"members {owner} and {member} share {paths.get(variable, variable.name)}, which changes in training: "
                    "members of an ensemble are independent. Give each variables of its own; scenarios.SerialSharing trains "
                    "models that share"
                )


def _look_the_same(one: tuple[Any, mk.Optimizer], other: tuple[Any, mk.Optimizer]) -> bool:
    """Returns whether two members have equal weights, and optimizers that say and hold the same."""
    (model, optimizer), (second_model, second_optimizer) = one, other
    if type(model) is not type(second_model) or repr(optimizer) != repr(second_optimizer):
        return False
    numbers, others = hyperparameters(optimizer), hyperparameters(second_optimizer)
    if {n: float(value) for n, value in numbers.items()} != {n: float(value) for n, value in others.items()}:
        return False
    ours, theirs = (variables_by_path({"model": m, "optimizer": o}) for m, o in (one, other))
    return ours.keys() == theirs.keys() and all(
        np.array_equal(v.numpy(), theirs[path].numpy()) for path, v in ours.items()
    )
