"""Laws of the IDX reader, checked against a writer of the tests' own, and of the two data sets that come as files."""

import gzip
import hashlib
import os
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from modulekit.data import Arrays, digits, mnist, read_idx

# The type codes of the IDX specification, as letters of the module `struct`.
CODES = {"uint8": (0x08, "B"), "int8": (0x09, "b"), "int16": (0x0B, "h"), "int32": (0x0C, "i")}
CODES |= {"float32": (0x0D, "f"), "float64": (0x0E, "d")}

IMAGES = np.arange(5 * 3 * 2, dtype=np.uint8).reshape(5, 3, 2) * 8
LABELS = np.array([3, 0, 9, 9, 1], np.uint8)
FILES = {
    "train-images-idx3-ubyte": IMAGES,
    "train-labels-idx1-ubyte": LABELS,
    "t10k-images-idx3-ubyte": IMAGES[:2] + 1,
    "t10k-labels-idx1-ubyte": LABELS[:2],
}


def idx_bytes(array: np.ndarray) -> bytes:
    """The IDX form of an array, by the specification alone."""
    code, letter = CODES[array.dtype.name]
    header = bytes([0, 0, code, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + struct.pack(f">{array.size}{letter}", *array.ravel().tolist())


def write_mnist(directory: Path, rename: Callable[[str], str] = str, **replaced: np.ndarray) -> Path:
    """Writes the four files into a new directory; a keyword such as `train_labels` replaces an array."""
    directory.mkdir(exist_ok=True)
    for name, array in FILES.items():
        content = idx_bytes(replaced.get(name[: name.index("-idx")].replace("-", "_"), array))
        path = directory / rename(name)
        path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return directory


def real_mnist() -> list[Path]:
    """Directories with the real MNIST: the one that MNIST_DIR names, and one beside the repository if it is there."""
    named = [Path(os.environ["MNIST_DIR"])] if os.environ.get("MNIST_DIR") else []
    beside = Path(__file__).resolve().parents[2] / "shared" / "data" / "mnist"
    return named + [beside] * beside.is_dir()


def payload(directory: Path, name: str) -> tuple[tuple[int, ...], bytes]:
    """Shape and values of one of the four files, gzip-compressed or not, read without the library."""
    stem, _, form = name.partition("-idx")
    (path,) = directory.glob(f"{stem}?idx{form}*")
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    rank = content[3]
    return struct.unpack(f">{rank}I", content[4 : 4 + 4 * rank]), content[4 + 4 * rank :]


# The format.


@settings(deadline=None, max_examples=100)
@given(
    array=st.sampled_from(sorted(CODES)).flatmap(
        lambda dtype: st_numpy.arrays(dtype, st_numpy.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=4))
    ),
    compressed=st.booleans(),
    name=st.sampled_from(["array.idx", "array.gz", "array"]),
)
def test_reading_inverts_writing(
    array: np.ndarray, compressed: bool, name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Every dtype, every rank from 0, empty axes, compressed or not, whatever the name: what was written is read."""
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(gzip.compress(idx_bytes(array)) if compressed else idx_bytes(array))
    read = read_idx(path)
    assert read.dtype == array.dtype
    assert read.dtype.isnative
    assert read.shape == array.shape
    np.testing.assert_array_equal(read, array)


def test_a_literal_file(tmp_path: Path) -> None:
    """A file typed by hand: int16, shape (2, 2), the values 1, -2, 256, 0 in big-endian order; the path may be text."""
    (tmp_path / "a").write_bytes(bytes.fromhex("00000b02 00000002 00000002 0001 fffe 0100 0000"))
    array = read_idx(str(tmp_path / "a"))
    assert array.dtype == np.int16
    assert array.tolist() == [[1, -2], [256, 0]]


def test_what_was_read_can_be_changed(tmp_path: Path) -> None:
    """The array is the caller's own."""
    (tmp_path / "a").write_bytes(idx_bytes(LABELS))
    array = read_idx(tmp_path / "a")
    array[0] = 7
    assert array.tolist() == [7, 0, 9, 9, 1]


GOOD = idx_bytes(IMAGES)
PACKED = gzip.compress(GOOD, mtime=0)
CODE_LIST = "0x08 uint8, 0x09 int8, 0x0B int16, 0x0C int32, 0x0D float32, 0x0E float64"
VALUES = "expected 30 bytes of values for shape (5, 3, 2) and dtype uint8, found"
NOT_IDX = "expected an IDX file, which begins with two zero bytes, found"

DAMAGES = {
    "empty": (b"", "expected an IDX header of 4 bytes or more, found 0; get the file again"),
    "short": (b"\0\0\x08", "expected an IDX header of 4 bytes or more, found 3; get the file again"),
    "magic": (b"\x89PNG\r\n", f"{NOT_IDX} 0x89504e47; check that this is the file you mean"),
    "little-endian": (b"\x03\x08\0\0" + GOOD[4:], f"{NOT_IDX} 0x03080000; check that this is the file you mean"),
    "type code": (
        b"\0\0\x0a\x01\0\0\0\0",
        f"expected an IDX type code ({CODE_LIST}), found 0x0A; write it with one of them",
    ),
    "header": (GOOD[:10], "expected an IDX header of 16 bytes for rank 3, found 10; get the file again"),
    "no values": (GOOD[:16], f"{VALUES} 0; the file is truncated; get it again"),
    "truncated": (GOOD[:-1], f"{VALUES} 29; the file is truncated; get it again"),
    "trailing": (GOOD + b"\0\0", f"{VALUES} 32; remove the trailing bytes"),
    "truncated inside gzip": (gzip.compress(GOOD[:-4]), f"{VALUES} 26; the file is truncated; get it again"),
    "huge": (
        b"\0\0\x0e\x03" + b"\xff" * 12,
        f"expected {(2**32 - 1) ** 3 * 8} bytes of values for shape (4294967295, 4294967295, 4294967295) and dtype "
        "float64, found 0; the file is truncated; get it again",
    ),
}


@pytest.mark.parametrize(("content", "fault"), DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_file_is_refused(content: bytes, fault: str, tmp_path: Path) -> None:
    """The error names the file, what was expected, what came and what to do."""
    path = tmp_path / "some-idx"
    path.write_bytes(content)
    with pytest.raises(ValueError) as caught:
        read_idx(path)
    assert str(caught.value) == f"{path}: {fault}"


@pytest.mark.parametrize(
    "content",
    [PACKED[:2], PACKED[:-12], PACKED[:-1], PACKED[:20] + b"\xff\xff\xff\xff" + PACKED[24:], PACKED + b"more"],
    ids=["magic only", "truncated", "checksum cut", "flipped", "trailing"],
)
def test_a_corrupt_gzip_file_is_refused(content: bytes, tmp_path: Path) -> None:
    """Whatever gzip or zlib raise becomes one ValueError that names the file and quotes them."""
    path = tmp_path / "some-idx.gz"
    path.write_bytes(content)
    with pytest.raises(ValueError) as caught:
        read_idx(path)
    cause = caught.value.__cause__
    assert cause is not None
    assert str(caught.value) == f"{path}: expected a whole gzip file, but it is corrupt ({cause}); get it again"


def test_a_rank_that_numpy_cannot_hold_is_refused(tmp_path: Path) -> None:
    """The format allows 255 axes, NumPy 64 or fewer: the error names the file all the same."""
    path = tmp_path / "deep"
    path.write_bytes(bytes([0, 0, 8, 70]) + struct.pack(">70I", *[1] * 70) + b"\x05")
    with pytest.raises(ValueError) as caught:
        read_idx(path)
    shape = (1,) * 70
    assert str(caught.value) == f"{path}: expected a shape that NumPy can hold, found {shape}: {caught.value.__cause__}"


@pytest.mark.parametrize("name", ["absent", "."], ids=["absent", "directory"])
def test_an_absent_file_is_named(name: str, tmp_path: Path) -> None:
    """No file, or a directory in its place, is a FileNotFoundError."""
    path = tmp_path / name
    with pytest.raises(FileNotFoundError) as caught:
        read_idx(path)
    assert str(caught.value) == f"{path}: expected an IDX file, but there is no such file; check the path"


# MNIST.


@pytest.mark.parametrize("source", [None, *real_mnist()], ids=str)
def test_mnist_holds_what_the_files_hold(source: Path | None, tmp_path: Path) -> None:
    """Images times 255 and labels are the files' bytes, for self-written files and for the real ones where present."""
    directory = source or write_mnist(tmp_path / "mnist")
    for part, (images, labels) in zip(["train", "t10k"], mnist(directory), strict=True):
        shape, gray = payload(directory, f"{part}-images-idx3-ubyte")
        length, classes = payload(directory, f"{part}-labels-idx1-ubyte")
        assert (images.dtype, labels.dtype) == (np.float32, np.int32)
        assert (images.shape, labels.shape) == ((*shape, 1), length)
        assert 0 <= images.min() <= images.max() <= 1
        assert np.rint(images * 255).astype(np.uint8).tobytes() == gray
        assert labels.astype(np.uint8).tobytes() == classes


@pytest.mark.parametrize(
    "rename",
    [
        str,
        lambda name: name + ".gz",
        lambda name: name.replace("-idx", ".idx"),
        lambda name: name.replace("-idx", ".idx") + ".gz",
    ],
    ids=["plain", "gz", "dot", "dot gz"],
)
def test_mnist_finds_every_usual_name(rename: Callable[[str], str], tmp_path: Path) -> None:
    """The four spellings of the file names give the same data, from a path or a text; and the data make an Arrays."""
    train, test = mnist(str(write_mnist(tmp_path / "mnist", rename)))
    np.testing.assert_array_equal(train[0][..., 0], IMAGES / np.float32(255))
    assert train[1].tolist() == LABELS.tolist()
    assert test[1].tolist() == [3, 0]
    assert Arrays(train).size == 5


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_missing_file_of_mnist_is_named(name: str, tmp_path: Path) -> None:
    """The error names the directory and all spellings that were looked for."""
    directory = write_mnist(tmp_path / "mnist")
    (directory / name).unlink()
    dotted = name.replace("-idx", ".idx")
    with pytest.raises(FileNotFoundError) as caught:
        mnist(directory)
    assert str(caught.value) == (
        f"{directory}: expected one of the files {name}, {name}.gz, {dotted}, {dotted}.gz, "
        f"but it has none of them; check the directory"
    )


def test_a_missing_directory_of_mnist_is_named(tmp_path: Path) -> None:
    """A directory that does not exist is told from one that lacks a file."""
    with pytest.raises(FileNotFoundError) as caught:
        mnist(tmp_path / "nowhere")
    assert str(caught.value).startswith(f"{tmp_path / 'nowhere'}: expected one of the files train-images-idx3-ubyte, ")
    assert str(caught.value).endswith("but there is no such directory; check the directory")


RIGHT_NAME = "check that the file has its right name"
SAME_SET = "use files of the same data set"
OTHER_CLASSES = "for other classes, use read_idx"

MISLABELED = {
    "labels as images": (
        {"train_images": LABELS},
        f"train-images-idx3-ubyte: expected uint8 images [n, height, width], found uint8 of shape (5,); {RIGHT_NAME}",
    ),
    "images as labels": (
        {"t10k_labels": IMAGES},
        f"t10k-labels-idx1-ubyte: expected uint8 labels [n], found uint8 of shape (5, 3, 2); {RIGHT_NAME}",
    ),
    "type": (
        {"train_labels": LABELS.astype(np.int32)},
        f"train-labels-idx1-ubyte: expected uint8 labels [n], found int32 of shape (5,); {RIGHT_NAME}",
    ),
    "counts": (
        {"train_labels": LABELS[:4]},
        "train-labels-idx1-ubyte: expected 5 labels, one for each image of train-images-idx3-ubyte, found 4; "
        f"{SAME_SET}",
    ),
    "classes": (
        {"t10k_labels": np.array([9, 10], np.uint8)},
        f"t10k-labels-idx1-ubyte: expected labels in 0 .. 9, found 10 at position 1; {OTHER_CLASSES}",
    ),
    "sizes": (
        {"t10k_images": np.zeros([2, 4, 4], np.uint8)},
        "t10k-images-idx3-ubyte: expected images of height and width (3, 2) as in train-images-idx3-ubyte, "
        f"found (4, 4); {SAME_SET}",
    ),
}


@pytest.mark.parametrize(("replaced", "fault"), MISLABELED.values(), ids=MISLABELED.keys())
def test_mislabeled_files_of_mnist_are_refused(replaced: dict[str, Any], fault: str, tmp_path: Path) -> None:
    """A file that does not hold what its name says is named."""
    directory = write_mnist(tmp_path / "mnist", **replaced)
    with pytest.raises(ValueError) as caught:
        mnist(directory)
    assert str(caught.value) == f"{directory}{os.sep}{fault}"


# Digits.


def test_digits_have_the_form_of_mnist() -> None:
    """float32 images [n, 8, 8, 1] that reach from 0 to 1 in steps of 1/16, and int32 labels."""
    for (images, labels), size in zip(digits(), [1437, 360], strict=True):
        assert (images.shape, images.dtype) == ((size, 8, 8, 1), np.float32)
        assert (labels.shape, labels.dtype) == ((size,), np.int32)
        assert sorted(set((images * 16).ravel().tolist())) == list(range(17))
        assert set(labels.tolist()) == set(range(10))


def test_digits_split_is_a_partition_that_keeps_the_classes_in_proportion() -> None:
    """Training and test together are scikit-learn's examples, and each class gives a fifth of itself to the test."""
    from sklearn.datasets import load_digits

    (train_images, train_labels), (test_images, test_labels) = digits()
    source = load_digits()
    ours = np.concatenate([train_images, test_images]).reshape(-1, 64) * 16
    assert sorted(ours.tolist()) == sorted(source.data.tolist())
    labels = np.concatenate([train_labels, test_labels])
    assert np.bincount(labels).tolist() == np.bincount(source.target).tolist()
    assert np.all(np.abs(np.bincount(test_labels) - np.bincount(labels) / 5) < 1)


def test_digits_split_is_fixed() -> None:
    """Every call gives the same split, and results stay comparable: this checksum of the test part may never change."""
    _, (images, labels) = digits()
    content = (images * 16).astype(np.uint8).tobytes() + labels.astype(np.uint8).tobytes()
    assert hashlib.md5(content).hexdigest() == "844ea143f10a945d71e318d8209c193e"


def test_digits_without_scikit_learn_name_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing scikit-learn is an ImportError that names the extra and keeps the cause."""
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError) as caught:
        digits()
    cause = caught.value.__cause__
    assert isinstance(cause, ImportError)
    assert str(caught.value) == (
        f"digits() needs scikit-learn, which did not import ({cause}); "
        f'install it with: pip install "modulekit[examples]"'
    )
