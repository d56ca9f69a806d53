"""The IDX file format, and MNIST, which is distributed in it.

An IDX file is two zero bytes, a type code, the rank, the length of each axis as a big-endian 32-bit integer, and then
the values in big-endian row-major order. Source: Y. LeCun, C. Cortes and C. Burges, "The MNIST database of handwritten
digits", http://yann.lecun.com/exdb/mnist, section "File formats".
"""

import gzip
import math
import os
import struct
import zlib
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Split: TypeAlias = tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]

_GZIP_MAGIC = b"\x1f\x8b"
_DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_CODES = ", ".join(f"0x{code:02X} {np.dtype(dtype).name}" for code, dtype in _DTYPES.items())


def read_idx(path: str | os.PathLike[str]) -> npt.NDArray[Any]:
    """Reads an array from an IDX file, plain or compressed with gzip.

    Compression is told by the content, not by the name.

    Args:
      path: the file.

    Returns:
      The array in native byte order, of the file's shape and dtype: uint8, int8, int16, int32, float32 or float64.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if the file is not exactly one whole IDX array; the message names the file.

    Source: http://yann.lecun.com/exdb/mnist, section "File formats".

    >>> import pathlib, tempfile
    >>> from modulekit.data import read_idx
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     path = pathlib.Path(directory) / "labels-idx1-ubyte"
    ...     size = path.write_bytes(bytes([0, 0, 0x08, 1] + [0, 0, 0, 3] + [5, 0, 4]))
    ...     read_idx(path)
    array([5, 0, 4], dtype=uint8)
    """
    path = Path(path)
    content = _read_content(path)
    dtype, shape = _parse_header(path, content)
    offset = 4 + 4 * len(shape)
    expected, found = math.prod(shape) * dtype.itemsize, len(content) - offset
    if found != expected:
        fault = "the file is truncated; get it again" if found < expected else "remove the trailing bytes"
        raise ValueError(
            f"{path}: expected {expected} bytes of values for shape {shape} and dtype {dtype.name}, found {found}; "
            f"{fault}"
        )
    try:
        values = np.frombuffer(content, dtype, offset=offset).reshape(shape)
    except ValueError as error:
        raise ValueError(f"{path}: expected a shape that NumPy can hold, found {shape}: {error}") from error
    return values.astype(dtype.newbyteorder("="))


def mnist(directory: str | os.PathLike[str]) -> tuple[Split, Split]:
    """Reads MNIST, or a data set of the same form such as Fashion-MNIST, from its four IDX files.

    The files are `train-images-idx3-ubyte`, `train-labels-idx1-ubyte`, `t10k-images-idx3-ubyte` and
    `t10k-labels-idx1-ubyte`, with or without `.gz`; names such as `train-images.idx3-ubyte` are found as well.

    Args:
      directory: where the files are. Nothing is downloaded.

    Returns:
      `((train_images, train_labels), (test_images, test_labels))`: float32 images in [0, 1] (gray levels divided by
      255) of shape `[n, height, width, 1]` and int32 labels in 0 .. 9 of shape `[n]`.

    Raises:
      FileNotFoundError: if one of the files is missing.
      ValueError: if a file is damaged, or does not hold what its name says.

    Source: Y. LeCun, C. Cortes and C. Burges, http://yann.lecun.com/exdb/mnist.

    >>> import pathlib, tempfile
    >>> from modulekit.data import mnist
    >>> images = bytes([0, 0, 8, 3] + [0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 2] + [0, 51, 102, 255])
    >>> labels = bytes([0, 0, 8, 1] + [0, 0, 0, 1] + [7])
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     for part in ("train", "t10k"):
    ...         _ = (pathlib.Path(directory) / f"{part}-images-idx3-ubyte").write_bytes(images)
    ...         _ = (pathlib.Path(directory) / f"{part}-labels-idx1-ubyte").write_bytes(labels)
    ...     (train_images, train_labels), (test_images, test_labels) = mnist(directory)
    >>> train_images.shape, train_images.ravel().tolist()[-1], test_labels
    ((1, 2, 2, 1), 1.0, array([7], dtype=int32))
    """
    directory = Path(directory)
    train_images, train_labels = _find(directory, "train-images", 3), _find(directory, "train-labels", 1)
    test_images, test_labels = _find(directory, "t10k-images", 3), _find(directory, "t10k-labels", 1)
    train, test = _read_split(train_images, train_labels), _read_split(test_images, test_labels)
    if train[0].shape[1:] != test[0].shape[1:]:
        raise ValueError(
            f"{test_images}: expected images of height and width {train[0].shape[1:3]} as in {train_images.name}, "
            f"found {test[0].shape[1:3]}; use files of the same data set"
        )
    return train, test


def _read_content(path: Path) -> bytes:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected an IDX file, but there is no such file; check the path")
    content = path.read_bytes()
    if not content.startswith(_GZIP_MAGIC):
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: expected a whole gzip file, but it is corrupt ({error}); get it again") from error


def _parse_header(path: Path, content: bytes) -> tuple[np.dtype[Any], tuple[int, ...]]:
    if len(content) < 4:
        raise ValueError(f"{path}: expected an IDX header of 4 bytes or more, found {len(content)}; get the file again")
    if content[:2] != b"\x00\x00":
        raise ValueError(
            f"{path}: expected an IDX file, which begins with two zero bytes, found 0x{content[:4].hex()}; "
            f"check that this is the file you mean"
        )
    code, rank = content[2], content[3]
    if code not in _DTYPES:
        raise ValueError(f"{path}: expected an IDX type code ({_CODES}), found 0x{code:02X}; write it with one of them")
    if len(content) < 4 + 4 * rank:
        raise ValueError(
            f"{path}: expected an IDX header of {4 + 4 * rank} bytes for rank {rank}, found {len(content)}; "
            f"get the file again"
        )
    return np.dtype(_DTYPES[code]), struct.unpack_from(f">{rank}I", content, 4)


def _find(directory: Path, stem: str, rank: int) -> Path:
    names = [f"{stem}{mark}idx{rank}-ubyte{suffix}" for mark in "-." for suffix in ("", ".gz")]
    for name in names:
        if (directory / name).is_file():
            return directory / name
    state = "it has none of them" if directory.is_dir() else "there is no such directory"
    raise FileNotFoundError(
        f"{directory}: expected one of the files {', '.join(names)}, but {state}; check the directory"
    )


def _read_split(images_path: Path, labels_path: Path) -> Split:
    images = _read_bytes_of_rank(images_path, "images [n, height, width]", 3)
    labels = _read_bytes_of_rank(labels_path, "labels [n]", 1)
    if len(images) != len(labels):
        raise ValueError(
            f"{labels_path}: expected {len(images)} labels, one for each image of {images_path.name}, "
            f"found {len(labels)}; use files of the same data set"
        )
    outside = np.flatnonzero(labels > 9)
    if outside.size:
        position = outside[0]
        raise ValueError(
            f"{labels_path}: expected labels in 0 .. 9, found {labels[position]} at position {position}; "
            f"for other classes, use read_idx"
        )
    return np.divide(images, 255, dtype=np.float32)[..., np.newaxis], labels.astype(np.int32)


def _read_bytes_of_rank(path: Path, content: str, rank: int) -> npt.NDArray[np.uint8]:
    array = read_idx(path)
    if array.ndim != rank or array.dtype != np.uint8:
        raise ValueError(
            f"{path}: expected uint8 {content}, found {array.dtype.name} of shape {array.shape}; "
            f"check that the file has its right name"
        )
    return array
