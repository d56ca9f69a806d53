"""An ensemble of classifiers of handwritten digits: each is trained on its own half, and their average is better than both.

The members are trained side by side in one program. The loss of a batch is the sum of its cross-entropies, and a penalty on
the hidden weights. At the end stand a table over the seeds, and the report card of the last ensemble with its picture.
"""

from pathlib import Path

import tyro

import modulekit as mk
import scenarios
from examples.datasets import flat_digits
from examples.two_networks import networks, optimizers, penalty, print_table
from scenarios.ensemble import EnsembleModel
from scenarios.evaluation import ensemble_report


def main(
    steps: int = 600,
    hidden: tuple[int, ...] = (64, 64),
    batch_size: int = 50,
    seeds: tuple[int, ...] = (0, 1, 2),
    data_dir: Path | None = None,
    save_dir: Path | None = None,
    report_dir: Path | None = Path("ensemble_digits"),
) -> float:
    """Trains an ensemble for each seed, and prints how much more accurate the average is than the best member.

    Args:
      steps: updates of each member.
      hidden: units in the hidden layers.
      batch_size: examples of each member per update.
      seeds: of the first weights and the order of examples, one for each repetition.
      data_dir: a directory with the four MNIST files; the embedded 8x8 digits if not given.
      save_dir: the runs' directory; run the same line again after a Ctrl-C, and it goes on.
      report_dir: where to save the report card of the last ensemble.
    """
    train, test, _ = flat_digits(data_dir)
    rows = {}
    for seed in seeds:
        mk.seed(seed)
        ensemble = EnsembleModel(networks(hidden))
        train_it = scenarios.Ensemble(
            steps,
            seeds=(2 * seed, 2 * seed + 1),
            split="disjoint",
            reduction="sum",
            batch_size=batch_size,
            eval_interval=max(1, steps // 5),
            save_dir=save_dir and save_dir / f"seed_{seed}",
        )
        found = train_it(
            ensemble, optimizers(steps), mk.losses.softmax_cross_entropy, penalty, data=train, eval_data=test
        ).metrics
        best = max(found["member0_accuracy"], found["member1_accuracy"])
        rows[f"seed {seed}"] = {
            "member 0": found["member0_accuracy"],
            "member 1": found["member1_accuracy"],
            "average": found["accuracy"],
            "gain": found["accuracy"] - best,
        }
    report = ensemble_report(ensemble, test)
    print(report)
    if report_dir is not None:
        print(f"report: {report.save(report_dir)}, with a picture")
    print_table("accuracy on the test digits, members trained on disjoint halves", rows)
    gain = sum(row["gain"] for row in rows.values()) / len(rows)
    print(f"the average is more accurate than the better member by {gain:.4f}")
    return gain


if __name__ == "__main__":
    tyro.cli(main)
