"""Several models as one: their averaged prediction."""

from collections.abc import Iterable, Iterator
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

import modulekit as mk
from scenarios.base.calling import call_model, needs_is_training

Average = Literal["probabilities", "outputs"]


class EnsembleModel(mk.Module):
    """The average of models: `y = log(mean_k softmax(f_k(x)))` of classifiers, `y = mean_k f_k(x)` of others.

    Its output is a log-probability where those of the members are logits, so that every loss and metric of logits takes it.
    The members stay modules of their own: `ensemble[i]` is one of them, to be called, read, assigned, frozen and saved.

    Args:
      models: the members, modules.
      average: "probabilities" for classifiers, whose outputs are logits `[..., classes]`, or "outputs".
      name: the module's name.

    Attributes:
      models: the members.

    Raises:
      ValueError: there are no members, or a module is a member twice.

    Source: Lakshminarayanan, Pritzel and Blundell, Simple and scalable predictive uncertainty estimation using deep
    ensembles, 2017, section 2.4.

    >>> import jax.numpy as jnp, modulekit as mk
    >>> ensemble = EnsembleModel([mk.Linear(3), mk.Linear(3)])
    >>> y = ensemble(jnp.ones([2, 4]))
    >>> y.shape, bool(jnp.allclose(jnp.exp(y).sum(axis=1), 1.0))
    ((2, 3), True)
    >>> len(ensemble), len(ensemble.drop(0)), sorted(ensemble[1].paths())
    (2, 1, ['b', 'w'])
    """

    def __init__(self, models: Iterable[Any], average: Average = "probabilities", name: str | None = None) -> None:
        super().__init__(name=name)
        if average not in get_args(Average):
            raise ValueError(f"average={average!r} is none of {', '.join(map(repr, get_args(Average)))}")
        self.models = list(models)
        self.average = average
        if not self.models:
            raise ValueError("an ensemble of no models has no prediction: give at least one")
        refuse_repeated(self.models)

    def __call__(self, x: Any, is_training: bool | None = None) -> jax.Array:
        """Returns the averaged prediction.

        Args:
          x: what the members take, `[batch, ...]`.
          is_training: for members that need to know it.

        Returns:
          `[batch, ...]`: log-probabilities, or the mean of the outputs.
        """
        return averaged([call_model(model, x, bool(is_training)) for model in self.models], self.average)

    @property
    def needs_is_training(self) -> bool:
        """Whether a member needs to know if it is called in training."""
        return any(needs_is_training(model) for model in self.models)

    def __len__(self) -> int:
        return len(self.models)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.models)

    def __getitem__(self, index: int) -> Any:
        return self.models[index]

    def drop(self, index: int) -> "EnsembleModel":
        """Returns an ensemble of the same modules without one of them.

        Args:
          index: which, in `-len .. len - 1`.

        Raises:
          IndexError: there is no such member.
          ValueError: it is the only one.
        """
        dropped = self.models[index]
        return EnsembleModel([model for model in self.models if model is not dropped], self.average)


def averaged(outputs: Iterable[Any], average: str, counted: jax.Array | None = None) -> jax.Array:
    """Returns the averaged prediction from the outputs of the members, each `[batch, ...]`.

    Args:
      outputs: of the members.
      average: "probabilities" or "outputs".
      counted: `[members]`, true for those that count; None for all.
    """
    stacked = jnp.stack(list(outputs))
    counted = jnp.ones([len(stacked)], bool) if counted is None else counted
    counted = counted.reshape(-1, *[1] * (stacked.ndim - 1))
    if average == "outputs":
        return jnp.where(counted, stacked, 0).sum(axis=0) / counted.sum()
    return jax.nn.logsumexp(jax.nn.log_softmax(stacked), axis=0, where=counted) - jnp.log(counted.sum())


def average_for(outputs: Any, targets: Any) -> str:
    """Returns how outputs `[batch, ...]` are averaged: those for integer targets `[batch]` are logits."""
    is_class = jnp.issubdtype(targets.dtype, jnp.integer) and outputs.ndim == 2 and targets.ndim == 1
    return "probabilities" if is_class else "outputs"


def refuse_repeated(models: Iterable[Any]) -> None:
    """Raises `ValueError` if a module is a member twice, and names the members."""
    first: dict[int, int] = {}
    for index, model in enumerate(models):
        if id(model) in first:
            raise ValueError(
                f"members {first[id(model)]} and {index} are the same object, {model!r}: make a model for each member"
            )
        first[id(model)] = index
