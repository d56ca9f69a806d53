"""Bundles: directories with a compiled method, its weights, and a file that runs it where this library is not."""

import contextlib
import importlib.metadata
import inspect
import json
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.export
import numpy as np

from modulekit.core.describe import spec_of
from modulekit.errors import CheckpointError
from modulekit.export import standalone
from modulekit.export.method import BatchAxis, ExportedMethod

_PROGRAM, _TEXT, _WEIGHTS = "program.bin", "program.stablehlo", "weights.npz"
_SPECIFICATION, _LOADER = "specification.json", "load.py"
_FILES = (_PROGRAM, _WEIGHTS, _SPECIFICATION)
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the same weights are the same bytes


def save(
    directory: str | os.PathLike[str],
    method: Callable[..., Any],
    *example: Any,
    batch_axis: BatchAxis = 0,
    platforms: Sequence[str] | None = None,
    overwrite: bool = False,
    **options: Any,
) -> None:
    """Writes a method of a module as a bundle, which runs with jax, numpy and flatbuffers alone.

    The directory holds `program.bin` (what `jax.export` serializes: a function of the weights and the inputs),
    `weights.npz` by path, `specification.json`, `load.py`, whose `load(directory)` returns the program as a function, and
    `program.stablehlo`, the program as text. It appears under its name when it is complete.

    A method that writes variables or draws random numbers is refused, since the program has no state.

    Args:
      directory: of the bundle.
      method: a module that has its variables, a method of one, or a `functools.partial` of either.
      *example: its inputs: arrays, `jax.ShapeDtypeStruct`s or shapes such as `[32, 784]`. What is none (a boolean, a
        string) becomes part of the program.
      batch_axis: the axis of the batch, whose size stays open, the same for all inputs; or one axis for each input, None
        where it has none. With None, shapes are what they are, symbols of `jax.export.symbolic_shape` included.
      platforms: where the program is to run: `cpu`, `cuda`, `rocm`, `tpu`; the one of this process if None.
      overwrite: whether a bundle that is there already is replaced.
      **options: keyword arguments of the method, such as `is_training=False`.

    Raises:
      FileExistsError: the directory exists, and is not to be overwritten, or is no bundle.
      TypeError: it is no method of a module.
      ValueError: it cannot be a program without state, or not with an open batch size.

    >>> import tempfile, pathlib, modulekit as mk
    >>> model = mk.nets.MLP([4, 3])
    >>> _ = mk.build(model, [2, 5])
    >>> with tempfile.TemporaryDirectory() as parent:
    ...     directory = pathlib.Path(parent) / "mlp"
    ...     mk.export.save(directory, model, [2, 5])
    ...     sorted(path.name for path in directory.iterdir())
    ['load.py', 'program.bin', 'program.stablehlo', 'specification.json', 'weights.npz']
    """
    target = Path(directory).absolute()
    _check_free(target, overwrite)
    exported_method = ExportedMethod(method, example, options)
    exported = _exported(exported_method, batch_axis, platforms)
    arrays = {path: np.asarray(v.current()) for path, v in exported_method.variables.items()}
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        (temporary / _PROGRAM).write_bytes(exported.serialize())
        (temporary / _TEXT).write_text(exported.mlir_module())
        _write_arrays(temporary / _WEIGHTS, arrays)
        specification = _specification(exported_method, exported)
        (temporary / _SPECIFICATION).write_text(json.dumps(specification, indent=1) + "\n")
        (temporary / _LOADER).write_text(inspect.getsource(standalone))
        _put(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def load(directory: str | os.PathLike[str]) -> Callable[..., Any]:
    """Returns the program of a bundle as a function of its inputs. It has no variables: it is not a module.

    Args:
      directory: of the bundle.

    Returns:
      A function that takes what the method took, less what has become part of the program, with any batch size. Dicts,
      lists and tuples of its result are as they were; a named tuple has become a tuple.

    Raises:
      CheckpointError: there is no bundle, or it is damaged.

    >>> import tempfile, modulekit as mk, jax.numpy as jnp
    >>> model = mk.nets.MLP([4, 3])
    >>> _ = mk.build(model, [2, 5])
    >>> with tempfile.TemporaryDirectory() as parent:
    ...     mk.export.save(f"{parent}/mlp", model, [2, 5])
    ...     program = mk.export.load(f"{parent}/mlp")
    >>> program(jnp.ones([7, 5])).shape
    (7, 3)
    """
    path = Path(directory)
    lacking = [name for name in _FILES if not (path / name).is_file()]
    if lacking:
        raise CheckpointError(f"{path} is no bundle of mk.export.save: it lacks {', '.join(lacking)}")
    try:
        return standalone.load(path)
    except Exception as error:  # of five formats, which name no file
        raise CheckpointError(
            f"{path} is damaged, or of other versions of jax: {type(error).__name__}: {error}"
        ) from error


def _exported(method: ExportedMethod, batch_axis: BatchAxis, platforms: Sequence[str] | None) -> jax.export.Exported:
    forms = method.forms(batch_axis)
    weights = [jax.ShapeDtypeStruct(variable.shape, variable.dtype) for variable in method.variables.values()]
    try:
        with _short_locations():
            return jax.export.export(jax.jit(method.program), platforms=platforms)(weights, forms)
    except Exception as error:
        if batch_axis is None:
            raise
        shapes = ", ".join(f"{n} {spec_of(f)}" for n, f in zip(method.input_names, forms, strict=True))
        raise ValueError(
            f"{method} cannot be exported with an open batch size, for inputs {shapes}: {error}\nGive the axis of the batch "
            "of each input as batch_axis, or batch_axis=None to fix the sizes of the example."
        ) from error


@contextlib.contextmanager
def _short_locations() -> Iterator[None]:
    """Context in which programs name source files without their directories, which are nobody's business elsewhere."""
    before = jax.config.jax_hlo_source_file_canonicalization_regex  # type: ignore[attr-defined]
    jax.config.update("jax_hlo_source_file_canonicalization_regex", ".*/")
    try:
        yield
    finally:
        jax.config.update("jax_hlo_source_file_canonicalization_regex", before)


def _specification(method: ExportedMethod, exported: jax.export.Exported) -> dict[str, Any]:
    arrays = exported.in_avals[len(method.variables) :]
    packages = ("modulekit", "jax", "jaxlib", "numpy")
    return {
        "module": repr(method.owner),
        "method": method.name,
        "fixed": method.fixed,
        "inputs": [{"name": n, **_form(a)} for n, a in zip(method.input_names, arrays, strict=True)],
        "outputs": [_form(a) for a in exported.out_avals],
        "result": _encoded(jax.tree.unflatten(method.result_structure, range(len(exported.out_avals)))),
        "variables": [{"path": path, "name": v.name, **_form(v)} for path, v in method.variables.items()],
        "platforms": list(exported.platforms),
        "calling_convention": exported.calling_convention_version,
        "versions": {package: _version(package) for package in packages},
    }


def _form(array: Any) -> dict[str, Any]:
    return {
        "shape": [size if isinstance(size, int) else str(size) for size in array.shape],
        "dtype": str(np.dtype(array.dtype)),
    }


def _encoded(node: Any) -> Any:
    """Returns a structure of numbers of leaves as JSON that keeps tuples and lists apart."""
    if node is None or isinstance(node, int):
        return node
    if isinstance(node, dict) and all(isinstance(key, str) for key in node):
        return {"dict": {key: _encoded(part) for key, part in node.items()}}
    if isinstance(node, list):
        return {"list": [_encoded(part) for part in node]}
    parts = node if isinstance(node, tuple) else jax.tree.leaves(node)
    return {"tuple": [_encoded(part) for part in parts]}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"  # run from its sources


def _write_arrays(path: Path, arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
    """Writes an .npz file; unlike `np.savez`, with any names and without the time."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy", _EPOCH), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


def _check_free(target: Path, overwrite: bool) -> None:
    if not target.exists():
        return
    if not overwrite:
        raise FileExistsError(f"{target} is there already: give overwrite=True to replace it")
    if not (target / _SPECIFICATION).is_file():
        raise FileExistsError(f"{target} is no bundle, and is not overwritten")


def _put(temporary: Path, target: Path) -> None:
    """Gives a finished directory its name; what has it already goes when the new one is there."""
    old = target.with_name(f".{target.name}.{os.getpid()}.old")
    if target.exists():
        target.rename(old)
    try:
        temporary.rename(target)
    except OSError:
        if old.exists():
            old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)
