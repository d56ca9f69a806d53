"""The server's side of a conversation, from bytes to bytes: what arrives is fed in, what is to be sent comes out.

A session owns no socket and never waits, so that anything that may ever arrive can be tried on it.
"""

import hmac
import logging
import math
import os
from collections import Counter
from typing import Any

import numpy as np

from scenarios.aggregation.channel import GREETING, NONCE_SIZE, Channel, checked_secret, proof
from scenarios.aggregation.frames import MAC_SIZE, PREFIX, Limits, Message, Refusal, packed, size_of
from scenarios.aggregation.intake import MAX_ID, Intake
from scenarios.aggregation.receipt import Receipt

_log = logging.getLogger("scenarios")
_SPARE = 4096  # bytes of a header for what may be written in several ways


class Session:
    """One client's conversation with an intake.

    Args:
      intake: what contributions go to.
      secret: that the client must know.
      counters: count what happens.
      limits: of messages, `limits_of(intake)`.
      peer: the client's address, for the log.
      nonce: of the connection; None for a random one.

    Attributes:
      greeting: what is sent first.
      is_authenticated: whether the client has proved that it knows the secret.
    """

    def __init__(
        self,
        intake: Intake,
        secret: bytes,
        counters: Counter[str],
        limits: Limits,
        peer: str = "?",
        nonce: bytes | None = None,
    ) -> None:
        self._intake, self._secret = intake, checked_secret(secret)
        self._counters, self._peer = counters, peer
        self._nonce = os.urandom(NONCE_SIZE) if nonce is None else nonce
        self._limits = limits
        self._received = bytearray()
        self._channel: Channel | None = None
        self.greeting = GREETING + self._nonce

    @property
    def is_authenticated(self) -> bool:
        """Whether the client has proved that it knows the secret."""
        return self._channel is not None

    @property
    def pending(self) -> int:
        """The number of bytes that are not a whole message yet."""
        return len(self._received)

    def feed(self, data: bytes) -> None:
        """Takes what has arrived; ask for answers until there is none, before more is fed in."""
        self._received += data

    def answer(self) -> bytes | None:
        """Returns the answer to the next message, None if it has not arrived as a whole.

        Raises:
          Refusal: what has arrived is no message that is taken. The connection must be closed.
        """
        if self._channel is None:
            return self._authenticate()
        if len(self._received) < PREFIX.size:
            return None
        size = size_of(self._received, self._limits)
        if len(self._received) < size:
            return None
        return self._respond(self._channel, self._channel.open(self._taken(size)))

    def _authenticate(self) -> bytes | None:
        """Checks the client's proof, and gives that of this side."""
        if len(self._received) < NONCE_SIZE + MAC_SIZE:
            return None
        answer = self._taken(NONCE_SIZE + MAC_SIZE)
        nonces = self._nonce, answer[:NONCE_SIZE]
        if not hmac.compare_digest(answer[NONCE_SIZE:], proof(self._secret, b"client", *nonces)):
            raise Refusal("unauthenticated", "a client that does not know the secret")
        self._channel = Channel(self._secret, *nonces, is_server=True)
        return proof(self._secret, b"server", *nonces)

    def _taken(self, size: int) -> bytes:
        taken = bytes(self._received[:size])
        del self._received[:size]
        return taken

    def _respond(self, channel: Channel, message: Message) -> bytes:
        fields, arrays = message
        kind = fields.get("kind")
        if kind == "weights" and fields.keys() == {"kind", "after"} and not arrays:
            return self._weights(channel, fields["after"])
        if kind == "submit" and fields.keys() == {"kind", "id", "version", "weight"}:
            receipt = self._submit(message)
            answer = {"kind": "receipt", "accepted": receipt.accepted, "reason": receipt.reason}
            return channel.seal(answer)
        raise Refusal("malformed", "a message that asks for nothing that there is")

    def _weights(self, channel: Channel, after: Any) -> bytes:
        """Returns the weights; no arrays if their version is not behind the one that the client has."""
        if after is not None and (isinstance(after, bool) or not isinstance(after, int)):
            raise Refusal("malformed", "a version that is no number")
        if after is not None and self._intake.version <= after:
            return channel.seal({"kind": "weights", "version": self._intake.version})
        version, arrays = self._intake.weights()
        return channel.seal({"kind": "weights", "version": version}, arrays)

    def _submit(self, message: Message) -> Receipt:
        fields = message.fields
        try:
            receipt = self._intake.submit(message.arrays, fields["weight"], fields["id"], fields["version"])
        except OSError as error:
            _log.error("%s: a contribution could not be written: %s", self._peer, error)
            receipt = Receipt(False, f"the contribution could not be written: {error.strerror or error}")
        self._counters["accepted" if receipt else "refused"] += 1
        if not receipt:
            _log.warning("%s: a contribution was refused: %r", self._peer, receipt.reason)
        return receipt


def limits_of(intake: Intake) -> Limits:
    """Returns how long the parts of a message with gradients may be."""
    fields = {"kind": "submit", "id": "\U0001f40d" * MAX_ID, "version": 2**63, "weight": 1 / 3}
    header = packed(fields, {})
    specs = sum(len(packed({}, {path: np.zeros((0, *shape), dtype)})) for path, (shape, dtype) in intake.forms.items())
    body = sum(math.prod(shape) * dtype.itemsize for shape, dtype in intake.forms.values())
    return Limits(len(header) + specs + _SPARE, body)
