"""Runs a program that was exported, with nothing but jax, numpy and flatbuffers; the bundle has a copy of this file."""

import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.export  # reads programs, with the package flatbuffers
import jax.numpy as jnp
import numpy as np


def load(directory: Any) -> Callable[..., Any]:
    """Returns the program of a bundle, a function of the inputs that its specification.json lists."""
    directory = pathlib.Path(directory)
    specification = json.loads((directory / "specification.json").read_text())
    inputs, variables = specification["inputs"], specification["variables"]
    call = jax.jit(jax.export.deserialize(bytearray((directory / "program.bin").read_bytes())).call)
    with np.load(directory / "weights.npz") as file:
        weights = [jnp.asarray(file[v["path"]].view(jnp.dtype(v["dtype"]))) for v in variables]

    def run(*arguments: Any, **named: Any) -> Any:
        leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves((arguments, named))]
        if len(leaves) != len(inputs):
            expected = ", ".join(f"{i['name']} {i['dtype']}{i['shape']}" for i in inputs)
            raise TypeError(f"expected {len(inputs)} arrays ({expected}), and got {len(leaves)}")
        return _built(specification["result"], call(weights, leaves))

    return run


def _built(node: Any, leaves: Any) -> Any:
    if not isinstance(node, dict):
        return leaves[node] if isinstance(node, int) else None
    ((kind, parts),) = node.items()
    if kind == "dict":
        return {key: _built(part, leaves) for key, part in parts.items()}
    return (tuple if kind == "tuple" else list)(_built(part, leaves) for part in parts)
