"""Laws of the store of training states: what is saved comes back, bit by bit, and nothing is overwritten."""

import contextlib
import json
import math
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from modulekit.checkpoints import CheckpointStore, write_json
from modulekit.errors import CheckpointError

DTYPES = [
    np.dtype(kind)
    for kind in (
        np.float32, ml_dtypes.bfloat16, np.float16, np.int8, np.uint32, np.bool_, np.complex64, np.float64, np.int64,
        ml_dtypes.float8_e4m3fn, np.complex128, ml_dtypes.int4, ml_dtypes.float8_e4m3b11fnuz,
    )
]  # fmt: skip
NAMES = [
    "w",
    "model.layers[0].w",
    "table['a/b'].x",
    "a/b",
    "..",
    "0",
    "",
    " ",
    "größe",
    "重み",
    "w\n",
    '"quoted"',
    "%s{}",
]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[CheckpointStore]:
    opened = CheckpointStore(tmp_path / "states", keep=2)
    yield opened
    opened.close()


def values(dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Returns distinct values of a dtype."""
    return (np.arange(math.prod(shape)).reshape(shape) % 5 - (0 if dtype.kind in "ub" else 2)).astype(dtype)


def assert_same(actual: dict[str, Any], expected: dict[str, Any]) -> None:
    assert list(actual) == list(expected)
    for name, array in expected.items():
        assert actual[name].dtype == array.dtype, name
        assert actual[name].shape == np.shape(array), name
        assert actual[name].tobytes() == np.asarray(array).tobytes(), name


def test_all_dtypes_shapes_and_names_come_back(store: CheckpointStore) -> None:
    arrays = {
        f"{dtype.name}{list(shape)}": values(dtype, shape)
        for dtype in DTYPES
        for shape in [(), (3,), (2, 1, 4), (0,), (2, 0, 3)]
    }
    arrays |= {name: values(np.dtype(np.float32), (2,)) + index for index, name in enumerate(NAMES)}
    store.save(1, arrays, {})
    assert_same(store.restore(1)[0], arrays)


def test_jax_arrays_come_back(store: CheckpointStore) -> None:
    arrays = {
        "float": jnp.arange(3.0),
        "half": jnp.ones([2, 2], jnp.bfloat16),
        "scalar": jnp.uint32(7),
        "none": jnp.ones([0]),
    }
    store.save(1, arrays, {})
    assert_same(store.restore(1)[0], arrays)


def test_the_arrays_of_a_state_are_read_by_another_reader(store: CheckpointStore) -> None:
    arrays = {"model.layers[0].w": values(np.dtype(np.float32), (2, 3)), "step": np.uint32(7)}
    store.save(5, arrays, {})
    assert_same(
        dict(sorted(safetensors.numpy.load_file(store.directory / "5/arrays/arrays.safetensors").items())), arrays
    )


def test_damage_is_noticed_and_named(store: CheckpointStore) -> None:
    store.save(5, {"a": np.ones(3), "b": np.zeros(3)}, {})
    file = store.directory / "5/arrays/arrays.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + b"!")
    with pytest.raises(
        CheckpointError,
        match=r"^the state of step 5 in .*states is damaged: the bytes of 'b' are not those that were written\. "
        r"Delete the folder 5 there to go on from an earlier state$",
    ):
        store.restore(5)
    file.write_bytes(whole[:-1])
    with pytest.raises(CheckpointError, match=r"arrays\.safetensors is damaged: .*Delete that state to go on from an"):
        store.restore(5)
    file.write_bytes(whole)
    assert store.restore(5)[0]["b"].tolist() == [0.0, 0.0, 0.0]


def test_a_state_that_lost_its_arrays_is_none(tmp_path: Path) -> None:
    for step in (1, 2):
        with contextlib.closing(CheckpointStore(tmp_path)) as store:
            store.save(step, {"w": np.ones(3)}, {})
    (tmp_path / "2/arrays/arrays.safetensors").unlink()
    with contextlib.closing(CheckpointStore(tmp_path)) as store:
        assert store.latest() == 1


def test_the_name_that_the_format_keeps_is_refused(store: CheckpointStore) -> None:
    with pytest.raises(ValueError, match=r"^an array cannot be named '__metadata__', which safetensors files keep for"):
        store.save(1, {"__metadata__": np.ones(3)}, {})


def test_values_that_are_not_finite_come_back(store: CheckpointStore) -> None:
    arrays = {"odd": np.array([np.nan, np.inf, -np.inf, -0.0, 1e-45], np.float32)}
    store.save(1, arrays, {})
    assert_same(store.restore(1)[0], arrays)


@pytest.mark.parametrize("arrays", [{}, {"none": np.zeros([0, 3], np.float32)}])
def test_a_state_of_no_numbers_comes_back(arrays: dict[str, Any], store: CheckpointStore) -> None:
    store.save(0, arrays, {"history": []})
    restored, record = store.restore(0)
    assert_same(restored, arrays)
    assert record == {"history": []}


def test_the_record_comes_back(store: CheckpointStore) -> None:
    record = {"a": [1, 2.5, None, True, "größe"], "b": {"c": {}}, "": 1e-300, "third": 1 / 3}
    store.save(1, {"w": np.ones(1)}, record)
    assert store.restore(1)[1] == record


scalars = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(max_size=5)
records = st.dictionaries(st.text(max_size=5), scalars | st.lists(scalars, max_size=3), max_size=3)
shapes = st.lists(st.integers(0, 3), max_size=3).map(tuple)


@st.composite
def any_arrays(draw: st.DrawFn) -> dict[str, np.ndarray[Any, Any]]:
    """Named arrays of arbitrary bits, NaNs of any payload among them."""
    found = {}
    for name in draw(st.lists(st.text(max_size=8), max_size=4, unique=True)):
        dtype, shape = draw(st.sampled_from([d for d in DTYPES if d.kind != "b"])), draw(shapes)
        size = math.prod(shape) * dtype.itemsize
        found[name] = np.frombuffer(draw(st.binary(min_size=size, max_size=size)), dtype).reshape(shape)
    return found


@settings(deadline=None, max_examples=25)
@given(arrays=any_arrays(), record=records, step=st.integers(0, 2**40))
def test_anything_that_is_saved_comes_back_from_a_store_opened_anew(arrays: Any, record: Any, step: int) -> None:
    folder = Path(tempfile.mkdtemp())
    try:
        first = CheckpointStore(folder)
        first.save(step, arrays, record)
        first.close()
        second = CheckpointStore(folder)
        assert second.latest() == step
        restored, restored_record = second.restore(step)
        second.close()
        assert_same(restored, arrays)
        assert restored_record == record
    finally:
        shutil.rmtree(folder)


def test_an_empty_store_has_no_latest_state(store: CheckpointStore) -> None:
    assert store.latest() is None


def test_the_newest_states_stay(store: CheckpointStore) -> None:
    for step in (3, 10, 200, 1000):
        store.save(step, {"w": np.full(2, step)}, {"step": step})
        assert store.latest() == step
    assert sorted(int(path.name) for path in store.directory.iterdir()) == [200, 1000]
    for step in (200, 1000):
        arrays, record = store.restore(step)
        assert arrays["w"].tolist() == [step, step]
        assert record == {"step": step}


def test_a_saved_state_is_not_overwritten(store: CheckpointStore) -> None:
    store.save(5, {"w": np.zeros(2)}, {"first": True})
    message = f"{store.directory} already holds a state of step 5, which is not overwritten"
    with pytest.raises(CheckpointError, match=f"^{re.escape(message)}$"):
        store.save(5, {"w": np.ones(2)}, {"first": False})
    arrays, record = store.restore(5)
    assert (arrays["w"].tolist(), record) == ([0.0, 0.0], {"first": True})


def test_an_older_state_is_refused(store: CheckpointStore) -> None:
    store.save(5, {"w": np.zeros(2)}, {})
    message = f"{store.directory} holds states up to step 5, and takes only later ones, not step 3"
    with pytest.raises(CheckpointError, match=f"^{re.escape(message)}$"):
        store.save(3, {"w": np.ones(2)}, {})


def test_a_missing_state_cannot_be_restored(store: CheckpointStore) -> None:
    store.save(5, {"w": np.zeros(2)}, {})
    message = f"{store.directory} holds no complete state of step 6: [5]"
    with pytest.raises(CheckpointError, match=f"^{re.escape(message)}$"):
        store.restore(6)


def test_a_state_that_was_not_finished_is_none(tmp_path: Path) -> None:
    first = CheckpointStore(tmp_path)
    first.save(5, {"w": np.zeros(2)}, {})
    first.close()
    for name in ("6.orbax-checkpoint-tmp", "7.orbax-checkpoint-tmp-12"):
        shutil.copytree(tmp_path / "5", tmp_path / name)
        (tmp_path / name / "_CHECKPOINT_METADATA").unlink()
    second = CheckpointStore(tmp_path)
    assert second.latest() == 5
    with pytest.raises(CheckpointError, match="holds no complete state of step 6"):
        second.restore(6)
    second.save(6, {"w": np.ones(2)}, {})
    assert second.restore(6)[0]["w"].tolist() == [1.0, 1.0]
    second.close()


def test_a_record_that_json_cannot_hold_leaves_no_state(store: CheckpointStore) -> None:
    store.save(1, {"w": np.zeros(2)}, {})
    with pytest.raises(TypeError, match="not JSON serializable"):
        store.save(2, {"w": np.zeros(2)}, {"bad": np.float32(1)})
    assert store.latest() == 1
    store.save(2, {"w": np.zeros(2)}, {"good": 1.0})
    assert store.restore(2)[1] == {"good": 1.0}


@pytest.mark.parametrize("keep", [0, -1])
def test_at_least_one_state_must_stay(keep: int, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"^keep={keep}: at least the newest state must stay$"):
        CheckpointStore(tmp_path, keep=keep)


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    message = f"cannot write to directory '{tmp_path / 'file' / 'states'}': Not a directory"
    with pytest.raises(OSError, match=f"^{re.escape(message)}$"):
        CheckpointStore(tmp_path / "file" / "states")


def test_opening_a_store_leaves_no_file_behind(store: CheckpointStore) -> None:
    assert list(store.directory.iterdir()) == []


def test_the_caller_may_change_an_array_after_it_was_saved(store: CheckpointStore) -> None:
    array = np.zeros(3)
    store.save(1, {"w": array}, {})
    array[:] = 1
    assert store.restore(1)[0]["w"].tolist() == [0.0, 0.0, 0.0]


def test_json_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    write_json(path, {"a": 1})
    write_json(path, {"b": [2, None]})
    assert json.loads(path.read_text()) == {"b": [2, None]}
    with pytest.raises(TypeError):
        write_json(path, {"c": object()})
    assert json.loads(path.read_text()) == {"b": [2, None]}
    assert [entry.name for entry in tmp_path.iterdir()] == ["settings.json"]
