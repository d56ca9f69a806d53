"""A scenario of your own: one class with one method, on handwritten digits; and whether it keeps what scenarios promise."""

from typing import Any

import jax
import tyro

import modulekit as mk
import scenarios
from examples.datasets import flat_digits
from scenarios.testing import Case, check_scenario


class Smoothed(scenarios.Scenario):
    """Supervised learning of labels that are not taken at their word: `y' = (1 - s) one_hot(y) + s / classes`."""

    def __init__(self, steps: int, smoothing: float, **settings: Any) -> None:
        super().__init__(steps, **settings)
        self.smoothing = smoothing

    def update(self, batch: Any, *, model: Any, optimizer: mk.Optimizer) -> dict[str, Any]:
        targets = (1 - self.smoothing) * jax.nn.one_hot(batch[1], 10) + self.smoothing / 10
        mean = lambda: mk.losses.softmax_cross_entropy(model(batch[0]), targets).mean()  # noqa: E731
        return {"loss": optimizer.minimize(mean, model)}


def main(steps: int = 1000, smoothing: float = 0.1) -> None:
    """Checks the scenario on a small case, trains with it, and prints the accuracy on the test digits."""
    train, test, _ = flat_digits(None)
    parts = lambda: {"model": mk.nets.MLP([64, 10]), "optimizer": mk.optimizers.Adam(1e-3)}  # noqa: E731
    print(check_scenario(lambda: Case(Smoothed, {"steps": 8, "smoothing": smoothing}, parts(), train)))
    trained = parts()
    Smoothed(steps, smoothing)(**trained, data=train)
    accuracy = scenarios.evaluation.Evaluate()(trained["model"], data=test).metrics["accuracy"]
    print(f"test accuracy {accuracy:.4f}")


if __name__ == "__main__":
    tyro.cli(main)
