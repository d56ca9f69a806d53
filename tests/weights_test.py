"""Laws of files of weights: what is written is read bit for bit, by others too, each variable once, or nothing is."""

import json
import struct
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

import modulekit as mk
from modulekit.core.safetensors_layout import DTYPES
from modulekit.errors import CheckpointError


def holding(**values: Any) -> Any:
    """Returns a module that holds variables of these values."""
    module = mk.Module()
    for name, value in values.items():
        setattr(module, name, mk.Variable(value, name=name))
    return module


def bits(module: Any) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    arrays = {path: np.asarray(variable.current()) for path, variable in module.paths().items()}
    return {path: (str(array.dtype), array.shape, array.tobytes()) for path, array in arrays.items()}


def raw(path: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Returns the header of a file and the bytes of each array, read as the format's description says."""
    content = path.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header, values = json.loads(content[8 : 8 + size]), content[8 + size :]
    entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
    return header, {name: values[slice(*entry["data_offsets"])] for name, entry in entries.items()}


def network() -> Any:
    model = mk.nets.MLP([4, 3])
    mk.build(model, [2, 5])
    return model


def refused(error: type[Exception], call: Any) -> str:
    with pytest.raises(error) as raised:
        call()
    return str(raised.value)


# There and back.


def test_a_model_and_its_optimizer_come_back_bit_for_bit(tmp_path: Path) -> None:
    def trained(seed: int) -> tuple[Any, Any]:
        mk.seed(seed)
        model, optimizer = mk.nets.MLP([4, 3]), mk.optimizers.Adam(0.1)
        optimizer.minimize(lambda: model(jnp.full([2, 5], seed + 1.0)).sum(), model)
        return model, optimizer

    model, optimizer = trained(1)
    mk.weights.save(tmp_path / "run.safetensors", {"model": model, "optimizer": optimizer})
    other_model, other_optimizer = trained(2)
    assert bits(other_model) != bits(model) and bits(other_optimizer) != bits(optimizer)
    plan = mk.weights.load(tmp_path / "run.safetensors", {"model": other_model, "optimizer": other_optimizer})
    assert bits(other_model) == bits(model) and bits(other_optimizer) == bits(optimizer)
    assert not plan.unexpected and len(plan.matched) == len(bits(model)) + len(bits(optimizer))


@pytest.mark.parametrize("shape", [(), (0, 3), (2, 3)], ids=str)
def test_every_dtype_of_the_format_comes_back(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with jax.enable_x64(True):
        for name, dtype in DTYPES.items():
            array = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
            module, other = holding(x=jnp.asarray(array)), holding(x=jnp.ones(shape, dtype))
            assert module.x.dtype == dtype
            mk.weights.save(tmp_path / "x.safetensors", module)
            header, values = raw(tmp_path / "x.safetensors")
            assert header["x"]["dtype"] == name and header["x"]["shape"] == list(shape)
            assert values["x"] == array.tobytes()
            mk.weights.load(tmp_path / "x.safetensors", other)
            assert bits(other) == bits(module), name


keys = st.one_of(st.text(max_size=5), st.integers(-3, 30))
trees = st.recursive(
    st.integers(0, 99),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(keys, inner, max_size=3)),
    max_leaves=6,
)


@hypothesis.given(tree=trees)
@hypothesis.settings(max_examples=30, deadline=None, derandomize=True)
def test_variables_in_any_containers_come_back(tree: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    def variables(part: Any, change: int) -> Any:
        if isinstance(part, int):
            return mk.Variable(part + change)
        if isinstance(part, list):
            return [variables(inner, change) for inner in part]
        return {key: variables(inner, change) for key, inner in part.items()}

    def made(change: int) -> Any:
        module = mk.Module()
        module.first, module.tree = mk.Variable(change), variables(tree, change)
        return module

    path = tmp_path_factory.mktemp("tree") / "x.safetensors"
    module, other = made(0), made(1)
    mk.weights.save(path, module)
    mk.weights.load(path, other)
    assert bits(other) == bits(module)


def test_what_getters_and_half_precision_would_show_is_not_what_is_saved(tmp_path: Path) -> None:
    model = network()
    with mk.custom_variable_getter(lambda variable: variable.value * 0):
        mk.weights.save(tmp_path / "x.safetensors", model)
    np.testing.assert_array_equal(mk.weights.read(tmp_path / "x.safetensors")["layers[0].w"], model.layers[0].w.numpy())


def test_a_random_stream_is_stored_as_its_key_data_and_goes_on(tmp_path: Path) -> None:
    stream, other = mk.RandomStream(3), mk.RandomStream(4)
    stream.next_key(), other.next_key()
    mk.weights.save(tmp_path / "x.safetensors", stream)
    assert {name: entry["dtype"] for name, entry in raw(tmp_path / "x.safetensors")[0].items() if name[0] != "_"} == {
        "counter": "U32", "key": "U32",
    }  # fmt: skip
    mk.weights.load(tmp_path / "x.safetensors", other)
    np.testing.assert_array_equal(*(jax.random.key_data(one.next_key()) for one in (stream, other)))


# Other readers.


def test_the_formats_own_reader_reads_what_is_written(tmp_path: Path) -> None:
    module = holding(w=jnp.arange(6.0).reshape(2, 3), half=jnp.ones([2], jnp.bfloat16), n=7, empty=jnp.zeros([0, 2]))
    mk.weights.save(tmp_path / "x.safetensors", module, {"step": "1000"})
    read = safetensors.numpy.load_file(tmp_path / "x.safetensors")
    assert {name: (array.dtype, array.tolist()) for name, array in read.items()} == {
        "w": (np.float32, [[0, 1, 2], [3, 4, 5]]), "half": (ml_dtypes.bfloat16, [1, 1]), "n": (np.int32, 7),
        "empty": (np.float32, []),
    }  # fmt: skip


def test_what_other_programs_write_is_read(tmp_path: Path) -> None:
    arrays = {"encoder.0.weight": np.ones([2, 3], np.float32), "encoder.0.bias": np.zeros([3], np.float16)}
    safetensors.numpy.save_file(arrays, tmp_path / "x.safetensors", {"format": "pt"})
    read = mk.weights.read(tmp_path / "x.safetensors")
    assert {name: array.numpy().tolist() for name, array in read.items()} == {
        name: array.tolist() for name, array in arrays.items()
    }
    assert read.metadata == {"format": "pt"} and read.ties == ()
    assert np.asarray(read["encoder.0.weight"], np.float64).dtype == np.float64
    assert "has no array 'encoder': print it to see what it has" in refused(KeyError, lambda: read["encoder"])


def test_transposed_values_are_written_in_their_order(tmp_path: Path) -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3).T
    mk.weights.save(tmp_path / "x.safetensors", holding(w=jnp.asarray(array)))
    np.testing.assert_array_equal(safetensors.numpy.load_file(tmp_path / "x.safetensors")["w"], array)


def test_a_file_prints_what_it_holds(tmp_path: Path) -> None:
    layer = mk.Linear(3)
    mk.build(layer, [2, 5])
    pair = mk.Sequential([layer, layer])
    mk.weights.save(tmp_path / "x.safetensors", pair, {"step": "3"})
    read = mk.weights.read(tmp_path / "x.safetensors")
    assert (
        str(read)
        == f"""\
WeightsFile('{tmp_path}/x.safetensors', 2 arrays)
| Name        | Spec     | Ties          |
|-------------+----------+---------------|
| layers[0].b | f32[3]   | = layers[1].b |
| layers[0].w | f32[5,3] | = layers[1].w |"""
    )
    assert read.metadata == {"step": "3"}
    assert repr(read["layers[0].w"]) == "SavedArray('layers[0].w', f32[5,3])"


# Ties.


def test_a_tied_variable_is_stored_once_with_all_its_paths(tmp_path: Path) -> None:
    encode = mk.Linear(3)
    pair = mk.Sequential([encode, encode.transpose()])
    pair(jnp.ones([2, 5]))
    mk.weights.save(tmp_path / "x.safetensors", pair)
    header, values = raw(tmp_path / "x.safetensors")
    assert set(values) == {"layers[0].b", "layers[0].w", "layers[1].b"}
    assert json.loads(header["__metadata__"]["modulekit"]) == {"ties": [["layers[0].w", "layers[1].w"]]}
    assert mk.weights.read(tmp_path / "x.safetensors").ties == (("layers[0].w", "layers[1].w"),)


# What is refused.


def test_a_dtype_that_the_format_does_not_know_is_refused(tmp_path: Path) -> None:
    message = refused(ValueError, lambda: mk.weights.save(tmp_path / "x", holding(small=jnp.ones([2], jnp.int4))))
    assert message.startswith("small is int4, which a safetensors file cannot hold: it knows bool, int8,")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("metadata", "error", "message"),
    [
        (
            {"step": 3},
            TypeError,
            "metadata 'step': 3 is not a text under a text, and a safetensors file holds nothing else",
        ),
        ({"modulekit": "x"}, ValueError, "metadata 'modulekit' is where the ties are kept: choose another key"),
    ],
)
def test_metadata_that_cannot_be_kept_are_refused(tmp_path: Path, metadata: Any, error: Any, message: str) -> None:
    assert refused(error, lambda: mk.weights.save(tmp_path / "x", network(), metadata)).startswith(message)


def test_names_that_cannot_be_kept_are_refused(tmp_path: Path) -> None:
    variable, inner = mk.Variable(1.0, name="one"), holding(b=2.0)
    save = lambda parts: lambda: mk.weights.save(tmp_path / "x", parts)  # noqa: E731
    assert refused(ValueError, save({"__metadata__": variable})) == (
        "a safetensors file keeps the name '__metadata__' for itself: rename that part"
    )
    assert refused(ValueError, save({"a.b": variable, "a": inner})) == (
        "two variables have the path 'a.b', 'one' and 'b': rename a part"
    )
    assert refused(TypeError, save({"a": 3})) == "part 'a' is 3: the parts are modules and variables"
    assert refused(TypeError, save(3)).startswith("3 is no module: give a module, or the parts by name")
    assert "has no variables yet" in refused(ValueError, save(mk.Linear(3)))


def test_a_file_that_is_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    mk.weights.save(tmp_path / "x", network())
    content = (tmp_path / "x").read_bytes()
    for length in [*range(0, len(content), 7), len(content) - 1]:
        (tmp_path / "cut").write_bytes(content[:length])
        message = refused(CheckpointError, lambda: mk.weights.read(tmp_path / "cut"))
        text = f"{tmp_path}/cut is no safetensors file, or it is cut off or damaged ({length} bytes): "
        assert message.startswith(text), message


def test_other_files_are_refused(tmp_path: Path) -> None:
    for content in (b"this is a text and nothing else", bytes(100), b"PK\3\4" + bytes(60)):
        (tmp_path / "x").write_bytes(content)
        assert "is no safetensors file" in refused(CheckpointError, lambda: mk.weights.read(tmp_path / "x"))
    with pytest.raises(FileNotFoundError):
        mk.weights.read(tmp_path / "nowhere")
    header = json.dumps({"a": {"dtype": "F6_E2M3", "shape": [4], "data_offsets": [0, 3]}}).encode()
    (tmp_path / "x").write_bytes(struct.pack("<Q", len(header)) + header + bytes(3))
    assert "array 'a' is F6_E2M3, of which JAX has no arrays; it reads BOOL, I8," in refused(
        CheckpointError, lambda: mk.weights.read(tmp_path / "x")
    )
    safetensors.numpy.save_file({"a": np.ones(1)}, tmp_path / "x", {"modulekit": "[3"})
    message = refused(CheckpointError, lambda: mk.weights.read(tmp_path / "x"))
    assert message == f"{tmp_path}/x: its record of ties cannot be read: '[3'"


def test_a_file_that_changes_after_it_was_opened_is_not_read(tmp_path: Path) -> None:
    model, other = network(), network()
    mk.weights.save(tmp_path / "x", model)
    plan, before = mk.weights.plan(tmp_path / "x", other), bits(other)
    mk.weights.save(tmp_path / "x", {"first": model, "second": model})
    message = refused(CheckpointError, plan.apply)
    assert message == f"{tmp_path}/x has changed since it was opened: read it again. Nothing has changed"
    assert bits(other) == before


# Writing is all or nothing.


def test_a_writer_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mk.weights.save(tmp_path / "deep" / "x", network())
    before = (tmp_path / "deep" / "x").read_bytes()

    def failing(arrays: Any, path: Path, metadata: Any) -> None:
        path.write_bytes(before[:20])
        raise OSError("no space left on device")

    monkeypatch.setattr(safetensors.numpy, "save_file", failing)
    assert (
        refused(OSError, lambda: mk.weights.save(tmp_path / "deep" / "x", holding(a=1.0))) == "no space left on device"
    )
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["x"]
    assert (tmp_path / "deep" / "x").read_bytes() == before


def test_a_file_may_be_read_by_whom_any_new_file_may_be_read(tmp_path: Path) -> None:
    mk.weights.save(tmp_path / "weights.safetensors", holding(w=jnp.zeros([2])))
    (tmp_path / "ordinary").touch()
    assert (tmp_path / "weights.safetensors").stat().st_mode == (tmp_path / "ordinary").stat().st_mode
