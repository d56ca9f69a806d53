"""What a run keeps of the members of an ensemble: which of them still train, how well each has done, and in which form."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import modulekit as mk
from scenarios.ensemble.lanes import Form
from scenarios.ensemble.plans import Groups, Plans


class Members(mk.Module):
    """The standing of each member, by which it stops early on its own, and the form of the update, to which a run keeps.

    Attributes:
      form: how members whose updates are the same program are updated; None while that is not decided.
      active: `[members]`, whether a member is still updated.
      best: `[members]`, the lowest evaluation loss.
      waited: `[members]`, the evaluations since.
      evaluated: the step of the last evaluation that counted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.form: Form | None = None
        self._plans = Plans()

    @mk.once
    def _initialize(self, count: int) -> None:
        self.active = mk.Variable(jnp.ones([count], bool), trainable=False, name="active")
        self.best = mk.Variable(jnp.full([count], math.inf), trainable=False, name="best")
        self.waited = mk.Variable(jnp.zeros([count], jnp.int32), trainable=False, name="waited")
        self.evaluated = mk.Variable(jnp.full([], -1, jnp.int32), trainable=False, name="evaluated")

    def groups(self, batch: Any, form: Form, modules: Iterable[mk.Module], find_out: Callable[[], Groups]) -> Groups:
        """Returns which members are trained together: see `Plans.groups`."""
        return self._plans.groups(batch, form, modules, find_out)

    def training(self, count: int) -> jax.Array:
        """Returns which of `count` members are still updated, `[members]`."""
        self._initialize(count)
        return self.active.current()

    def judge(self, step: int, losses: Sequence[float], patience: int) -> int:
        """Takes note of an evaluation; a member whose loss has not fallen `patience` times in a row stops.

        Args:
          step: the number of updates before; an evaluation of the same step counts once.
          losses: of the members.
          patience: how many evaluations without a lower loss a member may have.

        Returns:
          How many members are still updated.
        """
        self._initialize(len(losses))
        active, now = self.active.numpy(), np.asarray(losses, np.float32)
        if step > int(self.evaluated):
            is_better = now < self.best.numpy()
            waited = np.where(is_better, 0, self.waited.numpy() + 1)
            self.waited.assign(np.where(active, waited, self.waited.numpy()).astype(np.int32))
            self.best.assign(np.where(active & is_better, now, self.best.numpy()))
            active = active & (self.waited.numpy() < patience)
            self.active.assign(active)
            self.evaluated.assign(step)
        return int(active.sum())
