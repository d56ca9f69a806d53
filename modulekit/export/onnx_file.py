"""ONNX files: a method of a module as a graph that other runtimes run."""

import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np

from modulekit.export.method import BatchAxis, ExportedMethod


def onnx(
    path: str | os.PathLike[str],
    method: Callable[..., Any],
    *example: Any,
    batch_axis: BatchAxis = 0,
    **options: Any,
) -> None:
    """Writes a method of a module as an ONNX file, weights included; readers see the old file or the whole new one.

    Before it is written, the file is run once, with the example or with made-up inputs, and compared with the method.
    It needs jax2onnx, which `pip install 'modulekit[onnx]'` installs. The inputs are called what the method calls them,
    the outputs `output_0` and so on, in the order of `jax.tree.leaves`.

    Args:
      path: of the file; directories around it are made.
      method: as for `save`.
      *example: as for `save`.
      batch_axis: as for `save`.
      **options: as for `save`.

    Raises:
      ImportError: jax2onnx is not installed.
      TypeError: it is no method of a module.
      ValueError: it cannot be a program without state; or jax2onnx or onnxruntime does not know what it uses.

    >>> import modulekit as mk
    >>> mk.export.onnx("mlp.onnx", lambda x: x, [2, 5])  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    TypeError: <function <lambda> at ...> is no module and no method of one, whose variables would have paths: ...
    """
    exported_method = ExportedMethod(method, example, options)
    try:
        import jax2onnx
        import onnxruntime
    except ImportError as error:
        raise ImportError(f"mk.export.onnx needs jax2onnx ({error}): pip install 'modulekit[onnx]'") from error
    weights = [variable.current() for variable in exported_method.variables.values()]
    forms = exported_method.forms(batch_axis)
    # Traced here: while jax2onnx traces, it replaces functions such as `jnp.shape`, on which layers rely.
    traced = jax.make_jaxpr(lambda *inputs: exported_method.program(weights, inputs))(*forms)
    names = [re.sub(r"\W+", "_", name).strip("_") for name in exported_method.input_names]
    outputs = [f"output_{index}" for index in range(len(traced.out_avals))]
    inputs = [_values(leaf) for leaf in exported_method.example]
    try:
        program = jax.extend.core.jaxpr_as_fun(traced)
        graph = jax2onnx.to_onnx(program, forms, input_names=names, output_names=outputs).SerializeToString()
        found = onnxruntime.InferenceSession(graph).run(outputs, dict(zip(names, inputs, strict=True)))
    except Exception as error:  # neither of the two packages has an error of its own
        raise ValueError(f"{exported_method} cannot be written as ONNX: {type(error).__name__}: {error}") from error
    for name, output, expected in zip(outputs, found, exported_method.program(weights, inputs), strict=True):
        if not np.allclose(output, expected, rtol=1e-4, atol=1e-5, equal_nan=True):
            raise ValueError(
                f"{exported_method} computes something else as ONNX: {name} is {output}, and not {expected}"
            )
    _write(Path(path), graph)


def _values(leaf: Any) -> np.ndarray[Any, Any]:
    """Returns an input as it was given; where only its form is known, values from -1 to 1, or zeros of another dtype."""
    if not isinstance(leaf, jax.ShapeDtypeStruct):
        return np.asarray(leaf, jnp.result_type(leaf))
    shape = tuple(size if isinstance(size, int) else 1 for size in leaf.shape)  # a symbol may be any size
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return np.zeros(shape, leaf.dtype)
    return np.linspace(-1, 1, math.prod(shape)).reshape(shape).astype(leaf.dtype)


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
