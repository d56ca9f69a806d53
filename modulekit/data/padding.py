"""Padding: samples of different sizes, such as graphs and sentences, become arrays, with masks that tell what is padding."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from modulekit.data.conversion import to_numpy

Array: TypeAlias = npt.NDArray[Any]

_MASK = "mask"


def padded(
    samples: Sequence[Mapping[str, Any]], sizes: Mapping[str, int | Sequence[int]] | None = None
) -> dict[str, Any]:
    """Puts samples whose arrays have different sizes into one array for each name, filled up with zeros.

    What a model makes of the padding is its own affair: it multiplies by the mask, or takes a mean over it.

    Args:
      samples: dicts with the same names, each of numbers or arrays of one rank and dtype.
      sizes: by name, how long the first axes become: one number, or one for each axis from the first on. An axis that is
        not given becomes as long as the longest. Give those of all data sets, so that they have one form.

    Returns:
      An array `[samples, ...]` for each name; and as `"mask"`, for each name with axes, which entries of the first of them
      are the sample's own: booleans `[samples, length]`.

    Raises:
      ValueError: samples differ in names, ranks or dtypes; one is larger than `sizes` says; or there is none.
      TypeError: something is no array of numbers.

    >>> import numpy as np
    >>> from modulekit.data import padded
    >>> graphs = [{"nodes": np.ones([2, 3]), "label": 1}, {"nodes": np.ones([4, 3]), "label": 0}]
    >>> data = padded(graphs, {"nodes": 5})
    >>> data["nodes"].shape, data["label"].tolist(), data["mask"]["nodes"].astype(int).tolist()
    ((2, 5, 3), [1, 0], [[1, 1, 0, 0, 0], [1, 1, 1, 1, 0]])
    """
    if not samples:
        raise ValueError("there are no samples: padded needs one at least")
    names = list(samples[0])
    if _MASK in names:
        raise ValueError(f"samples have something named {_MASK!r}, which is where the masks go: give it another name")
    unknown = set(sizes or {}) - set(names)
    if unknown:
        raise ValueError(f"sizes has {sorted(unknown)}, and the samples have {names}")
    arrays: dict[str, Any] = {}
    masks: dict[str, Array] = {}
    for name in names:
        column = _column(samples, name, names)
        shape = _shape(column, name, (sizes or {}).get(name, ()))
        arrays[name] = np.zeros((len(samples), *shape), column[0].dtype)
        for index, array in enumerate(column):
            arrays[name][index, *map(slice, array.shape)] = array
        if shape:
            lengths = np.array([len(array) for array in column])
            masks[name] = np.arange(shape[0]) < lengths[:, None]
    return {**arrays, _MASK: masks} if masks else arrays


def _column(samples: Sequence[Mapping[str, Any]], name: str, names: Sequence[str]) -> list[Array]:
    """Returns the arrays of one name, or raises what keeps them apart."""
    column = []
    for index, sample in enumerate(samples):
        if sample.keys() != set(names):
            raise ValueError(f"samples must have the same names: sample 0 has {names}, sample {index} {list(sample)}")
        column.append(to_numpy(sample[name], f"samples[{index}][{name!r}]"))
        first, array = column[0], column[-1]
        if array.ndim != first.ndim or array.dtype != first.dtype:
            raise ValueError(
                f"samples[{index}][{name!r}] is {array.dtype}{list(array.shape)}, and that of sample 0 is "
                f"{first.dtype}{list(first.shape)}: give arrays of one rank and dtype"
            )
    return column


def _shape(column: Sequence[Array], name: str, given: int | Sequence[int]) -> tuple[int, ...]:
    """Returns the shape that all of them fit into."""
    wanted = (given,) if isinstance(given, int) else tuple(given)
    largest = [max(array.shape[axis] for array in column) for axis in range(column[0].ndim)]
    if len(wanted) > len(largest):
        raise ValueError(f"sizes[{name!r}]={given!r} has more axes than the arrays, which have {len(largest)}")
    for index, array in enumerate(column):
        if any(size < length for size, length in zip(wanted, array.shape, strict=False)):
            raise ValueError(f"samples[{index}][{name!r}] has shape {list(array.shape)}, and sizes[{name!r}]={given!r}")
    return (*wanted, *largest[len(wanted) :])
