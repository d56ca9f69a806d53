"""Devices for a batch: one, or several that each take a part of it."""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any, final

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from modulekit.core import provenance
from modulekit.core.variable import Variable


@final
class Placement:
    """Where batches and weights lie while a model is evaluated.

    Args:
      devices: how many of JAX's devices share a batch; None takes the batch wherever JAX puts arrays.

    Raises:
      ValueError: there are not so many.
    """

    def __init__(self, devices: int | None) -> None:
        available = jax.devices()
        if devices is not None and not 1 <= devices <= len(available):
            raise ValueError(f"devices={devices}: expected 1 to {len(available)}, the devices that JAX has here")
        self.count = devices or 1
        self._mesh = Mesh(np.array(available[:devices]), ("batch",)) if self.count > 1 else None

    def rounded(self, batch_size: int) -> int:
        """Returns the next batch size that the devices can share evenly."""
        return -(-batch_size // self.count) * self.count

    def spread(self, batch: Any) -> Any:
        """Returns arrays `[batch, ...]`, each device with its part of the first axis."""
        return batch if self._mesh is None else jax.device_put(batch, NamedSharding(self._mesh, PartitionSpec("batch")))

    def gathered(self, outputs: Any) -> Any:
        """Returns what the devices computed, in one place."""
        return outputs if self._mesh is None else jax.device_get(outputs)

    @contextlib.contextmanager
    def holding(self, variables: Iterable[Variable]) -> Iterator[None]:
        """Context in which every device has the variables; afterwards they hold the arrays that they held before."""
        if self._mesh is None:
            yield
            return
        everywhere, writer = NamedSharding(self._mesh, PartitionSpec()), provenance.user_line()
        kept = [(variable, variable.stored()) for variable in variables]
        try:
            for variable, array in kept:
                variable.replace(jax.device_put(array, everywhere), writer)
            yield
        finally:
            for variable, array in kept:
                variable.replace(array, writer)
