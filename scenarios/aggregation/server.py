"""A server of gradients: workers in other processes fetch weights from an intake, and submit gradients to it."""

import contextlib
import logging
import selectors
import socket
import threading
import time
from collections import Counter
from types import TracebackType
from typing import Self, TypeAlias

from scenarios.aggregation.channel import checked_secret
from scenarios.aggregation.connection import Connection
from scenarios.aggregation.frames import Refusal
from scenarios.aggregation.intake import Intake
from scenarios.aggregation.session import Session, limits_of

_log = logging.getLogger("scenarios")
_PAUSE = 0.05  # seconds until the next attempt where the system has no more sockets
Address: TypeAlias = tuple[str, int]


class GradientServer:
    """Serves an intake over TCP to clients that know a secret, in a thread of its own, until it is closed.

    Messages are JSON and plain arrays, never pickle; each is authenticated (see `scenarios.aggregation.channel`). Whatever
    is malformed, oversized, late or not authenticated is refused, counted and logged under the name `scenarios`, its
    connection is closed, and the server goes on. What is sent is not encrypted: stay on the loopback address, or in a
    network in which everybody may read along.

    Args:
      intake: what contributions go to.
      secret: at least 16 random bytes that the clients know as well. It is not sent and not logged.
      address: host and port; port 0 takes a free one.
      max_connections: how many clients there may be at a time.
      timeout: seconds within which a client must have proved that it knows the secret, a message that has begun must have
        arrived, and an answer must have been taken.
      idle_timeout: seconds after which a client that says nothing is let go.

    Raises:
      TypeError, ValueError: the secret is no bytes, or too short; a number is out of range.
      OSError: the address cannot be used.

    >>> import modulekit as mk, numpy as np, secrets
    >>> from scenarios.aggregation import GradientClient, Intake
    >>> w, secret = mk.Variable([1.0, 1.0], name="w"), secrets.token_bytes(32)
    >>> intake = Intake([w])
    >>> with GradientServer(intake, secret) as server, GradientClient(server.address, secret) as client:
    ...     version, weights = client.fetch()
    ...     client.submit({"w": 2 * weights["w"]}, weight=1, id="worker 0", version=version)
    Receipt(accepted=True, reason='')
    >>> _ = intake.apply(mk.optimizers.SGD(0.25))
    >>> w.numpy().tolist()
    [0.5, 0.5]
    """

    def __init__(
        self,
        intake: Intake,
        secret: bytes,
        address: Address = ("127.0.0.1", 0),
        *,
        max_connections: int = 32,
        timeout: float = 30.0,
        idle_timeout: float = 3600.0,
    ) -> None:
        self._secret = checked_secret(secret)
        for name, value in {
            "max_connections": max_connections,
            "timeout": timeout,
            "idle_timeout": idle_timeout,
        }.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
                raise ValueError(f"{name}={value!r}: expected a positive number")
        self._intake, self._limits = intake, limits_of(intake)
        self._max_connections, self._timeout, self._idle_timeout = max_connections, timeout, idle_timeout
        self._counters: Counter[str] = Counter()
        self._connections: dict[socket.socket, Connection] = {}
        self._listener = socket.create_server(address)
        self._listener.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._bell, self._heard = socket.socketpair()  # written to, it wakes the thread
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._heard, selectors.EVENT_READ)
        host, port = self._listener.getsockname()[:2]
        self._address: Address = (host, port)
        self._is_closing = False
        self._thread = threading.Thread(target=self._serve, name=f"gradients-{port}", daemon=True)
        self._thread.start()

    @property
    def address(self) -> Address:
        """Host and port, which clients connect to."""
        return self._address

    @property
    def counters(self) -> dict[str, int]:
        """What has happened so far: `connections`, contributions `accepted` and `refused`; and connections that were closed
        as `malformed`, `oversized`, `unauthenticated`, `timed out`, `crowded` (too many of them) or `failed` (our fault).
        """
        return dict(self._counters)

    def close(self) -> None:
        """Closes all connections, and ends the thread. The intake stays as it is."""
        if self._is_closing:
            return
        self._is_closing = True
        self._bell.send(b"!")  # the other end stays open, since the thread may see the mark above and end before this
        self._thread.join()
        self._bell.close()
        self._heard.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    # What the thread does.

    def _serve(self) -> None:
        try:
            while not self._is_closing:
                ready = self._selector.select(self._patience())
                for key, _ in ready:
                    if key.fileobj is self._listener:
                        self._accept()
                    elif key.fileobj is not self._heard:
                        self._advance(key.data)
                now = time.monotonic()
                for connection in [c for c in self._connections.values() if c.deadline <= now]:
                    self._refuse(connection, Refusal("timed out", "it took too long"))
        finally:
            for connection in list(self._connections.values()):
                self._drop(connection)
            self._selector.close()
            self._listener.close()

    def _patience(self) -> float | None:
        """Returns the seconds until the first client is late."""
        deadlines = [connection.deadline for connection in self._connections.values()]
        return max(0.0, min(deadlines) - time.monotonic()) if deadlines else None

    def _accept(self) -> None:
        try:
            accepted, peer = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError as error:
            _log.error("no connection can be accepted: %s", error)
            time.sleep(_PAUSE)
            return
        self._counters["connections"] += 1
        if len(self._connections) >= self._max_connections:
            self._counters["crowded"] += 1
            _log.warning("%s: refused, there are %d connections already", peer, len(self._connections))
            accepted.close()
            return
        accepted.setblocking(False)
        with contextlib.suppress(OSError):
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        session = Session(self._intake, self._secret, self._counters, self._limits, str(peer))
        connection = Connection(accepted, str(peer), session, self._timeout, self._idle_timeout)
        self._connections[accepted] = connection
        self._selector.register(accepted, connection.events, connection)

    def _advance(self, connection: Connection) -> None:
        try:
            is_open = connection.advance()
        except Refusal as refusal:
            self._refuse(connection, refusal)
        except OSError as error:
            _log.info("%s: the connection broke: %s", connection.peer, error)
            self._drop(connection)
        except Exception:  # nothing that a client sends may end the server
            self._counters["failed"] += 1
            _log.exception("%s: an answer failed", connection.peer)
            self._drop(connection)
        else:
            if is_open:
                self._selector.modify(connection.socket, connection.events, connection)
            else:
                self._drop(connection)

    def _refuse(self, connection: Connection, refusal: Refusal) -> None:
        self._counters[refusal.kind] += 1
        _log.warning("%s: refused as %s: %s", connection.peer, refusal.kind, refusal)
        self._drop(connection)

    def _drop(self, connection: Connection) -> None:
        del self._connections[connection.socket]
        self._selector.unregister(connection.socket)
        connection.socket.close()
