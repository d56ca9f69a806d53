"""Serial sharing: a network is trained on one half of the digits, and then, with another optimizer, on the other half.

Beside it the same without sharing: the second phase trains a network of its own. At the end stand a table over the seeds and
a picture of the losses.
"""

from pathlib import Path

import tyro

import modulekit as mk
import scenarios
from examples.datasets import flat_digits
from examples.two_networks import networks, optimizers, penalty, print_table


def main(
    steps: int = 600,
    hidden: tuple[int, ...] = (64, 64),
    batch_size: int = 50,
    seeds: tuple[int, ...] = (0, 1, 2),
    data_dir: Path | None = None,
    save_dir: Path | None = None,
    picture: Path | None = Path("serial_sharing.png"),
) -> float:
    """Trains both for each seed, and prints the second phase's initial loss as a share of the first one's.

    Args:
      steps: updates of each phase.
      hidden: units in the hidden layers.
      batch_size: examples per update.
      seeds: of the first weights and the order of examples, one for each repetition.
      data_dir: a directory with the four MNIST files; the embedded 8x8 digits if not given.
      save_dir: the runs' directory; run the same line again after a Ctrl-C, and it goes on.
      picture: where to save the picture of the last seed.
    """
    train, test, _ = flat_digits(data_dir)
    rows: dict[str, dict[str, dict[str, float]]] = {"shared": {}, "apart": {}}
    curves: dict[str, scenarios.Result] = {}
    for seed in seeds:
        for name in rows:
            shared = name == "shared"
            mk.seed(seed)
            train_it = scenarios.SerialSharing(
                2 * steps,
                shared=shared,
                reduction="sum",
                batch_size=batch_size,
                seed=seed,
                log_interval=max(1, steps // 50),
                eval_interval=steps,
                save_dir=save_dir and save_dir / f"{name}_{seed}",
            )
            result = train_it(
                networks(hidden, shared),
                optimizers(),
                mk.losses.softmax_cross_entropy,
                penalty,
                data=train,
                eval_data=test,
            )
            first, second = result.state["phases"].initial_loss.numpy()
            accuracies = result.column("eval_accuracy")[1]
            rows[name][f"seed {seed}"] = {
                "first loss": float(first),
                "second loss": float(second),
                "share": float(second / first),
                "accuracy": accuracies[0],
                "at the end": accuracies[-1],
                "gain": accuracies[-1] - accuracies[0],
            }
            curves[name] = result
    if picture is not None:
        draw(picture, curves)
        print(f"picture: {picture}")
    print_table("both phases train one network: initial losses, and accuracy after each phase", rows["shared"])
    print_table("each phase trains its own network", rows["apart"])
    share = sum(row["share"] for row in rows["shared"].values()) / len(seeds)
    print(f"with shared variables, the second phase begins at a share of the first one's initial loss of {share:.4f}")
    return share


def draw(path: Path, results: dict[str, scenarios.Result]) -> None:
    """Saves the training losses over the steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for name, result in results.items():
        axes.semilogy(*result.column("loss"), label=name)
    axes.set(xlabel="step", ylabel="sum of cross-entropies over a batch (nats), with the penalty")
    axes.legend()
    axes.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    tyro.cli(main)
