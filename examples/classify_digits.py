"""Classifies handwritten digits with a multi-layer perceptron and dropout."""

from pathlib import Path

import tyro

import modulekit as mk
import scenarios
from examples.datasets import flat_digits


def main(
    steps: int = 3000,
    hidden: int = 128,
    dropout: float = 0.2,
    rate: float = 1e-3,
    seed: int = 0,
    data_dir: Path | None = None,
    save_dir: Path | None = None,
) -> float:
    """Trains, and prints the accuracy on the test digits.

    Args:
      steps: updates of 100 examples.
      hidden: units in each of the two hidden layers.
      dropout: the share of hidden units dropped in training.
      rate: Adam's learning rate.
      seed: of the first weights, the order of examples and the dropout.
      data_dir: a directory with the four MNIST files; the embedded 8x8 digits if not given.
      save_dir: the run's directory; run the same line again after a Ctrl-C, and it goes on.
    """
    mk.seed(seed)
    train, test, _ = flat_digits(data_dir)
    model = mk.nets.MLP([hidden, hidden, 10], dropout_rate=dropout)
    train_it = scenarios.Supervised(steps, seed=seed, save_dir=save_dir, eval_interval=max(1, steps // 5))
    result = train_it(model, mk.optimizers.Adam(rate), mk.losses.softmax_cross_entropy, data=train, eval_data=test)
    print(model.summary())
    print(f"test loss {result.metrics['loss']:.4f}, test accuracy {result.metrics['accuracy']:.4f}")
    return result.metrics["accuracy"]


if __name__ == "__main__":
    tyro.cli(main)
