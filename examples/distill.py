"""Distills large classifiers of handwritten digits into a small one, beside one that learns from labels alone.

The students see few labelled digits: those of a fraction of the training set. Teachers have learned from all of it, and the
distilled student hears what they say about the same few digits.
"""

from pathlib import Path

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

import modulekit as mk
import scenarios
from examples.datasets import Pair, flat_digits


def main(
    steps: int = 800,
    teachers: int = 2,
    hidden: int = 128,
    student_hidden: int = 16,
    temperature: float = 4.0,
    hard_weight: float = 0.1,
    share: float = 0.2,
    rate: float = 3e-3,
    seeds: int = 3,
    data_dir: Path | None = None,
) -> float:
    """Trains teachers and both students for each seed, and prints how much the distilled ones gain on average.

    Args:
      steps: updates of each network, of 100 examples.
      teachers: how many.
      hidden: units in each of a teacher's two hidden layers.
      student_hidden: units in the student's hidden layer.
      temperature: by which logits are divided before the student learns from them.
      hard_weight: the share of the labels in the distilled student's loss.
      share: of the training digits that the students see.
      rate: Adam's learning rate.
      seeds: how often all is done.
      data_dir: a directory with the four MNIST files; the embedded 8x8 digits if not given.
    """
    train, test, _ = flat_digits(data_dir)
    few = (train[0][: int(share * len(train[0]))], train[1][: int(share * len(train[1]))])
    rows: dict[str, list[scenarios.Result]] = {"each teacher": [], "student alone": [], "student distilled": []}
    for seed in range(seeds):
        mk.seed(seed)
        models = [mk.nets.MLP([hidden, hidden, 10], dropout_rate=0.3, name=f"teacher_{n}") for n in range(teachers)]
        rows["each teacher"] += [supervise(model, steps, rate, seed, train, test) for model in models]
        for model in models:
            model.freeze()
        alone, student = (mk.nets.MLP([student_hidden, 10], name=name) for name in ("alone", "student"))
        rows["student alone"].append(supervise(alone, steps, rate, seed, few, test))
        run = scenarios.Distillation(steps, temperature, hard_weight, seed=seed, progress=False)
        optimizer = mk.optimizers.Adam(rate)
        rows["student distilled"].append(run(student, models, optimizer, data=few, eval_data=test))
    print_table(rows)
    together = np.mean([result.metrics["teacher_accuracy"] for result in rows["student distilled"]])
    print(f"test accuracy of the teachers' mean {together:.4f}")
    gain = mean_accuracy(rows["student distilled"]) - mean_accuracy(rows["student alone"])
    print(f"distillation gains {gain:.4f} in test accuracy")
    return gain


def supervise(model: mk.Module, steps: int, rate: float, seed: int, train: Pair, test: Pair) -> scenarios.Result:
    """Trains a model on labels."""
    run = scenarios.Supervised(steps, seed=seed, progress=False)
    return run(model, mk.optimizers.Adam(rate), mk.losses.softmax_cross_entropy, data=train, eval_data=test)


def mean_accuracy(results: list[scenarios.Result]) -> float:
    """Returns the mean test accuracy."""
    return float(np.mean([result.metrics["accuracy"] for result in results]))


def print_table(rows: dict[str, list[scenarios.Result]]) -> None:
    """Prints sizes and test accuracies over the seeds."""
    table = Table(title="test accuracy")
    for heading in ("network", "parameters", "runs", "mean", "lowest", "highest"):
        table.add_column(heading, justify="left" if heading == "network" else "right")
    for name, results in rows.items():
        values = [result.metrics["accuracy"] for result in results]
        spread = f"{np.mean(values):.4f}", f"{min(values):.4f}", f"{max(values):.4f}"
        table.add_row(name, f"{results[0].parameters:,}", str(len(values)), *spread)
    Console().print(table)


if __name__ == "__main__":
    tyro.cli(main)
