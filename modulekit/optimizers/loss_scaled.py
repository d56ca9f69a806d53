"""Loss scaling: float16 holds the gradients of a loss that is multiplied by a large number."""

from typing import Any

import jax
import jax.numpy as jnp

from modulekit.core.arithmetic import value_of
from modulekit.core.variable import Variable
from modulekit.optimizers.base import Optimizer, Update, Wrapped, thawed
from modulekit.transforms.control import cond


class LossScaled(Wrapped):
    """Multiplies the loss by a scale `S` and its gradients by `1 / S`, so that float16 does not round them to zero.

    `minimize` and `compute_gradients` do so, whatever other wrappers stand around; `apply` takes gradients as they are.
    Where one is not finite, nothing is handed on, and `S <- S / factor`, but not below 1. After `growth_interval` updates in
    a row that were handed on, `S <- S factor`, up to `2^24`. A scale that is a power of two rounds nothing. bfloat16, whose
    range is that of float32, needs none of this.

    Args:
      optimizer: takes the gradients `[...]`.
      initial_scale: at least 1.
      growth_interval: how many updates, at least 1.
      factor: above 1.
      name: the module's name.

    Attributes:
      scale: a variable, `S`.
      handed_on: a variable, the updates in a row since the scale last changed.

    Raises:
      ValueError: a number is out of range.

    Source: Micikevicius et al., Mixed precision training, 2018, section 3.2, with the constants of NVIDIA's Apex.

    >>> import modulekit as mk
    >>> w = mk.Variable(1.0, name="w")
    >>> sgd = LossScaled(mk.optimizers.SGD(0.5), initial_scale=8.0)
    >>> sgd.minimize(lambda: w**2, [w]).item(), w.numpy().item()
    (1.0, 0.0)
    >>> sgd.apply([jnp.array(jnp.inf)], [w])
    >>> w.numpy().item(), sgd.scale.numpy().item()
    (0.0, 4.0)
    """

    def __init__(
        self,
        optimizer: Optimizer,
        initial_scale: float = 2.0**15,
        growth_interval: int = 2000,
        factor: float = 2.0,
        name: str | None = None,
    ) -> None:
        super().__init__(optimizer, name=name)
        for argument, value, least in (("initial_scale", initial_scale, 1), ("growth_interval", growth_interval, 1)):
            if not value >= least:
                raise ValueError(f"{argument}={value}: expected at least {least}")
        if not factor > 1:
            raise ValueError(f"factor={factor}: expected a number above 1")
        self.growth_interval = growth_interval
        self.factor = factor
        self.scale = Variable(jnp.asarray(initial_scale, jnp.float32), trainable=False, name="scale")
        self.handed_on = Variable(jnp.zeros([], jnp.int32), trainable=False, name="handed_on")

    def loss_scale(self) -> jax.Array:
        """Returns what a loss is to be multiplied by, and its gradients divided by."""
        return self.scale.current()

    def _apply(self, updates: list[Update], parameters: list[Variable], weight: Any) -> None:
        counted = [update for update in thawed(updates, parameters) if update is not None]
        is_finite = jnp.stack([jnp.isfinite(update).all() for update in counted]).all() if counted else jnp.array(True)
        if isinstance(is_finite, jax.core.Tracer):
            cond(is_finite, lambda: self._hand_on(updates, parameters, weight), lambda: None)
        elif is_finite:
            self._hand_on(updates, parameters, weight)
        self._adapt(is_finite)

    def _adapt(self, is_finite: jax.Array) -> None:
        scale, count, factor = self.scale.current(), self.handed_on.current() + 1, value_of(self.factor)
        grows = count >= value_of(self.growth_interval)
        after_good = jnp.where(grows, jnp.minimum(scale * factor, 2.0**24), scale)
        self.scale.assign(jnp.where(is_finite, after_good, jnp.maximum(scale / factor, 1.0)).astype(scale.dtype))
        self.handed_on.assign(jnp.where(is_finite & ~grows, count, 0))
