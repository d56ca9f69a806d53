"""Clipping: updates are made smaller before an optimizer takes them."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from modulekit.core.arithmetic import value_of
from modulekit.core.variable import Variable
from modulekit.optimizers.base import Optimizer, Update, Wrapped, thawed
from modulekit.optimizers.transformed import Hyperparameter


class Clipped(Wrapped):
    """Clips updates by value, by the norm of all of them together, or by the one and then the other.

    `g <- min(max(g, -max_value), max_value)`; then `g <- g max_norm / n`, unless `n = sqrt(sum_i sum(g_i^2))` is smaller.
    The sum is over all updates that are not None and whose parameter is not frozen. What is not finite stays so: a value
    that is infinite or nan is not clipped, and where there is one in the sum, nothing is. Squares do not overflow.

    Args:
      optimizer: takes the clipped updates `[...]`.
      max_norm: the largest norm, a positive number or scalar variable; None for any.
      max_value: the largest magnitude, likewise.
      name: the module's name.

    Raises:
      ValueError: both are None, or one is a number that is not positive.

    Sources: Pascanu, Mikolov and Bengio, On the difficulty of training recurrent neural networks, 2013, algorithm 1; Optax,
    `optax.clip_by_global_norm` and `optax.clip`, which make finite numbers of infinite ones.

    >>> import modulekit as mk
    >>> w = mk.Variable([1.0, 1.0], name="w")
    >>> Clipped(mk.optimizers.SGD(1.0), max_norm=1.0).apply([jnp.array([3.0, 4.0])], [w])
    >>> [round(float(value), 3) for value in w]
    [0.4, 0.2]
    """

    def __init__(
        self,
        optimizer: Optimizer,
        max_norm: Hyperparameter | None = None,
        max_value: Hyperparameter | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(optimizer, name=name)
        if max_norm is None and max_value is None:
            raise ValueError("Clipped needs max_norm, max_value, or both: there is nothing to clip by")
        for argument, limit in (("max_norm", max_norm), ("max_value", max_value)):
            if isinstance(limit, int | float) and not limit > 0:
                raise ValueError(f"{argument}={limit}: expected a number above 0")
        self.max_norm = max_norm
        self.max_value = max_value

    def _apply(self, updates: list[Update], parameters: list[Variable], weight: Any) -> None:
        places = [place for place, update in enumerate(thawed(updates, parameters)) if update is not None]
        chosen = [updates[place] for place in places]
        if self.max_value is not None:
            chosen = [_clipped_by_value(update, value_of(self.max_value)) for update in chosen]
        if self.max_norm is not None and chosen:
            chosen = _clipped_by_norm(chosen, value_of(self.max_norm))
        for place, update in zip(places, chosen, strict=True):
            updates[place] = update
        self._hand_on(updates, parameters, weight)


def _clipped_by_value(update: jax.Array, limit: Any) -> jax.Array:
    limit = jnp.asarray(limit, update.dtype)
    return jnp.where(jnp.isfinite(update), jnp.clip(update, -limit, limit), update)


def _clipped_by_norm(updates: Sequence[jax.Array], limit: Any) -> list[jax.Array]:
    """Clips by the norm of the updates times a power of two, which rounds nothing and keeps their squares in range."""
    wide = [u.astype(jnp.promote_types(u.dtype, jnp.float32)) for u in updates]
    largest = jnp.stack([jnp.max(jnp.abs(u), initial=0.0) for u in wide]).max()
    power = jnp.clip(1 - jnp.frexp(largest)[1], -126, 126)  # there are no normal numbers beyond
    small = [u * jnp.ldexp(jnp.ones_like(largest), power) for u in wide]
    norm = jnp.sqrt(sum(jnp.sum(u * u) for u in small))
    limit = jnp.asarray(limit, norm.dtype)
    keeps = ~jnp.isfinite(norm) | (jnp.ldexp(norm, -power) < limit)
    pairs = zip(updates, small, strict=True)
    return [jnp.where(keeps, u, (part / norm * limit).astype(u.dtype)) for u, part in pairs]
