"""A workload: a network with its data and its loss, written by hand in JAX and as a module, with equal arithmetic.

The hand-written network is functions of params, nested dicts of arrays, and of statistics, which its training moves and
no gradient does. Every other library starts from copies of its params, so that all of them train on the same numbers.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import optax

import modulekit as mk
from modulekit.data import batch_indices
from scenarios.base.calling import call_model

LEARNING_RATE = 1e-3
Params = dict[str, Any]
Data = tuple[np.ndarray, np.ndarray]
Forward = Callable[[Params, Params, jax.Array], tuple[jax.Array, Params]]


@dataclasses.dataclass(frozen=True)
class Workload:
    """What is trained, with Adam and the mean cross-entropy.

    Attributes:
      name: how it is asked for.
      kind: which networks of other libraries compute it.
      batch_size: the number of examples of a step.
      make_data: takes a number of examples, and returns inputs and labels, the same ones for each call.
      make_params: returns the hand-written network's first weights.
      forward: takes params, statistics and inputs; returns logits and the statistics after them.
      make_model: returns the module, which has not been called.
      weights_of: takes the module, and returns its variables in the places of `params`.
      make_statistics: returns the first statistics.
      sizes: of an MLP, the number of inputs and of each layer's units.
      is_huge: whether it takes so long that only the contenders that goals compare meet in it, and not in a quick run.
    """

    name: str
    kind: str
    batch_size: int
    make_data: Callable[[int], Data]
    make_params: Callable[[], Params]
    forward: Forward
    make_model: Callable[[], Any]
    weights_of: Callable[[Any], Params]
    make_statistics: Callable[[], Params] = dict
    sizes: tuple[int, ...] = ()
    is_huge: bool = False

    def loss(self, params: Params, statistics: Params, x: jax.Array, y: jax.Array) -> tuple[jax.Array, Params]:
        """Returns the mean cross-entropy of a batch, and the statistics after it."""
        logits, statistics = self.forward(params, statistics, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), statistics

    def model_with(self, params: Params | None) -> Any:
        """Returns the module with copies of these weights; None leaves it to draw its own in its first call."""
        model = self.make_model()
        if params is not None:
            x, _ = self.make_data(1)
            mk.build(lambda x: call_model(model, x, True), x)
            jax.tree.map(lambda variable, value: variable.assign(value), self.weights_of(model), params)
        return model

    def batches(self, data: Data, steps: int) -> Iterator[Data]:
        """Yields the batches of the first steps, in the order in which a scenario takes them."""
        for rows in batch_indices(len(data[0]), self.batch_size, 0, 0, steps):
            yield data[0][rows], data[1][rows]


def without_statistics(forward: Callable[[Params, jax.Array], jax.Array]) -> Forward:
    """Returns the `forward` of a workload that has no statistics."""
    return lambda params, statistics, x: (forward(params, x), statistics)


def labeled_noise(shape: tuple[int, ...], classes: int) -> Callable[[int], Data]:
    """Returns what makes normal inputs, `[examples, *shape]`, and labels that have nothing to do with them."""

    def make_data(examples: int) -> Data:
        generator = np.random.default_rng(0)
        inputs = generator.normal(size=(examples, *shape)).astype(np.float32)
        return inputs, generator.integers(classes, size=examples).astype(np.int32)

    return make_data
