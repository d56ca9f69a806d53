"""The wire format of gradients written a second time, from its description: a client that can be made to say anything."""

import hmac
import json
import math
import os
import struct
from typing import Any

import jax.numpy as jnp
import numpy as np

import modulekit as mk

SECRET = b"a secret of thirty-two bytes ..."
GREETING = b"modulekit gradients 1\n"
DTYPES = {"float32": "<f4", "float64": "<f8", "int32": "<i4", "float16": "<f2"}


def mac(key: bytes, *parts: bytes) -> bytes:
    return hmac.digest(key, b"".join(parts), "sha256")


def frame(header: bytes, body: bytes) -> bytes:
    return struct.pack("<4sIQ", b"mkg1", len(header), len(body)) + header + body


def submission(id: Any, version: Any, weight: Any, arrays: dict[str, Any]) -> bytes:
    """Returns a frame, without its MAC, that hands in a contribution."""
    fields = {"kind": "submit", "id": id, "version": version, "weight": weight}
    specs = [[path, a.dtype.name, list(a.shape)] for path, a in arrays.items()]
    header = json.dumps({"fields": fields, "arrays": specs})
    return frame(header.encode(), b"".join(a.tobytes() for a in arrays.values()))


class Author:
    """Writes the bytes of one client, given the server's nonce.

    Args:
      nonce: of the server.
      secret: that the client knows.
      own: nonce of the client.
    """

    def __init__(self, nonce: bytes, secret: bytes = SECRET, own: bytes | None = None) -> None:
        own = os.urandom(32) if own is None else own
        self.hello = own + mac(secret, b"proof of the client", nonce, own)
        self.expected = mac(secret, b"proof of the server", nonce, own)
        self._key, self._others = (mac(secret, to, nonce, own) for to in (b"to server", b"to client"))
        self.sent = self.received = 0

    def seal(self, content: bytes) -> bytes:
        """Returns a frame with the MAC of the next one."""
        self.sent += 1
        return content + mac(self._key, self.sent.to_bytes(8, "little"), content)

    def open(self, answer: bytes) -> dict[str, Any]:
        """Returns the fields of an answer, which must be authentic."""
        self.received += 1
        assert mac(self._others, self.received.to_bytes(8, "little"), answer[:-32]) == answer[-32:]
        _, length, _ = struct.unpack_from("<4sIQ", answer)
        fields: dict[str, Any] = json.loads(answer[16 : 16 + length])["fields"]
        return fields


def net() -> mk.Module:
    """Returns a small model, whose gradients are 6 numbers."""
    made = mk.Module()
    made.w, made.b = mk.Variable(jnp.zeros([2, 2]), name="w"), mk.Variable(jnp.zeros([2]), name="b")
    return made


FORMS = {"b": (2,), "w": (2, 2)}


def meant(content: bytes) -> tuple[str, int, float, dict[str, np.ndarray]] | None:
    """Returns what a frame without its MAC hands in, None if it is not exactly a contribution to `net`."""
    try:
        magic, header, body = struct.unpack_from("<4sIQ", content)
        if magic != b"mkg1" or len(content) != 16 + header + body or header > 2**20:
            return None
        pairs: list[list[str]] = []
        said = json.loads(
            content[16 : 16 + header].decode(),
            object_pairs_hook=lambda p: (pairs.append([k for k, _ in p]), dict(p))[1],
        )
        fields, specs = said["fields"], said["arrays"]
        name, version, weight = fields["id"], fields["version"], fields["weight"]
        if any(len(keys) != len(set(keys)) for keys in pairs) or said.keys() != {"fields", "arrays"}:
            return None
        if fields.keys() != {"kind", "id", "version", "weight"} or fields["kind"] != "submit":
            return None
        if type(name) is not str or not 0 < len(name) <= 200 or type(version) is not int or version < 0:
            return None
        name.encode()
        if type(weight) not in (int, float) or not 0 < weight <= 2**53:
            return None
        if any(type(size) is not int for _, _, shape in specs for size in shape) or len(specs) != len(FORMS):
            return None
        if {path: tuple(shape) for path, _, shape in specs} != FORMS or {dtype for _, dtype, _ in specs} != {"float32"}:
            return None
        arrays, rest = {}, content[16 + header :]
        for path, dtype, shape in specs:
            size = 4 * math.prod(shape)
            arrays[path] = np.frombuffer(rest[:size], DTYPES[dtype]).reshape(shape)
            rest = rest[size:]
        fits = not rest and all(np.isfinite(array).all() for array in arrays.values())
        return (name, version, float(weight), arrays) if fits else None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, struct.error):
        return None
