"""Gradients of single samples, aggregated by a rule."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np

import modulekit as mk
from modulekit.core.arithmetic import value_of
from modulekit.data import Arrays
from modulekit.transforms.purified import targets_in
from scenarios.aggregation.rules import (
    Rule,
    check_max_norm,
    check_share,
    clipped_mean,
    mean,
    median,
    trimmed_mean,
)
from scenarios.base.calling import needs_is_training
from scenarios.base.scenario import Scenario

Loss: TypeAlias = Callable[[Any, Any], Any]
Measures: TypeAlias = Callable[[Any, Any], Mapping[str, Any]]
Aggregation: TypeAlias = Literal["mean", "median", "trimmed", "clipped"]


class AggregatedGradients(Scenario):
    """Takes the gradient of each sample apart, and one step with what a rule makes of them: `g = rule(g_1, ..., g_n)`.

    `AggregatedGradients(steps, ...)(model, optimizer, loss, data=samples)`. The loss gets the model and one sample, the
    data's structure without its first axis, and returns a scalar, so that samples may be anything: graphs of different
    sizes, padded by `mk.data.padded`, with their masks. If it takes `is_training`, it is told. With the mean and no weights
    it is the gradient of the mean loss of the batch; the other rules resist samples that are outliers. The evaluation
    reports the mean of the losses, each sample counted once, and of what the part `measures`, if there is one, returns for
    the model and a sample: a dict of scalars.

    Args:
      steps: the number of updates.
      samples_per_update: how many gradients make one update, a multiple of `batch_size`, which is how many are computed at
        a time; None for `batch_size`.
      aggregate: the rule: `mean`, `median` of each coordinate, `trimmed` mean of each coordinate, or mean of gradients
        `clipped` by their norms; see `scenarios.aggregation`.
      weight: the name of the data's array that holds the weight of each sample, such as its number of nodes; the data is a
        dict then. None weights all alike.
      share: for `trimmed`: of the weight, cut off at each end.
      max_norm: for `clipped`: the largest norm of a sample's gradient.
      **settings: see `scenarios.Settings`.

    Raises:
      ValueError: there is no such rule, `samples_per_update` is no multiple of `batch_size`, or a number is out of range.

    >>> import jax.numpy as jnp, modulekit as mk
    >>> x = jnp.linspace(-1, 1, 32)[:, None]
    >>> data = {"x": x, "y": (5 * x).at[3].set(1e6)}  # one sample is wrong
    >>> loss = lambda model, sample: jnp.square(model(sample["x"][None])[0] - sample["y"]).mean()
    >>> model = mk.Linear(1)
    >>> fit = AggregatedGradients(200, aggregate="median", batch_size=32, progress=False)
    >>> _ = fit(model, mk.optimizers.SGD(0.3), loss, data=data)
    >>> round(float(model.w.value[0, 0]), 2)
    5.0
    """

    def __init__(
        self,
        steps: int,
        samples_per_update: int | None = None,
        aggregate: Aggregation = "mean",
        weight: str | None = None,
        share: float = 0.1,
        max_norm: float | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(steps, **settings)
        if aggregate not in get_args(Aggregation):
            raise ValueError(f"aggregate={aggregate!r} is none of {', '.join(map(repr, get_args(Aggregation)))}")
        if (aggregate == "clipped") != (max_norm is not None):
            raise ValueError(
                f"aggregate={aggregate!r} with max_norm={max_norm!r}: 'clipped' needs max_norm, and it alone does"
            )
        check_share(share)
        if max_norm is not None:
            check_max_norm(max_norm)
        self.samples_per_update = samples_per_update
        self.aggregate = aggregate
        self.weight = weight
        self.share = share
        self.max_norm = max_norm
        self.batches_per_update = _batches(samples_per_update, self.settings.batch_size)

    def update(
        self, batch: Any, *, model: Any, optimizer: mk.Optimizer, loss: Loss, measures: Measures | None = None
    ) -> Mapping[str, Any]:
        """Takes one step with the aggregated gradient; returns the weighted mean of the losses before it."""
        if self.batches_per_update == 1:
            losses, gradients = self._of_samples(batch, model, loss)
        else:
            _, found = mk.scan(lambda carry, part: (carry, self._of_samples(part, model, loss)), None, batch)
            losses, gradients = jax.tree.map(_merged, found)
            batch = jax.tree.map(_merged, batch)
        weights = self._weights(batch)
        wide = [g.astype(jnp.promote_types(g.dtype, jnp.float32)) for g in gradients]
        aggregated = self._rule()(wide, weights)
        pairs = [(g.astype(v.dtype), v) for g, v in zip(aggregated, targets_in(model), strict=True)]
        optimizer.apply_gradients(pairs, weight=weights.sum())
        return {"loss": mean(losses, weights)}

    def evaluate(
        self, batch: Any, *, model: Any, optimizer: mk.Optimizer, loss: Loss, measures: Measures | None = None
    ) -> Mapping[str, Any]:
        """Returns the loss of each sample, and what `measures(model, sample)` finds: a dict of scalars."""

        def of_one(sample: Any) -> dict[str, Any]:
            found = {} if measures is None else measures(model, sample)
            return {"loss": value_of(_called(loss, model, sample, False)), **found}

        return mk.vmap(of_one)(batch)

    def check(self, data: Arrays | None, eval_data: Arrays | None, **parts: Any) -> None:
        """Raises `ValueError` where the weights of the samples are not there, or not positive."""
        for which, samples in (("data", data), ("eval_data", eval_data)):
            if samples is None or self.weight is None:
                continue
            weights = np.asarray(self._weights(samples.arrays, which))
            wrong = np.flatnonzero(~((weights > 0) & np.isfinite(weights)))
            if wrong.size:
                raise ValueError(
                    f"{which}[{self.weight!r}] holds {weights[wrong[0]]} for sample {wrong[0]}: weights are positive numbers"
                )

    def _of_samples(self, batch: Any, model: Any, loss: Loss) -> tuple[Any, list[Any]]:
        """Returns the loss and the gradients of each sample, `[batch]` and `[batch, ...]` for each variable."""

        def of_one(sample: Any) -> tuple[Any, list[Any]]:
            return mk.value_and_grad(lambda: _called(loss, model, sample, True), model)()

        return mk.vmap(of_one)(batch)

    def _weights(self, batch: Any, which: str = "data") -> jax.Array:
        """Returns the weight of each sample, `[batch]`."""
        if self.weight is None:
            return jnp.ones([len(jax.tree.leaves(batch)[0])])
        if not isinstance(batch, Mapping) or self.weight not in batch:
            found = f"a dict of {', '.join(sorted(map(repr, batch)))}" if isinstance(batch, Mapping) else "no dict"
            raise ValueError(f"weight={self.weight!r} names an array of {which}, which is {found}")
        weights = jnp.asarray(batch[self.weight], jnp.float32)
        if weights.ndim != 1:
            raise ValueError(
                f"{which}[{self.weight!r}] has shape {list(weights.shape)}: expected one weight for each sample"
            )
        return weights

    def _rule(self) -> Rule:
        if self.aggregate == "trimmed":
            return functools.partial(trimmed_mean, share=self.share)
        if self.max_norm is not None:
            return functools.partial(clipped_mean, max_norm=self.max_norm)
        return mean if self.aggregate == "mean" else median


def _called(loss: Loss, model: Any, sample: Any, is_training: bool) -> Any:
    """Returns the loss of a sample; one that needs to know whether it is for training is told."""
    told = {"is_training": is_training} if needs_is_training(loss) else {}
    return loss(model, sample, **told)


def _batches(samples_per_update: Any, batch_size: int) -> int:
    if samples_per_update is None:
        return 1
    if isinstance(samples_per_update, bool) or not isinstance(samples_per_update, int):
        raise TypeError(f"samples_per_update={samples_per_update!r}: expected an integer")
    if samples_per_update < 1 or samples_per_update % batch_size:
        raise ValueError(f"samples_per_update={samples_per_update} is no multiple of batch_size={batch_size}")
    return samples_per_update // batch_size


def _merged(array: jax.Array) -> jax.Array:
    return array.reshape(-1, *array.shape[2:])
