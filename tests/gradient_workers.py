"""A small model that is trained by workers: each computes the gradient of its share of a batch. Run, it is a worker."""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np

import modulekit as mk
from scenarios.aggregation import GradientClient

STEPS = 6
SECRET_SIZE = 32


def made() -> mk.Module:
    """Returns the model, with first weights."""
    mk.seed(3)
    model = mk.nets.MLP([8, 3])
    mk.build(model, [1, 5])
    return model


def share(version: int, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the examples of a worker in a step; the second has fewer."""
    rng = np.random.default_rng([version, index])
    inputs = rng.normal(size=[6 - 2 * index, 5]).astype(np.float32)
    return inputs, inputs[:, :3].argmax(axis=1).astype(np.int32)


def gradients(model: mk.Module) -> Callable[[int, int], dict[str, Any]]:
    """Returns a function of a version and a worker that computes the gradients at the model's weights."""
    paths = [path for path, variable in model.paths().items() if variable.trainable]

    @mk.jit
    def of_batch(inputs: Any, labels: Any) -> Any:
        return mk.grad(lambda: mk.losses.softmax_cross_entropy(model(inputs), labels).mean(), model)()

    return lambda version, index: dict(zip(paths, of_batch(*share(version, index)), strict=True))


def work(client: GradientClient, index: int) -> None:
    """Contributes to each step."""
    model = made()
    for variable in model.variables:
        variable.assign(0 * variable)  # what counts are the weights that are fetched
    compute, version = gradients(model), -1
    while version < STEPS - 1:
        version, arrays = client.fetch(after=version)
        model.assign(arrays)
        inputs, _ = share(version, index)
        receipt = client.submit(compute(version, index), len(inputs), f"worker {index}", version)
        if not receipt:
            raise RuntimeError(receipt.reason)


if __name__ == "__main__":
    secret = sys.stdin.buffer.read(SECRET_SIZE)
    with GradientClient((sys.argv[1], int(sys.argv[2])), secret) as opened:
        work(opened, int(sys.argv[3]))
