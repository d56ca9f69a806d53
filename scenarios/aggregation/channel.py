"""A connection on which each side knows that the other one has the secret.

Either side sends a fresh nonce. The client proves that it knows the secret by an HMAC over both, and so does the server. The
same nonces make a key for each direction, and each frame has an HMAC over its number and its bytes. So a frame counts
once, in its place, on one connection, in one direction. Nothing is encrypted: who listens reads gradients and weights.
"""

import hmac
from collections.abc import Mapping
from typing import Any

from scenarios.aggregation.frames import MAC_SIZE, Message, Refusal, packed, unpacked
from scenarios.aggregation.receipt import Array

GREETING = b"modulekit gradients 1\n"  # what a server says first, before its nonce
NONCE_SIZE = 32
_MIN_SECRET = 16


class Channel:
    """Seals what one side sends, and opens what the other side has sealed.

    Args:
      secret: that both sides know.
      server_nonce: of this connection.
      client_nonce: of this connection.
      is_server: which side this is.
    """

    def __init__(self, secret: bytes, server_nonce: bytes, client_nonce: bytes, is_server: bool) -> None:
        to_client = _mac(secret, b"to client", server_nonce, client_nonce)
        to_server = _mac(secret, b"to server", server_nonce, client_nonce)
        self._sends, self._receives = (to_client, to_server) if is_server else (to_server, to_client)
        self._sent = self._received = 0

    def seal(self, fields: Mapping[str, Any], arrays: Mapping[str, Array] | None = None) -> bytes:
        """Returns the next frame of this side."""
        return self.sealed(packed(fields, arrays or {}))

    def sealed(self, frame: bytes) -> bytes:
        """Returns bytes with the MAC of the next frame of this side."""
        self._sent += 1
        return frame + _mac(self._sends, _number(self._sent), frame)

    def open(self, frame: bytes) -> Message:
        """Returns what the next frame of the other side says.

        Raises:
          Refusal: its MAC is not that of this frame, here and now; or it says nothing.
        """
        content, mac = frame[:-MAC_SIZE], frame[-MAC_SIZE:]
        if not hmac.compare_digest(mac, _mac(self._receives, _number(self._received + 1), content)):
            raise Refusal("unauthenticated", "a frame whose HMAC is wrong")
        self._received += 1
        return unpacked(content)


def proof(secret: bytes, side: bytes, server_nonce: bytes, client_nonce: bytes) -> bytes:
    """Returns what proves that a side, `client` or `server`, knows the secret."""
    return _mac(secret, b"proof of the " + side, server_nonce, client_nonce)


def checked_secret(secret: Any) -> bytes:
    """Returns a secret that is one.

    Raises:
      TypeError: it is no bytes.
      ValueError: it is too short.
    """
    if not isinstance(secret, bytes):
        raise TypeError(f"secret is a {type(secret).__name__}: expected bytes, such as secrets.token_bytes(32)")
    if len(secret) < _MIN_SECRET:
        raise ValueError(
            f"secret has {len(secret)} bytes: expected at least {_MIN_SECRET}, such as secrets.token_bytes(32)"
        )
    return secret


def _mac(key: bytes, *parts: bytes) -> bytes:
    found = hmac.new(key, digestmod="sha256")
    for part in parts:
        found.update(part)
    return found.digest()


def _number(count: int) -> bytes:
    return count.to_bytes(8, "little")
