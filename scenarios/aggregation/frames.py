"""Messages as bytes: a prefix with two lengths, a JSON header, and the arrays' values, little-endian, one after the other.

The header says what the message is, and the path, dtype and shape of each array. Nothing in a message is code, and nothing
is read before the lengths in the prefix have been compared with what is expected.
"""

import json
import math
import struct
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from modulekit.core.safetensors_layout import DTYPES
from scenarios.aggregation.receipt import Array

MAGIC = b"mkg1"
PREFIX = struct.Struct("<4sIQ")  # the magic, the length of the header, the length of the body
MAC_SIZE = 32  # bytes behind the body, which say that the frame comes from one who knows the secret
_BY_NAME = {dtype.name: dtype for dtype in DTYPES.values()}
_MAX_RANK = 32
_MAX_LENGTH = 2**31

Form: TypeAlias = tuple[tuple[int, ...], np.dtype[Any]]


class Refusal(Exception):
    """A message that is not taken; the connection over which it came is closed.

    Args:
      kind: under which it is counted: `malformed`, `oversized`, `unauthenticated` or `timed out`.
      problem: what is wrong with it.
    """

    def __init__(self, kind: str, problem: str) -> None:
        super().__init__(problem)
        self.kind = kind


class Limits(NamedTuple):
    """How long the parts of a message may be, in bytes.

    Attributes:
      header: of the JSON.
      body: of the arrays.
    """

    header: int
    body: int


class Message(NamedTuple):
    """What a frame says.

    Attributes:
      fields: JSON.
      arrays: by path.
    """

    fields: dict[str, Any]
    arrays: dict[str, Array]


def packed(fields: Mapping[str, Any], arrays: Mapping[str, Array]) -> bytes:
    """Returns a frame without its MAC.

    >>> unpacked(packed({"kind": "submit"}, {"w": np.ones([2], np.float32)}))
    Message(fields={'kind': 'submit'}, arrays={'w': array([1., 1.], dtype=float32)})
    """
    little = {path: np.asarray(a, _little(a.dtype), order="C") for path, a in arrays.items()}
    specs = [[path, a.dtype.name, list(a.shape)] for path, a in little.items()]
    header = json.dumps({"fields": dict(fields), "arrays": specs}, allow_nan=False).encode()
    body = b"".join(a.tobytes() for a in little.values())
    return PREFIX.pack(MAGIC, len(header), len(body)) + header + body


def unsendable(arrays: Mapping[str, Array]) -> str:
    """Returns what keeps arrays from being sent; nothing if all is well."""
    for path, array in arrays.items():
        if array.dtype.name not in _BY_NAME:
            return f"{path} holds {array.dtype}, which is not sent: give arrays of {', '.join(_BY_NAME)}"
    return ""


def size_of(start: bytes | bytearray, limits: Limits) -> int:
    """Returns the length of the frame, MAC included, that begins with these bytes.

    Raises:
      Refusal: it is none, or longer than it may be.
    """
    magic, header, body = PREFIX.unpack_from(start)
    if magic != MAGIC:
        raise Refusal("malformed", f"a frame begins with {magic!r}, not {MAGIC!r}")
    if header > limits.header or body > limits.body:
        raise Refusal(
            "oversized",
            f"a header of {header} and a body of {body} bytes, of {limits.header} and {limits.body} at most",
        )
    return PREFIX.size + header + body + MAC_SIZE


def unpacked(frame: bytes) -> Message:
    """Returns what a frame without its MAC says. The arrays are views of its bytes.

    Raises:
      Refusal: it says nothing, or its header does not fit its body.
    """
    _, length, _ = PREFIX.unpack_from(frame)
    body = memoryview(frame)[PREFIX.size + length :]
    content = _header(frame[PREFIX.size : PREFIX.size + length])
    arrays, begin = {}, 0
    for spec in content["arrays"]:
        path, (shape, dtype) = _spec(spec)
        if path in arrays:
            raise Refusal("malformed", f"{path[:80]!r} is listed twice")
        end = begin + math.prod(shape) * dtype.itemsize
        if end > len(body):
            raise Refusal("malformed", f"arrays of more than the {len(body)} bytes of the body")
        arrays[path] = _array(body[begin:end], shape, dtype)
        begin = end
    if begin != len(body):
        raise Refusal("malformed", f"arrays of {begin} bytes, and a body of {len(body)}")
    return Message(content["fields"], arrays)


def _header(text: bytes) -> dict[str, Any]:
    try:
        content = json.loads(text.decode(), parse_constant=_no_constant, object_pairs_hook=_distinct)
    except (ValueError, RecursionError) as error:  # bytes that are no text are a ValueError as well
        raise Refusal("malformed", f"a header that is no JSON: {type(error).__name__}") from None
    if not isinstance(content, dict) or content.keys() != {"fields", "arrays"}:
        raise Refusal("malformed", "a header that has not the fields and the arrays of a message")
    if not isinstance(content["fields"], dict) or not isinstance(content["arrays"], list):
        raise Refusal("malformed", "fields that are no object, or arrays that are no list")
    return content


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is no JSON")


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is there twice")
    return found


def _spec(spec: Any) -> tuple[str, Form]:
    if isinstance(spec, list) and len(spec) == 3:
        path, name, shape = spec
        is_shape = isinstance(shape, list) and len(shape) <= _MAX_RANK and all(map(_is_length, shape))
        if isinstance(path, str) and isinstance(name, str) and name in _BY_NAME and is_shape:
            return path, (tuple(shape), _BY_NAME[name])
    raise Refusal("malformed", "an array that is not listed by path, dtype and shape")


def _is_length(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MAX_LENGTH


def _array(values: memoryview, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    try:
        if not values:
            return np.zeros(shape, dtype)
        return np.frombuffer(values, _little(dtype)).reshape(shape).astype(dtype, copy=False)
    except (ValueError, OverflowError):  # an empty array may still have axes that are too long together
        raise Refusal("malformed", f"a shape that no array has: {shape}") from None


def _little(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return dtype.newbyteorder("<") if dtype.isbuiltin == 1 else dtype  # the small floats know no other order
