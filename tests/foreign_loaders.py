"""Objects that speak the protocols of other libraries' loaders and tensors, with the traps that the real ones have."""

import copy
import random
from collections.abc import Iterator
from typing import Any

import numpy as np


class ShufflingLoader:
    """Has the protocol of torchdata's `StatefulDataLoader`, which begins anew after an epoch whose end it was told.

    As there, each iterator draws a number of its own before the order of its epoch, so that a loader that was restored
    is not where one that ran through is; and the state that was loaded is that of the next iterator only.
    """

    def __init__(self, size: int = 3) -> None:
        self.size = size
        self.generator = random.Random(5)
        self.running: dict[str, Any] = {"generator": self.generator.getstate(), "yielded": 0, "finished": False}
        self.loaded: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        return self.running  # the caller must copy

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.loaded = copy.deepcopy(state)

    def __iter__(self) -> Iterator[np.ndarray]:
        state, self.loaded = self.loaded, None
        self.generator.random()
        skip = 0
        if state is not None:
            self.generator.setstate(state["generator"])
            skip = 0 if state["finished"] else state["yielded"]
        self.running = {"generator": self.generator.getstate(), "yielded": skip, "finished": False}
        order = self.generator.sample(range(self.size), self.size)
        for number in order[skip:]:
            self.running["yielded"] += 1
            yield np.full([2], number)
        self.running["finished"] = True


class RewindingDataset:
    """Has the protocol of the iterable data sets of Hugging Face: what was loaded is where every iterator begins."""

    def __init__(self, size: int = 3) -> None:
        self.size = size
        self.start = self.index = 0

    def state_dict(self) -> dict[str, Any]:
        return {"index": self.index}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.start = self.index = state["index"]

    def __iter__(self) -> Iterator[np.ndarray]:
        for index in range(self.start, self.size):
            self.index = index + 1
            yield np.full([2], index)


class Endless:
    """An iterator with `state_dict`, as loaders that are not made of epochs."""

    def __init__(self) -> None:
        self.count = 0

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = state["count"]

    def __iter__(self) -> "Endless":
        return self

    def __next__(self) -> np.ndarray:
        self.count += 1
        return np.full([2], self.count)


class Tensor:
    """Has PyTorch's words: it refuses `numpy` while it has a gradient or is on a device."""

    def __init__(self, array: np.ndarray, has_gradient: bool = True, device: str = "cuda") -> None:
        self.array, self.has_gradient, self.device = array, has_gradient, device

    def detach(self) -> "Tensor":
        return Tensor(self.array, False, self.device)

    def cpu(self) -> "Tensor":
        return Tensor(self.array, self.has_gradient, "cpu")

    def numpy(self) -> np.ndarray:
        if self.has_gradient or self.device != "cpu":
            raise RuntimeError("detach it, and copy it to the cpu")
        return self.array

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return self.numpy()


class EagerTensor:
    """Has TensorFlow's one word."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def numpy(self) -> np.ndarray:
        return self.array


class Capsule:
    """Speaks DLPack only."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.array.__dlpack_device__()
