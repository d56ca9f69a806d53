"""Quantile regression: a scenario, with a setting of its own."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

import modulekit as mk
import scenarios
from scenarios.testing import Case


class QuantileRegression(scenarios.Scenario):
    """Trains a model to predict a quantile of the targets: `min E[max(q (y - f(x)), (q - 1) (y - f(x)))]`.

    Source: Koenker and Bassett, "Regression Quantiles", 1978.

    Args:
      steps: the number of updates.
      quantile: `q`, the share of targets that are to be below the predictions.
      **settings: see `scenarios.Settings`.
    """

    def __init__(self, steps: int, quantile: float = 0.5, **settings: Any) -> None:
        super().__init__(steps, **settings)
        if not 0 < quantile < 1:
            raise ValueError(f"quantile={quantile} is outside (0, 1)")
        self.quantile = quantile

    def update(self, batch: Any, *, model: Any, optimizer: mk.Optimizer) -> Mapping[str, Any]:
        return {"loss": optimizer.minimize(lambda: self._losses(batch, model).mean(), model)}

    def evaluate(self, batch: Any, *, model: Any) -> Mapping[str, Any]:
        x, y = batch
        return {"loss": self._losses(batch, model), "below": (y < model(x)[:, 0]).astype(jnp.float32)}

    def _losses(self, batch: Any, model: Any) -> Any:
        x, y = batch
        above = y - model(x)[:, 0]
        return jnp.maximum(self.quantile * above, (self.quantile - 1) * above)

    @classmethod
    def example(cls) -> Case:
        """Returns the case for `scenarios.testing.check_scenario`."""
        rng = np.random.default_rng(0)
        x = rng.normal(size=[64, 3]).astype(np.float32)
        y = (x.sum(axis=1) + rng.normal(size=64)).astype(np.float32)
        parts = {"model": mk.Linear(1), "optimizer": mk.optimizers.Adam(0.1)}
        return Case(cls, {"steps": 20, "batch_size": 16, "quantile": 0.9}, parts, (x, y), (x, y))
