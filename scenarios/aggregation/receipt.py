"""What comes in, and what is answered."""

from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np

Array: TypeAlias = np.ndarray[Any, Any]
Key: TypeAlias = tuple[int, str]  # of a contribution: its version and its id


class Contribution(NamedTuple):
    """Gradients that were computed somewhere.

    Attributes:
      id: of the contribution; one of a version is counted once.
      version: of the weights that they are the gradients at.
      weight: how many samples they are the mean of.
      gradients: by path.
    """

    id: str
    version: int
    weight: float
    gradients: dict[str, Array]

    @property
    def key(self) -> Key:
        """What tells it from all others, and by which all are ordered."""
        return self.version, self.id


@dataclass(frozen=True)
class Receipt:
    """The answer to a contribution; true where it was accepted.

    Attributes:
      accepted: whether it counts; it is then on disk, if the intake has a directory.
      reason: why not; empty where it was accepted.

    >>> receipt = Receipt(False, "weight=-1: expected a positive number of samples")
    >>> bool(receipt), receipt.reason
    (False, 'weight=-1: expected a positive number of samples')
    """

    accepted: bool
    reason: str = ""

    def __bool__(self) -> bool:
        return self.accepted


class Aggregate(NamedTuple):
    """What became of the contributions of a version.

    Attributes:
      gradients: by path, in the dtypes of the variables.
      weight: the samples in all contributions.
      keys: their versions and ids, in the order in which they were added up.

    >>> Aggregate({"w": np.zeros([2], np.float32)}, 10.0, ((0, "a"), (0, "b"))).weight
    10.0
    """

    gradients: dict[str, Array]
    weight: float
    keys: tuple[Key, ...]
