"""A safetensors file as a mapping from names to arrays, whose values are read when asked for."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from modulekit.core.describe import spec_of, table
from modulekit.core.safetensors_layout import DTYPES, RECORD
from modulekit.core.safetensors_reading import Tensors
from modulekit.errors import CheckpointError


class SavedArray:
    """One array of a file, or of a mapping of arrays; its values are read when asked for.

    Attributes:
      path: its name in the file.
      shape: its shape.
      dtype: its dtype.

    Args:
      path: its name.
      shape: its shape.
      dtype: its dtype.
      read: returns the values, as an array of its own.

    >>> SavedArray("layers[0].w", (2,), np.dtype(np.float32), lambda: np.zeros([2], np.float32))
    SavedArray('layers[0].w', f32[2])
    """

    __slots__ = ("_read", "dtype", "path", "shape")

    def __init__(
        self, path: str, shape: tuple[int, ...], dtype: np.dtype[Any], read: Callable[[], np.ndarray[Any, Any]]
    ) -> None:
        self.path, self.shape, self.dtype, self._read = path, shape, dtype, read

    def numpy(self) -> np.ndarray[Any, Any]:
        """Returns the values, as an array of its own.

        Raises:
          CheckpointError: the file has changed since it was opened.
        """
        return self._read()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        """Returns the values for NumPy's functions."""
        if copy is False:
            raise ValueError(f"{self!r} is read from disk: that makes a new array")
        return self.numpy() if dtype is None else self.numpy().astype(dtype)

    def __repr__(self) -> str:
        return f"SavedArray({self.path!r}, {spec_of(self)})"


class WeightsFile(Mapping[str, SavedArray]):
    """The arrays of a safetensors file by name. `print` shows them.

    Attributes:
      path: of the file.
      metadata: the texts that were given to `save`, or that another program wrote.
      ties: the names of each array that has several; the first of them is that of the mapping.

    Args:
      path: of the file.

    Raises:
      FileNotFoundError: there is none.
      CheckpointError: it is no safetensors file, cut off, or damaged.

    >>> import pathlib, tempfile, modulekit as mk
    >>> layer = mk.Linear(3)
    >>> _ = mk.build(layer, [2, 5])
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     mk.weights.save(pathlib.Path(directory) / "linear.safetensors", layer)
    ...     read = WeightsFile(pathlib.Path(directory) / "linear.safetensors")
    >>> read["w"].shape, read.ties
    ((5, 3), ())
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = str(path)
        self._tensors = Tensors(Path(path))
        self.metadata: dict[str, str] = self._tensors.metadata
        self.ties: tuple[tuple[str, ...], ...] = _ties(self.path, self.metadata.pop(RECORD, "{}"))
        self._arrays = {name: self._array(name, entry) for name, entry in sorted(self._tensors.entries.items())}

    def __getitem__(self, name: str) -> SavedArray:
        """Returns the array of a name.

        Raises:
          KeyError: there is none.
        """
        if name not in self._arrays:
            raise KeyError(f"{self!r} has no array {name!r}: print it to see what it has")
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __repr__(self) -> str:
        return f"WeightsFile({self.path!r}, {len(self)} arrays)"

    def __str__(self) -> str:
        others = {names[0]: f"= {' = '.join(names[1:])}" for names in self.ties}
        rows = [(name, spec_of(array), others.get(name, "")) for name, array in self.items()]
        return f"{self!r}\n{table(('Name', 'Spec', 'Ties'), rows)}"

    def _array(self, name: str, entry: Mapping[str, Any]) -> SavedArray:
        shape, dtype = tuple(entry["shape"]), DTYPES.get(entry["dtype"])
        if dtype is None:
            raise CheckpointError(
                f"{self.path}: array {name!r} is {entry['dtype']}, of which JAX has no arrays; it reads {', '.join(DTYPES)}"
            )
        return SavedArray(name, shape, dtype, lambda: self._values(name, shape, dtype))

    def _values(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
        return np.frombuffer(self._tensors.read(name), np.uint8).view(dtype).reshape(shape)


def read(path: str | os.PathLike[str]) -> WeightsFile:
    """Opens a safetensors file. Nothing but its header is read until a value is asked for.

    Args:
      path: of the file.

    Returns:
      Its arrays by name; `print` shows them.

    Raises:
      FileNotFoundError: there is none.
      CheckpointError: it is no safetensors file, cut off, or damaged.

    >>> import pathlib, tempfile, modulekit as mk
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     path = pathlib.Path(directory) / "rate.safetensors"
    ...     mk.weights.save(path, {"rate": mk.Variable(0.5)})
    ...     float(mk.weights.read(path)["rate"].numpy())
    0.5
    """
    return WeightsFile(path)


def _ties(path: str, record: str) -> tuple[tuple[str, ...], ...]:
    try:
        return tuple(tuple(str(name) for name in names) for names in json.loads(record).get("ties", ()))
    except (ValueError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{path}: its record of ties cannot be read: {record[:80]!r}") from error
