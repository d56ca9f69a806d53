"""Positions of foreign streams as JSON: what `get_state` or `state_dict` returned, written so that it reads back equal.

JSON has dicts with string keys, lists, strings, finite numbers, booleans and None, which stand for themselves. All
else is a dict with the key `"%"`, which names what it was: a tuple, bytes, an array with its dtype, a number that JSON
lacks, a dict with other keys.
"""

import base64
import importlib
import math
from typing import Any

import numpy as np

TAG = "%"  # a dict of the user's that has this key is written as pairs


def encode_state(value: Any) -> Any:
    """Encodes a position, or raises a `TypeError` that names what cannot be written."""
    if value is None or isinstance(value, str | bool) or type(value) is int:
        return value
    if type(value) is float:
        return value if math.isfinite(value) else {TAG: "float", "value": repr(value)}
    if isinstance(value, bytes):
        return {TAG: "bytes", "value": base64.b64encode(value).decode()}
    if isinstance(value, tuple):
        return {TAG: "tuple", "value": [encode_state(child) for child in value]}
    if isinstance(value, list):
        return [encode_state(child) for child in value]
    if isinstance(value, dict):
        if TAG in value or not all(isinstance(key, str) for key in value):
            return {TAG: "dict", "value": [[encode_state(key), encode_state(child)] for key, child in value.items()]}
        return {key: encode_state(child) for key, child in value.items()}
    return _encode_array(value)


def decode_state(value: Any) -> Any:
    """Returns the position that `encode_state` wrote."""
    if isinstance(value, list):
        return [decode_state(child) for child in value]
    if not isinstance(value, dict):
        return value
    kind = value.get(TAG)
    if kind is None:
        return {key: decode_state(child) for key, child in value.items()}
    content = value["value"]
    if kind == "float":
        return float(content)
    if kind == "bytes":
        return base64.b64decode(content)
    if kind == "tuple":
        return tuple(decode_state(child) for child in content)
    if kind == "dict":
        return {decode_state(key): decode_state(child) for key, child in content}
    return _decode_array(kind, value)


def _encode_array(value: Any) -> dict[str, Any]:
    array = np.asarray(value.numpy() if _is_tensor(value) else value)
    if array.dtype.hasobject:
        raise TypeError(
            f"a position must hold numbers, strings, bytes, arrays, tuples, lists and dicts, got "
            f"{type(value).__name__}: {value!r:.200}; let the source's state return one of those"
        )
    kind = "tensor" if _is_tensor(value) else "array" if isinstance(value, np.ndarray) else "scalar"
    content = base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
    return {TAG: kind, "value": content, "dtype": array.dtype.str, "shape": list(array.shape)}


def _decode_array(kind: str, value: dict[str, Any]) -> Any:
    content = base64.b64decode(value["value"])
    array = np.frombuffer(content, np.dtype(value["dtype"])).reshape(value["shape"]).copy()
    if kind == "tensor":
        return importlib.import_module("torch").from_numpy(array)
    return array[()] if kind == "scalar" else array


def _is_tensor(value: Any) -> bool:
    """Whether it is a tensor of PyTorch, in which a loader keeps the state of its generator."""
    return type(value).__module__ == "torch" and type(value).__name__ == "Tensor"
