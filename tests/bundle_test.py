"""Laws of bundles: what runs without this library computes what the method computes, and what could not is refused."""

import functools
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from exported_modules import Counting, Recurrent, normal, tied, trained_convnet, transformer
from weights_test import bits, network, refused

import modulekit as mk
from modulekit.errors import CheckpointError

HERE = Path(__file__).parent
# What an environment with jax, numpy and flatbuffers has: these, and what jax itself requires.
PACKAGES = ("jax", "jaxlib", "numpy", "flatbuffers", "ml_dtypes", "opt_einsum", "scipy")


# Without this library.


def bare_environment(directory: Path) -> Path:
    """Makes a virtual environment that holds what `PACKAGES` lists, and returns its Python."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(directory)], check=True)
    (site,) = directory.glob("lib/python*/site-packages")
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.origin is not None
        package = Path(spec.origin).parent
        for part in (package, package.with_name(f"{name}.libs")):
            if part.is_dir():
                (site / part.name).symlink_to(part)
    return directory / "bin" / "python"


def test_bundles_run_in_an_environment_without_this_library_for_another_batch_size(tmp_path: Path) -> None:
    bundles = tmp_path / "bundles"
    rows: dict[str, tuple[Any, Any, dict[str, Any]]] = {
        "mlp": (network(), normal(2, 5), {}),
        "convnet": (trained_convnet(), normal(2, 8, 8, 2), {"is_training": False}),
        "lstm": (Recurrent(), normal(2, 4, 3), {}),
        "transformer": (transformer(), np.array([[0, 3, 1], [2, 3, 6]], np.int32), {}),
        "tied": (tied(), normal(2, 5), {}),
    }
    for name, (model, x, options) in rows.items():
        mk.build(model, x, **options)
        mk.export.save(bundles / name, model, x, **options)
        other = np.concatenate([x, x[::-1], x])[:5]
        outputs = jax.tree.leaves(mk.jit(model)(other, **options))
        arrays = {f"output_{i}": np.asarray(output) for i, output in enumerate(outputs)}
        np.savez(bundles / f"{name}.npz", input_0=other, **arrays)
    python = bare_environment(tmp_path / "bare")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [python, HERE / "subprocesses" / "run_bundles.py", bundles],
        cwd=tmp_path, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout)
    assert report["differences"].keys() == rows.keys()
    assert max(report["differences"].values()) <= 1e-6, report["differences"]
    assert not {"modulekit", "scenarios", "optax", "orbax", "safetensors", "jaxtyping"} & set(report["modules"])


# What a bundle is.


def test_a_bundle_says_what_it_takes_returns_and_holds(tmp_path: Path) -> None:
    mk.export.save(tmp_path / "x", tied().encode, [2, 5], squashed=True, platforms=["cpu", "tpu"])
    specification = json.loads((tmp_path / "x" / "specification.json").read_text())
    assert specification.pop("versions").keys() == {"modulekit", "jax", "jaxlib", "numpy"}
    assert specification.pop("calling_convention") > 0
    form = lambda *shape: {"shape": list(shape), "dtype": "float32"}  # noqa: E731
    assert specification == {
        "module": "Tied()", "method": "encode", "fixed": {"squashed": "True"}, "platforms": ["cpu", "tpu"],
        "inputs": [{"name": "x", **form("batch", 5)}],
        "outputs": [form("batch", 3), form("batch", 3), form("batch", 5)],
        "result": {"dict": {"code": 0, "parts": {"list": [1, {"tuple": [2, None]}]}}},
        "variables": [
            {"path": "decoder.w", "name": "tied/linear/w", **form(5, 3)},
            {"path": "encoder.b", "name": "tied/linear/b", **form(3)},
        ],
    }  # fmt: skip
    with np.load(tmp_path / "x" / "weights.npz") as weights:
        assert {name: array.shape for name, array in weights.items()} == {"decoder.w": (5, 3), "encoder.b": (3,)}
    text = (tmp_path / "x" / "program.stablehlo").read_text()
    assert "stablehlo.dot_general" in text and "stablehlo.tanh" in text


def test_a_bundle_names_no_directory_of_the_machine_that_made_it(tmp_path: Path) -> None:
    mk.export.save(tmp_path / "x", network(), [2, 5])
    for path in (tmp_path / "x").iterdir():
        content = path.read_bytes()
        assert str(HERE.parent).encode() not in content and b"site-packages" not in content


def test_the_file_in_a_bundle_is_short_and_imports_nothing_else(tmp_path: Path) -> None:
    mk.export.save(tmp_path / "x", network(), [2, 5])
    source = (tmp_path / "x" / "load.py").read_text()
    imported = {line.split()[1].split(".")[0] for line in source.splitlines() if line.startswith(("import", "from"))}
    assert imported == {"json", "pathlib", "collections", "typing", "jax", "numpy"}
    assert len(source.splitlines()) < 40


def test_weights_of_every_dtype_come_back(tmp_path: Path) -> None:
    class Sum(mk.Module):
        def __init__(self) -> None:
            super().__init__()
            kinds = (jnp.bfloat16, jnp.float16, jnp.float8_e4m3fn, jnp.int4, jnp.uint8, jnp.bool_, jnp.complex64)
            self.table = {f"a/{kind.dtype}": mk.Variable(jnp.ones([], kind)) for kind in kinds}

        def __call__(self, x: Any) -> Any:
            values = [variable.value for variable in self.table.values()]
            return [x + value.astype(jnp.complex64) for value in values], values

    model = Sum()
    mk.export.save(tmp_path / "x", model, [2])
    sums, values = mk.export.load(tmp_path / "x")(jnp.ones([3]))
    assert all((s == 2).all() and s.shape == (3,) for s in sums)
    assert [v.dtype for v in values] == [v.dtype for v in model.table.values()]


# Inputs and outputs.


def test_structures_keywords_and_fixed_arguments_come_through(tmp_path: Path) -> None:
    model = tied()
    mk.export.save(tmp_path / "a", model.encode, [2, 5], shift=jnp.ones([]))
    x = normal(7, 5)
    found, expected = mk.export.load(tmp_path / "a")(x, shift=np.float32(3)), model.encode(x, 3.0)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)
    mk.export.save(tmp_path / "b", model.pair, {"x": normal(2, 3), "y": normal(2, 3)})
    found = mk.export.load(tmp_path / "b")({"y": x[:, :3], "x": 2 * x[:, :3]})
    np.testing.assert_array_equal(found[0], 5 * x[:, :3])
    assert float(found[1]) == 14.0  # the batch size itself
    mk.export.save(tmp_path / "c", functools.partial(model.encode, squashed=True), [2, 5])
    found = mk.export.load(tmp_path / "c")(x)
    np.testing.assert_allclose(found["code"], model.encode(x, squashed=True)["code"], rtol=0, atol=1e-6)


def test_the_axis_of_the_batch_may_be_another_one_or_none(tmp_path: Path) -> None:
    model = tied()
    mk.export.save(tmp_path / "middle", model, [3, 2, 5], batch_axis=1)
    mk.export.save(tmp_path / "fixed", model, [2, 5], batch_axis=None)
    mk.export.save(tmp_path / "each", model.encode, [2, 5], shift=jnp.zeros([3]), batch_axis=(0, None))
    a, b = jax.export.symbolic_shape("a, b")
    mk.export.save(tmp_path / "own", model, jax.ShapeDtypeStruct((a, b, 5), jnp.float32), batch_axis=None)
    assert mk.export.load(tmp_path / "middle")(normal(3, 7, 5)).shape == (3, 7, 5)
    assert mk.export.load(tmp_path / "own")(normal(4, 6, 5)).shape == (4, 6, 5)
    assert mk.export.load(tmp_path / "each")(normal(4, 5), jnp.ones([3]))["code"].shape == (4, 3)
    fixed = mk.export.load(tmp_path / "fixed")
    assert fixed(normal(2, 5)).shape == (2, 5)
    with pytest.raises(ValueError, match=r"expected \(2, 5\) and called with \(7, 5\)"):
        fixed(normal(7, 5))


def test_inputs_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    mk.export.save(tmp_path / "x", tied(), [2, 5])
    program = mk.export.load(tmp_path / "x")
    assert refused(TypeError, lambda: program(normal(2, 5), 3)) == (
        "expected 1 arrays (x float32['batch', 5]), and got 2"
    )
    with pytest.raises(ValueError, match=r"expected \(batch, 5\) and called with \(2, 4\)"):
        program(normal(2, 4))
    with pytest.raises(ValueError, match="expected float32 and called with int32"):
        program(jnp.ones([2, 5], jnp.int32))


# What changes afterwards changes no bundle, and a bundle changes nothing.


def test_exporting_and_running_change_no_variable_and_training_changes_no_bundle(tmp_path: Path) -> None:
    model, x = tied(), normal(2, 5)
    before = bits(model)
    mk.export.save(tmp_path / "x", model, x)
    program = mk.export.load(tmp_path / "x")
    expected = program(x)
    assert bits(model) == before
    model.encoder.w.assign(model.encoder.w * 2)
    np.testing.assert_array_equal(program(x), expected)
    assert not np.array_equal(model(x), expected)


# What is refused.


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda path: mk.export.save(path, Counting(), [2], is_training=True),
            "__call__ of Counting() writes count, variable 'counting/count', and a program that is exported keeps no "
            "state: export it with is_training=False, or a method that returns the new value",
        ),
        (
            lambda path: mk.export.save(path, Counting().drawn, [2]),
            "drawn of Counting() draws random numbers, from RandomStream(name='random'), and a program that is "
            "exported would draw the same ones each time: export it with is_training=False, or a method that takes the "
            "key's data as an input",
        ),
        (
            lambda path: mk.export.save(path, Counting().strange, [2]),
            "strange of Counting() reads variable 'stranger', which is not in the module: hold it, or the module that has "
            "it, as an attribute",
        ),
        (
            lambda path: mk.export.save(path, mk.Linear(3), [2, 5]),
            "__call__ of Linear(output_size=3) has just made 2 variables, with their first values, so that there is nothing "
            "worth exporting: train it, or load weights (mk.weights.load), and export then",
        ),
        (
            lambda path: mk.export.save(path, tied().encode, [2, 5], shift=jnp.ones([3]), batch_axis=(0, None, 0)),
            "batch_axis=[0, None, 0] for 2 inputs, x, shift: give one axis, or one for each input, None where it has no "
            "batch",
        ),
        (
            lambda path: mk.export.save(path, tied().encode, [2, 5], shift=jnp.ones([3]), batch_axis=(0, 1)),
            "input shift has shape [3], and no axis 1 for the batch",
        ),
    ],
    ids=["writes", "draws", "strangers", "not built", "too many axes", "no such axis"],
)
def test_what_cannot_be_a_program_without_state_is_refused(tmp_path: Path, call: Any, message: str) -> None:
    assert re.sub(r"seed=\d+, ", "", refused(ValueError, lambda: call(tmp_path / "x"))) == message
    assert not list(tmp_path.iterdir())


def test_functions_and_random_keys_are_refused(tmp_path: Path) -> None:
    message = refused(TypeError, lambda: mk.export.save(tmp_path / "x", lambda x: x, [2]))
    assert message.endswith(
        "is no module and no method of one, whose variables would have paths: give model, model.method or "
        "functools.partial(model.method, ...)"
    )
    message = refused(TypeError, lambda: mk.export.save(tmp_path / "x", Counting().keyed, jax.random.key(0)))
    assert message == "input key holds random keys: let the method take jax.random.key_data(key)"


def test_a_program_that_needs_a_fixed_size_says_so(tmp_path: Path) -> None:
    class Halves(mk.Module):
        def __call__(self, x: Any) -> Any:
            return x.reshape(2, -1) if x.shape[0] % 2 else x.reshape(int(x.shape[0]) // 2, -1)

    message = refused(ValueError, lambda: mk.export.save(tmp_path / "x", Halves(), [4, 3]))
    assert message.startswith(
        "__call__ of Halves() cannot be exported with an open batch size, for inputs x f32[batch,3]: "
    )
    assert message.endswith(
        "Give the axis of the batch of each input as batch_axis, or batch_axis=None to fix the sizes of the example."
    )
    mk.export.save(tmp_path / "x", Halves(), [4, 3], batch_axis=None)
    assert mk.export.load(tmp_path / "x")(normal(4, 3)).shape == (2, 6)


# All or nothing.


def test_a_bundle_is_replaced_on_request_only_and_nothing_else_is(tmp_path: Path) -> None:
    model, x = tied(), normal(2, 5)
    mk.export.save(tmp_path / "x", model, x)
    assert refused(FileExistsError, lambda: mk.export.save(tmp_path / "x", model.encode, x)) == (
        f"{tmp_path}/x is there already: give overwrite=True to replace it"
    )
    mk.export.save(tmp_path / "x", model.encode, x, overwrite=True)
    assert mk.export.load(tmp_path / "x")(x).keys() == {"code", "parts"}
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "results.csv").write_text("precious")
    message = refused(FileExistsError, lambda: mk.export.save(tmp_path / "data", model, x, overwrite=True))
    assert message == f"{tmp_path}/data is no bundle, and is not overwritten"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "x"]


def test_a_bundle_that_cannot_be_written_leaves_the_old_one_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = tied(), normal(2, 5)
    mk.export.save(tmp_path / "x", model, x)
    before = {path.name: path.read_bytes() for path in (tmp_path / "x").iterdir()}

    def failing(*_: Any, **__: Any) -> None:
        raise OSError("no space left on device")

    for place, name in ((np.lib.format, "write_array"), (Path, "rename")):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, failing)
            message = refused(OSError, lambda: mk.export.save(tmp_path / "x", model.encode, x, overwrite=True))
        assert message == "no space left on device"
        assert [path.name for path in tmp_path.iterdir()] == ["x"]
        assert {path.name: path.read_bytes() for path in (tmp_path / "x").iterdir()} == before


def test_a_directory_that_is_no_bundle_or_a_damaged_one_is_refused(tmp_path: Path) -> None:
    message = refused(CheckpointError, lambda: mk.export.load(tmp_path / "x"))
    files = "program.bin, weights.npz, specification.json"
    assert message == f"{tmp_path}/x is no bundle of mk.export.save: it lacks {files}"
    mk.export.save(tmp_path / "x", tied(), [2, 5])
    for name in ("program.bin", "weights.npz", "specification.json"):
        whole = (tmp_path / "x" / name).read_bytes()
        (tmp_path / "x" / name).write_bytes(whole[: len(whole) // 2])
        message = refused(CheckpointError, lambda: mk.export.load(tmp_path / "x"))
        assert message.startswith(f"{tmp_path}/x is damaged, or of other versions of jax: "), message
        (tmp_path / "x" / name).write_bytes(whole)
    assert mk.export.load(tmp_path / "x")(normal(3, 5)).shape == (3, 5)
