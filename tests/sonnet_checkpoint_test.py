"""Laws of reading checkpoints: what the real TensorFlow wrote comes back, bit by bit, without TensorFlow."""

import lzma
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import modulekit as mk
from modulekit.errors import CheckpointError

ROOT = Path(__file__).parents[1]
RECORDED = ROOT / "tests" / "recorded"


def expected(name: str) -> dict[str, np.ndarray[Any, Any]]:
    with np.load(RECORDED / f"{name}.npz") as arrays:
        return dict(arrays)


def assert_same(actual: np.ndarray[Any, Any], wanted: np.ndarray[Any, Any]) -> None:
    assert actual.dtype == wanted.dtype and actual.shape == wanted.shape
    assert actual.tobytes() == wanted.tobytes()


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of a checkpoint in two shards, to be damaged."""
    for path in RECORDED.glob("shards.*"):
        shutil.copy(path, tmp_path)
    return tmp_path / "shards"


# What comes back.


@pytest.mark.parametrize("optimizer", ["adam", "momentum", "rms_prop"])
def test_a_model_and_its_optimizer_come_back_under_the_full_names_of_their_variables(optimizer: str) -> None:
    checkpoint = mk.sonnet.read_checkpoint(RECORDED / f"mlp_{optimizer}-1")
    values = {name: value for name, value in expected(f"mlp_{optimizer}").items() if "/" in name}
    for name, value in values.items():
        assert_same(checkpoint[name].numpy(), value)
    assert {tensor.name for tensor in checkpoint.values()} == {*values, "save_counter"}


KINDS = [
    "half", "double", "bytes", "short", "word", "int", "long", "unsigned", "flags", "complex", "scalar", "empty",
    "nonfinite",
]  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_each_dtype_and_shape_comes_back(name: str) -> None:
    tensor, wanted = mk.sonnet.read_checkpoint(RECORDED / "kinds")[name], expected("kinds")[name]
    assert (tensor.shape, tensor.dtype) == (wanted.shape, wanted.dtype)
    assert_same(tensor.numpy(), wanted)


def test_bfloat16_comes_back() -> None:
    values = mk.sonnet.read_checkpoint(RECORDED / "kinds")["brain"].numpy()
    assert values.dtype == ml_dtypes.bfloat16
    assert_same(values.astype(np.float32), expected("kinds")["brain_as_float"])


def test_strings_come_back_as_bytes() -> None:
    checkpoint = mk.sonnet.read_checkpoint(RECORDED / "kinds")
    assert checkpoint["text"].numpy().tolist() == [b"", "größe".encode(), b"\0" * 3, b"x" * 200]
    assert checkpoint["word.Swith..dots"].numpy().item() == b"alone"


def test_a_module_in_two_places_is_saved_once_and_its_names_are_not_unique() -> None:
    checkpoint = mk.sonnet.read_checkpoint(RECORDED / "kinds")
    assert [path for path in checkpoint if path.endswith("w")] == ["layers/0/w", "layers/1/w"]
    assert_same(checkpoint["layers/0/w"].numpy(), expected("kinds")["w"])
    with pytest.raises(
        KeyError, match=r"'linear/w' is the name of 2 variables: give one of the paths 'layers/0/w', 'la"
    ):
        checkpoint["linear/w"]
    assert [tensor.path for tensor in checkpoint.named("linear/w")] == ["layers/0/w", "layers/1/w"]


@pytest.mark.parametrize("name", ["shards", "slices"])
def test_tensors_come_back_from_several_shards_and_in_slices(name: str) -> None:
    assert len(list(RECORDED.glob(f"{name}.data-*"))) >= 2
    checkpoint = mk.sonnet.read_checkpoint(RECORDED / name)
    for index in range(6):
        assert_same(checkpoint[f"v{index}"].numpy(), np.arange(index + 20, dtype=np.float32))
    if name == "slices":
        assert_same(checkpoint["v6"].numpy(), np.arange(400, dtype=np.float32).reshape(20, 20))


def test_an_index_of_several_blocks_comes_back(tmp_path: Path) -> None:
    for path in RECORDED.glob("long_index.*.xz"):
        (tmp_path / path.stem).write_bytes(lzma.decompress(path.read_bytes()))
    assert (tmp_path / "long_index.index").stat().st_size > 262144  # a block of TensorFlow's
    checkpoint = mk.sonnet.read_checkpoint(tmp_path / "long_index")
    assert {int(path[:3]): float(tensor.numpy()) for path, tensor in checkpoint.items()} == {i: i for i in range(140)}


def test_a_checkpoint_is_a_mapping_that_shows_itself() -> None:
    checkpoint = mk.sonnet.read_checkpoint(RECORDED / "shards")
    assert len(checkpoint) == 6 and "v0" in checkpoint and "v9" not in checkpoint
    assert repr(checkpoint["v0"]) == "SavedTensor('v0', f32[20])"
    assert np.sum(checkpoint["v0"]) == 190
    text = f"""\
Checkpoint({str(RECORDED / "shards")!r}, 6 tensors)
| Path | Name     | Spec    |
|------+----------+---------|
| v0   | Variable | f32[20] |"""
    assert str(checkpoint).startswith(text)


def test_an_array_is_writable_and_nobody_elses() -> None:
    tensor = mk.sonnet.read_checkpoint(RECORDED / "shards")["v0"]
    first = tensor.numpy()
    first[:] = 7.0
    assert tensor.numpy()[0] == 0.0
    with pytest.raises(ValueError, match="is read from disk: that makes a new array"):
        np.array(tensor, copy=False)


def test_reading_needs_neither_tensorflow_nor_protobuf() -> None:
    code = f"""
import sys
sys.modules.update({{name: None for name in ("tensorflow", "sonnet", "google.protobuf", "pickle5")}})
import modulekit as mk
assert "modulekit.sonnet" not in sys.modules  # its import waits until it is asked for
print(mk.sonnet.read_checkpoint({str(RECORDED / "kinds")!r})["half"].numpy().tolist())
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "[1.5, -2.0, 65504.0]\n", done.stderr


# What is refused.


def test_a_missing_checkpoint_is_named_with_those_that_are_there() -> None:
    with pytest.raises(FileNotFoundError) as raised:
        mk.sonnet.read_checkpoint(RECORDED / "mlp")
    assert str(raised.value) == (
        f"there is no {RECORDED / 'mlp.index'}: give the path that TensorFlow's `save` or `write` returned, without "
        "`.index`. There are the checkpoints kinds, mlp_adam-1, mlp_momentum-1, mlp_rms_prop-1, recognizer, shards, slices "
        "beside it"
    )
    with pytest.raises(FileNotFoundError, match=r"is a directory, with the checkpoints kinds, mlp_adam-1, "):
        mk.sonnet.read_checkpoint(RECORDED)


def test_a_missing_shard_is_named(copy: Path) -> None:
    missing = copy.with_name("shards.data-00001-of-00002")
    missing.unlink()
    with pytest.raises(CheckpointError) as raised:
        mk.sonnet.read_checkpoint(copy)
    assert str(raised.value) == f"{missing} is missing, and with it '_CHECKPOINTABLE_OBJECT_GRAPH'"


def test_a_shard_that_is_cut_off_names_file_tensor_and_byte(copy: Path) -> None:
    shard = copy.with_name("shards.data-00000-of-00002")
    shard.write_bytes(shard.read_bytes()[:100])
    checkpoint = mk.sonnet.read_checkpoint(copy)
    assert checkpoint["v0"].numpy().size == 20
    message = (
        r"shards.data-00000-of-00002 is cut off: tensor 'v1/.*' has its 84 bytes at byte 80, and the file ends at 100"
    )
    with pytest.raises(CheckpointError, match=message):
        for tensor in checkpoint.values():
            tensor.numpy()


def test_a_flipped_byte_names_file_tensor_and_byte(copy: Path) -> None:
    shard = copy.with_name("shards.data-00000-of-00002")
    content = bytearray(shard.read_bytes())
    content[3] ^= 1
    shard.write_bytes(content)
    with pytest.raises(CheckpointError) as raised:
        mk.sonnet.read_checkpoint(copy)["v0"].numpy()
    assert str(raised.value) == (
        f"{shard} is damaged: the 80 bytes of tensor 'v0/.ATTRIBUTES/VARIABLE_VALUE' at byte 0 have another checksum than "
        "when they were written"
    )


def test_another_mark_at_the_end_of_the_index_is_refused(copy: Path) -> None:
    index = copy.with_name("shards.index")
    index.write_bytes(index.read_bytes()[:-1] + b"?")
    message = (
        f"{index} is no index of a TensorFlow checkpoint, or is cut off: its 555 bytes do not end with the mark of one"
    )
    with pytest.raises(CheckpointError, match=re.escape(message)):
        mk.sonnet.read_checkpoint(copy)


def test_a_flipped_byte_in_the_index_names_the_block(copy: Path) -> None:
    index = copy.with_name("shards.index")
    content = bytearray(index.read_bytes())
    content[20] ^= 255
    index.write_bytes(content)
    with pytest.raises(
        CheckpointError, match=r"shards.index is damaged: the block at byte 0, \d+ bytes long, has another"
    ):
        mk.sonnet.read_checkpoint(copy)


def test_slices_of_one_tensor_must_cover_it(tmp_path: Path) -> None:
    for path in RECORDED.glob("slices.*"):
        shutil.copy(path, tmp_path)
    (tmp_path / "slices.data-00002-of-00003").unlink()
    with pytest.raises(CheckpointError, match=r"slices\.data-00002-of-00003 is missing, and with it"):
        mk.sonnet.read_checkpoint(tmp_path / "slices")
