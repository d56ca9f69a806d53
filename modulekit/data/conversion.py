"""Conversion of whatever holds numbers to the NumPy arrays that training takes.

Tensors of PyTorch and TensorFlow, arrays of JAX and NumPy and whatever speaks DLPack become NumPy arrays, in native
byte order and of the types that JAX has by default: float64 becomes float32, int64 int32, uint64 uint32 and complex128
complex64. No value is changed beyond rounding: one that the narrower type cannot hold is an error.
"""

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from modulekit.data.structure import map_leaves, shared_length

Array: TypeAlias = npt.NDArray[Any]

BATCH = "batch"  # the root of paths into a batch
_NUMERIC_KINDS = "biufc"


def converted_batch(batch: Any) -> Any:
    """Converts a structure of arrays that share their first axis, or raises what is wrong with it."""
    arrays = map_leaves(converted, batch, BATCH)
    shared_length(arrays, BATCH)
    return arrays


def converted(leaf: Any, path: str) -> Array:
    """Converts a leaf to an array with a first axis that counts examples, of at most 32 bits per real number."""
    array = to_numpy(leaf, path)
    if array.ndim == 0:
        raise ValueError(
            f"{path} must have a first axis that counts examples, got the scalar {array}; "
            f"for a list of numbers, pass np.array([...])"
        )
    return _narrowed(array, path)


def to_numpy(leaf: Any, path: str) -> Array:
    """Converts a leaf to an array of any rank; what holds neither numbers nor booleans is a `TypeError`."""
    try:
        array = np.asarray(_on_host(leaf))
    except (TypeError, ValueError, RuntimeError, BufferError) as error:
        raise TypeError(
            f"{path} cannot become a NumPy array: got {type(leaf).__name__}, and converting it says: {error}; "
            f"pass arrays of numbers"
        ) from error
    # The small number types of ml_dtypes (bfloat16, float8, int4) report kind "V" as records do, but are not np.void.
    extension_number = array.dtype.kind == "V" and array.dtype.type is not np.void
    if array.dtype.kind not in _NUMERIC_KINDS and not extension_number:
        raise TypeError(
            f"{path} must hold numbers or booleans, got {type(leaf).__name__} with dtype {array.dtype}; "
            f"encode it as numbers, or leave it out of the data"
        )
    return array


def _on_host(leaf: Any) -> Any:
    """Returns what `np.asarray` understands: of tensors, what their own methods give."""
    if isinstance(leaf, np.ndarray | np.generic):
        return leaf
    if hasattr(leaf, "detach") and hasattr(leaf, "cpu"):
        leaf = leaf.detach().cpu()  # PyTorch: gradients and devices stay behind
    if callable(getattr(leaf, "numpy", None)):
        return leaf.numpy()
    if hasattr(leaf, "__dlpack__") and not hasattr(leaf, "__array__"):
        return np.from_dlpack(leaf)
    return leaf


def _narrowed(array: Array, path: str) -> Array:
    """Casts to native byte order and at most 32 bits per real number, and refuses to lose a value's magnitude."""
    kind, itemsize = array.dtype.kind, array.dtype.itemsize
    if kind in "iuf" and itemsize > 4:
        dtype = np.dtype(f"{kind}4")
    elif kind == "c" and itemsize > 8:
        dtype = np.dtype("c8")
    else:
        return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))
    with np.errstate(over="ignore"):
        narrow = array.astype(dtype)
    lost = narrow != array if kind in "iu" else np.isfinite(array) & ~np.isfinite(narrow)
    if lost.any():
        index = tuple(int(i) for i in np.argwhere(lost)[0])
        raise ValueError(
            f"{path} holds {array[index]} at index {index}, which does not fit {dtype.name}, the type that "
            f"{array.dtype.name} is narrowed to; rescale or renumber the values"
        )
    return narrow
