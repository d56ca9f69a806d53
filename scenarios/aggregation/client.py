"""A worker's connection to a server of gradients."""

import hmac
import operator
import os
import socket
import threading
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np

from scenarios.aggregation.channel import GREETING, NONCE_SIZE, Channel, checked_secret, proof
from scenarios.aggregation.frames import MAC_SIZE, PREFIX, Limits, Message, Refusal, size_of, unsendable
from scenarios.aggregation.intake import weight_objection
from scenarios.aggregation.receipt import Array, Receipt

_HEADER_LIMIT = 2**24
_PAUSE = 0.002  # seconds before the server is asked again whether there is a new version


class Weights(NamedTuple):
    """The variables of a model, as they were at a version.

    Attributes:
      version: their number.
      arrays: by path, as `Module.assign` takes them.

    >>> Weights(3, {"b": np.zeros([1], np.float32)}).version
    3
    """

    version: int
    arrays: dict[str, Array]


class GradientClient:
    """Fetches weights from a `GradientServer`, and submits gradients to it.

    Args:
      address: host and port of the server.
      secret: that of the server.
      timeout: seconds within which it must answer.
      max_bytes: of the weights that it may send.

    Raises:
      TypeError, ValueError: the secret is no bytes, or too short.
      PermissionError: the server does not know the secret, or says that this client does not.
      OSError: there is no server.

    >>> import modulekit as mk, numpy as np
    >>> from scenarios.aggregation import GradientServer, Intake
    >>> model = mk.Linear(1)
    >>> _ = mk.build(model, [1, 3])
    >>> with GradientServer(Intake(model), b"sixteen bytes ..") as server:
    ...     with GradientClient(server.address, b"sixteen bytes ..") as client:
    ...         weights = client.fetch()
    ...         receipt = client.submit({"b": np.zeros([2], np.float32)}, weight=1, id="0", version=weights.version)
    >>> sorted(weights.arrays), receipt.reason
    (['b', 'w'], 'these gradients do not fit the intake: b has shape [2], the variable [1]; missing w. Nothing has changed')
    """

    def __init__(self, address: tuple[str, int], secret: bytes, timeout: float = 60.0, max_bytes: int = 2**32) -> None:
        secret = checked_secret(secret)
        self._address = address
        self._limits = Limits(_HEADER_LIMIT, max_bytes)
        self._lock = threading.Lock()
        self._socket = socket.create_connection(address, timeout)
        try:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._channel = self._authenticated(secret)
        except BaseException:
            self._socket.close()
            raise

    def fetch(self, after: int | None = None, timeout: float | None = None) -> Weights:
        """Returns the newest weights.

        Args:
          after: the version that is known; waits until there is a later one. None takes what there is.
          timeout: seconds to wait for it at most; None for any.

        Raises:
          TimeoutError: there was none.
          ConnectionError: the server is gone.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            reply = self._ask({"kind": "weights", "after": after}, {})
            version = int(reply.fields["version"])
            if after is None or version > after:
                return Weights(version, {path: np.array(array) for path, array in reply.arrays.items()})
            if deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError(f"{self._place} has version {version}, and no later one for {timeout} seconds")
            time.sleep(_PAUSE)

    def submit(self, gradients: Mapping[str, Any], weight: float, id: str, version: int) -> Receipt:
        """Hands in a contribution; see `Intake.submit`.

        Args:
          gradients: arrays by path.
          weight: how many samples they are the mean of.
          id: of the contribution.
          version: of the weights at which they were computed.

        Returns:
          Whether it was accepted, and why not.

        Raises:
          ConnectionError: the server is gone, or has refused the message; whether it counts is not known. The same can be
            submitted again: it counts once.
        """
        arrays = {path: np.asarray(gradient) for path, gradient in gradients.items()}
        reason = weight_objection(weight) or unsendable(arrays)  # what cannot be sent, the intake cannot refuse
        if reason:
            return Receipt(False, reason)
        reply = self._ask(
            {"kind": "submit", "id": id, "version": operator.index(version), "weight": float(weight)}, arrays
        )
        return Receipt(bool(reply.fields["accepted"]), str(reply.fields["reason"]))

    def close(self) -> None:
        """Ends the connection."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    @property
    def _place(self) -> str:
        return f"the gradient server at {self._address[0]}:{self._address[1]}"

    def _authenticated(self, secret: bytes) -> Channel:
        greeting = self._received(len(GREETING) + NONCE_SIZE)
        if greeting[: len(GREETING)] != GREETING:
            raise PermissionError(f"{self._place} is none: it says {greeting[: len(GREETING)]!r}")
        nonces = greeting[len(GREETING) :], os.urandom(NONCE_SIZE)
        self._socket.sendall(nonces[1] + proof(secret, b"client", *nonces))
        try:
            answer = self._received(MAC_SIZE)
        except ConnectionError as error:
            raise PermissionError(f"{self._place} has ended the connection: is the secret its own?") from error
        if not hmac.compare_digest(answer, proof(secret, b"server", *nonces)):
            raise PermissionError(f"{self._place} does not know the secret")
        return Channel(secret, *nonces, is_server=False)

    def _ask(self, fields: Mapping[str, Any], arrays: Mapping[str, Array]) -> Message:
        """Sends a message, and returns the answer."""
        with self._lock:
            frame = self._channel.seal(fields, arrays)
            try:
                self._socket.sendall(frame)
                start = self._received(PREFIX.size)
                return self._channel.open(start + self._received(size_of(start, self._limits) - PREFIX.size))
            except BaseException as error:
                self._socket.close()  # what has been sent and received no longer fits together
                if isinstance(error, Refusal | OSError) and not isinstance(error, ConnectionError):
                    raise ConnectionError(f"{self._place} has not answered as it should: {error}") from error
                raise

    def _received(self, size: int) -> bytes:
        """Returns so many bytes."""
        data = bytearray()
        while len(data) < size:
            more = self._socket.recv(min(size - len(data), 2**20))
            if not more:
                raise ConnectionError(f"{self._place} has ended the connection")
            data += more
        return bytes(data)
