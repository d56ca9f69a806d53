"""Laws of arrays in parts: however several processes have divided one, any part of it can be read back, or is refused."""

import contextlib
import itertools
import math
import tempfile
import zlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modulekit.checkpoints import CheckpointStore
from modulekit.checkpoints.arrays import Block, StoredArray, blocks_of
from modulekit.core.safetensors_file import write
from modulekit.core.safetensors_reading import Tensors
from modulekit.errors import CheckpointError

Bounds = list[tuple[int, int]]


@st.composite
def divided(draw: st.DrawFn) -> tuple[tuple[int, ...], list[Bounds], Bounds]:
    """Draws a shape, its division by cuts along each axis, and a part to read."""
    shape = tuple(draw(st.lists(st.integers(1, 6), max_size=3)))
    cuts = [sorted({0, size, *draw(st.lists(st.integers(0, size), max_size=3))}) for size in shape]
    blocks = [list(bounds) for bounds in itertools.product(*(itertools.pairwise(along) for along in cuts))]
    part = [tuple(sorted(draw(st.tuples(st.integers(0, size), st.integers(0, size))))) for size in shape]
    return shape, blocks, part


def of(bounds: Bounds) -> tuple[slice, ...]:
    return tuple(slice(*pair) for pair in bounds)


def saved(array: np.ndarray[Any, Any], blocks: list[Bounds], folder: Path) -> StoredArray:
    """Writes blocks to two files, in turn."""
    listed, files = [], [{}, {}]
    for number, bounds in enumerate(blocks):
        values = np.array(array[of(bounds)], order="C")
        files[number % 2][f"a@{number}"] = values
        start = [low for low, _ in bounds]
        listed.append(
            Block(
                "a", str(number % 2), f"a@{number}", start, values.shape, zlib.crc32(values.reshape(-1).view(np.uint8))
            )
        )
    for name, content in enumerate(files):
        write(folder / str(name), content)
    opened = {str(name): Tensors(folder / str(name)) for name in range(2)}
    return StoredArray(array.shape, str(array.dtype), listed, opened, lambda: CheckpointError("damaged"))


@settings(deadline=None, max_examples=60)
@given(drawn=divided(), dtype=st.sampled_from([np.float32, np.uint8, np.complex64]))
def test_any_part_of_a_divided_array_is_read_back(drawn: Any, dtype: Any) -> None:
    shape, blocks, part = drawn
    array = np.arange(math.prod(shape)).reshape(shape).astype(dtype)
    with tempfile.TemporaryDirectory() as folder:
        found = saved(array, blocks, Path(folder))
        np.testing.assert_array_equal(found.whole(), array, strict=True)
        np.testing.assert_array_equal(found._within(of(part)), array[of(part)], strict=True)
        if array.size:
            lacking = saved(array, blocks[1:], Path(folder))
            with pytest.raises(CheckpointError, match="damaged"):
                lacking.whole()


def test_what_one_process_has_is_written_as_it_is() -> None:
    arrays = {"w": np.ones([2, 3], np.float32), "j": jax.numpy.zeros([4])}
    values, blocks = blocks_of(arrays, "f")
    assert [(b.array, b.file, b.key, list(b.start), list(b.shape)) for b in blocks] == [
        ("w", "f", "w", [0, 0], [2, 3]), ("j", "f", "j", [0], [4]),
    ]  # fmt: skip
    assert values["w"] is arrays["w"]
    assert blocks_of(arrays, "f", with_whole=False) == ({}, [])


def test_arrays_lie_as_those_of_their_shape_and_others_come_back_as_they_are(tmp_path: Path) -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    with contextlib.closing(CheckpointStore(tmp_path)) as store:
        store.save(1, {"a": array, "b": array, "c": array}, {})
        found, _ = store.restore(1, {"a": jax.numpy.zeros([2, 3]), "b": jax.numpy.zeros([2, 4])})
    assert isinstance(found["a"], jax.Array) and {type(found[name]) for name in "bc"} == {np.ndarray}
    for name in "abc":
        np.testing.assert_array_equal(found[name], array)
