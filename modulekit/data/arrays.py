"""An in-memory data set: a structure of arrays whose first axes count the same examples.

An `Arrays` is made once, checks everything then, and is only read afterwards: a training loop asks it for the examples
of a batch, a checkpoint asks it for its fingerprint.
"""

import hashlib
from typing import Any, TypeAlias, final

import numpy as np
import numpy.typing as npt

from modulekit.data.conversion import converted
from modulekit.data.structure import leaves_of, map_leaves, outline, shared_length

Array: TypeAlias = npt.NDArray[Any]

_ROOT = "data"


@final
class Arrays:
    """Holds an array, or a nested tuple, list or dict of arrays, that share their first axis.

    Leaves are converted with `np.asarray` and narrowed to the types that JAX has by default: float64 becomes float32,
    int64 int32, uint64 uint32 and complex128 complex64; foreign byte orders become native. A value that the narrower
    type cannot hold is an error. Leaves that need no conversion are not copied, so do not change them in place while
    the data set is in use. A list is a structure, not an array: write `np.array([1, 2, 3])` for three examples.

    Args:
      data: the structure of arrays, each of shape `[size, ...]`; an `Arrays` gives an equal one over the same memory.

    Raises:
      ValueError: if there is no array or no example, if an array has no axis, if the lengths differ, or if a value does
        not fit the narrower type.
      TypeError: if a leaf is not an array of numbers or booleans.

    >>> import numpy as np
    >>> from modulekit.data import Arrays
    >>> data = Arrays({"image": np.zeros([5, 8, 8, 1]), "label": np.arange(5)})
    >>> data
    Arrays(size=5, data['image']: float32[5, 8, 8, 1], data['label']: int32[5])
    >>> data.take([4, 0, 4])["label"]
    array([4, 0, 4], dtype=int32)
    """

    def __init__(self, data: Any) -> None:
        """Converts and checks the data; see the class."""
        self._arrays = map_leaves(_converted, data, _ROOT)
        self._leaves: list[tuple[str, Array]] = leaves_of(self._arrays, _ROOT)
        self._size = shared_length(self._arrays, _ROOT)

    @property
    def size(self) -> int:
        """The number of examples."""
        return self._size

    @property
    def arrays(self) -> Any:
        """The structure of converted arrays, with the containers of the data that it was made from."""
        return self._arrays

    @property
    def leaves(self) -> list[tuple[str, Array]]:
        """Each array with its path, such as `data[1]` or `data['label']`, in the structure's order."""
        return list(self._leaves)

    def take(self, indices: npt.ArrayLike | slice) -> Any:
        """Gathers examples.

        Args:
          indices: integers of any shape `[...]`, each in 0 .. size - 1; or a slice of the first axis, which copies
            nothing.

        Returns:
          The structure with each leaf of shape `[size, *rest]` gathered to `[*indices.shape, *rest]`.

        Raises:
          TypeError: if the indices are not integers.
          IndexError: if an index is outside 0 .. size - 1; negative indices do not count from the end.

        >>> import numpy as np
        >>> from modulekit.data import Arrays
        >>> images, labels = Arrays((np.ones([4, 2]), np.arange(4))).take([[0, 1], [2, 3], [3, 0]])
        >>> images.shape, labels.tolist()
        ((3, 2, 2), [[0, 1], [2, 3], [3, 0]])
        """
        chosen = indices if isinstance(indices, slice) else self._checked_indices(indices)
        return map_leaves(lambda array, path: array[chosen], self._arrays, _ROOT)

    def fingerprint(self) -> str:
        """Identifies the data by content, for example to notice that a resumed run was given other data.

        Returns:
          16 hexadecimal digits of the BLAKE2b hash of all paths, shapes, dtypes and values. The insertion order of a
          dict does not count.

        >>> import numpy as np
        >>> from modulekit.data import Arrays
        >>> Arrays(np.arange(3)).fingerprint() == Arrays(np.arange(3)).fingerprint()
        True
        >>> Arrays(np.arange(3)).fingerprint() == Arrays(np.arange(1, 4)).fingerprint()
        False
        """
        digest = hashlib.blake2b(digest_size=8)
        for path, array in sorted(self._leaves, key=lambda leaf: leaf[0]):
            digest.update(repr((path, array.dtype.name, array.shape)).encode())
            digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        return digest.hexdigest()

    def __repr__(self) -> str:
        """Shows the size and each leaf's path, dtype and shape."""
        return f"Arrays(size={self._size}, {outline(self._arrays, _ROOT)})"

    def _checked_indices(self, indices: npt.ArrayLike) -> Array:
        chosen = np.asarray(indices)
        if chosen.dtype.kind not in "iu":
            raise TypeError(
                f"expected integer indices or a slice, got {chosen.dtype.name} of shape {chosen.shape}; "
                f"for a boolean mask, take np.flatnonzero(mask)"
            )
        outside = chosen[(chosen < 0) | (chosen >= self._size)]
        if outside.size:
            raise IndexError(
                f"index {outside[0]} is outside 0 .. {self._size - 1} for data with {self._size} examples; "
                f"take only indices that exist (negative ones do not count from the end)"
            )
        return chosen


def _converted(leaf: Any, path: str) -> Any:
    return leaf.arrays if isinstance(leaf, Arrays) else converted(leaf, path)
