"""A checkpoint of TensorFlow 2 as a mapping from names to tensors, read without TensorFlow."""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from modulekit.core.describe import spec_of, table
from modulekit.errors import CheckpointError
from modulekit.sonnet import object_graph
from modulekit.sonnet.bundle import Bundle

_VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
_SAVE_COUNTER = "save_counter"  # tf.train.Checkpoint's own


class SavedTensor:
    """One tensor of a checkpoint; its values are read when asked for.

    Attributes:
      path: the way to it through the objects that were saved, such as `model/_layers/0/w`.
      name: the variable's full name, such as `mlp/linear_0/w`; the path for what is no variable.
      shape: its shape.
      dtype: its dtype; that of objects for strings, which are `bytes`.

    Args:
      bundle: the files.
      key: what the index calls it.
      name: the full name of the variable, empty if it is none.

    >>> import pathlib, modulekit as mk
    >>> recorded = pathlib.Path(mk.__file__).parents[1] / "tests" / "recorded" / "mlp_adam-1"
    >>> tensor = mk.sonnet.read_checkpoint(recorded)["mlp/linear_0/w"]
    >>> tensor, tensor.numpy().shape
    (SavedTensor('model/_layers/0/w', f32[5,4]), (5, 4))
    """

    __slots__ = ("_bundle", "_key", "dtype", "name", "path", "shape")

    def __init__(self, bundle: Bundle, key: str, name: str) -> None:
        self._bundle, self._key = bundle, key
        self.path = key.removesuffix(_VALUE)
        self.name = name or self.path
        self.shape: tuple[int, ...] = bundle.entries[key].shape
        self.dtype: np.dtype[Any] = bundle.entries[key].dtype

    def numpy(self) -> np.ndarray[Any, Any]:
        """Returns the values, as an array of its own.

        Raises:
          CheckpointError: the file is cut off or damaged, or the tensor is of a kind that this reader refuses.
        """
        return self._bundle.read(self._key)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        """Returns the values for NumPy's functions."""
        if copy is False:
            raise ValueError(f"{self!r} is read from disk: that makes a new array")
        return self.numpy() if dtype is None else self.numpy().astype(dtype)

    def __repr__(self) -> str:
        return f"SavedTensor({self.path!r}, {spec_of(self)})"


class Checkpoint(Mapping[str, SavedTensor]):
    """The tensors of a checkpoint, by path; `checkpoint[name]` takes a variable's full name as well.

    Attributes:
      prefix: the path of its files, without `.index`.
      nodes: the objects that were saved, the root first; none in a checkpoint of TensorFlow 1, where names are paths.

    Args:
      bundle: the files.

    >>> import pathlib, modulekit as mk
    >>> recorded = pathlib.Path(mk.__file__).parents[1] / "tests" / "recorded" / "mlp_adam-1"
    >>> checkpoint = mk.sonnet.read_checkpoint(recorded)
    >>> sorted(checkpoint)[:2]
    ['model/_layers/0/b', 'model/_layers/0/w']
    """

    def __init__(self, bundle: Bundle) -> None:
        self.prefix = str(bundle.prefix)
        self.nodes: list[object_graph.Node] = []
        if object_graph.KEY in bundle.entries:
            try:
                self.nodes = object_graph.parse(bundle.read(object_graph.KEY).item())
            except (ValueError, AttributeError, TypeError) as error:
                raise CheckpointError(f"{self.prefix}: its graph of objects cannot be read: {error}") from error
        full_names = {saved.key: saved.full_name for node in self.nodes for saved in node.saved}
        self._by_key = {
            key: SavedTensor(bundle, key, full_names.get(key, "")) for key in bundle.entries if key != object_graph.KEY
        }
        self._by_path = {tensor.path: tensor for tensor in self._by_key.values()}
        self._by_name: dict[str, list[SavedTensor]] = {}
        for tensor in self._by_key.values():
            self._by_name.setdefault(tensor.name, []).append(tensor)

    def __getitem__(self, name: str) -> SavedTensor:
        """Returns a tensor by its path, or by the full name of its variable.

        Raises:
          KeyError: there is none of this name, or more than one.
        """
        found = [self._by_path[name]] if name in self._by_path else self.named(name)
        if len(found) == 1:
            return found[0]
        if found:
            raise KeyError(f"{name!r} is the name of {len(found)} variables: give one of the paths {_listed(found)}")
        raise KeyError(f"{self!r} has no tensor {name!r}: print it to see what it has")

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_path)

    def __len__(self) -> int:
        return len(self._by_path)

    def named(self, name: str) -> list[SavedTensor]:
        """Returns the tensors whose variables have this full name; names may repeat."""
        return list(self._by_name.get(name, ()))

    def value_of(self, node: int) -> SavedTensor | None:
        """Returns the tensor of an object that is a variable, None for any other object."""
        for saved in self.nodes[node].saved:
            if saved.key.endswith(_VALUE):
                return self._by_key.get(saved.key)
        return None

    def is_bookkeeping(self, tensor: SavedTensor) -> bool:
        """Returns whether a tensor is the count of saves that `tf.train.Checkpoint` keeps for itself."""
        return tensor.path == _SAVE_COUNTER and bool(self.nodes)

    def __repr__(self) -> str:
        return f"Checkpoint({self.prefix!r}, {len(self)} tensors)"

    def __str__(self) -> str:
        rows = [(tensor.path, tensor.name, spec_of(tensor)) for tensor in self.values()]
        return f"{self!r}\n{table(('Path', 'Name', 'Spec'), rows)}"


def read_checkpoint(prefix: str | os.PathLike[str]) -> Checkpoint:
    """Opens a checkpoint that TensorFlow 2 wrote. Nothing but its index is read until a value is asked for.

    Args:
      prefix: what `tf.train.Checkpoint.save` or `write` returned: the path of its files without `.index`.

    Returns:
      Its tensors by path; `print` shows them.

    Raises:
      FileNotFoundError: there is none; the message lists those that are there.
      CheckpointError: the index is damaged, or a file is missing.

    >>> import pathlib, modulekit as mk
    >>> recorded = pathlib.Path(mk.__file__).parents[1] / "tests" / "recorded" / "mlp_adam-1"
    >>> mk.sonnet.read_checkpoint(recorded)["model/_layers/0/w"].shape
    (5, 4)
    """
    return Checkpoint(Bundle(prefix))


def _listed(tensors: Sequence[SavedTensor]) -> str:
    return ", ".join(repr(tensor.path) for tensor in tensors)
