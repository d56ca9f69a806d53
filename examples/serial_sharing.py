"""Serial sharing: a network is trained on one half of the digits, and then, with another optimizer, on the other half.

Beside it the same without sharing: the second phase trains a network of its own. At the end stand a table over the seeds and
a picture of the losses.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tyro

import modulekit as mk
import scenarios
from examples.datasets import Pair, flat_digits
from examples.two_networks import networks, optimizers, penalty, print_table
from scenarios import events


class Beginnings:
    """A hook that notes the loss at which each of two phases begins: of a batch, in the mean over the phase's examples.

    The loss of a phase's first batch alone (`result.state["phases"].initial_loss`) is mostly chance: a trained network is
    wrong about a few digits in a hundred, and then very sure of itself.
    """

    def __init__(self, models: Sequence[mk.nets.MLP], data: Pair, steps: int, batch_size: int) -> None:
        self._models, self._data, self._steps, self._batch_size = models, data, steps, batch_size
        self.losses: list[float] = []

    def __call__(self, event: events.Event) -> None:
        """Computes the loss where a phase begins."""
        phase = len(self.losses)
        if phase < 2 and isinstance(event, events.Started | events.Progressed) and event.step == phase * self._steps:
            self.losses.append(self._loss(self._models[phase], np.array_split(np.arange(len(self._data[1])), 2)[phase]))

    def _loss(self, model: mk.nets.MLP, half: np.ndarray) -> float:
        images, labels = (array[half] for array in self._data)
        of_examples = mk.jit(lambda x, y: mk.losses.softmax_cross_entropy(model(x), y).mean())
        return float(of_examples(images, labels)) * self._batch_size + float(penalty(model))

    def get_state(self) -> list[float]:
        """Returns what a resumed run must know."""
        return self.losses

    def set_state(self, state: list[float]) -> None:
        """Takes it back."""
        self.losses = list(state)


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
            models = networks(hidden, shared)
            beginnings = Beginnings(models, train, steps, batch_size)
            result = train_it(
                models,
                optimizers(steps),
                mk.losses.softmax_cross_entropy,
                penalty,
                data=train,
                eval_data=test,
                hooks=[beginnings],
            )
            first, second = beginnings.losses
            accuracies = result.column("eval_accuracy")[1]
            rows[name][f"seed {seed}"] = {
                "first loss": first,
                "second loss": second,
                "share": second / first,
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
