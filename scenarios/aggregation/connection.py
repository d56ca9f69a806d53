"""A client's socket on the server's side, with the session that it carries and the time by which something must happen."""

import selectors
import socket
import time

from scenarios.aggregation.frames import Refusal
from scenarios.aggregation.session import Session

_CHUNK = 2**18  # bytes that are received at a time


class Connection:
    """Moves bytes between a socket and a session, as far as that goes without waiting.

    Nothing is received while an answer has not been taken, so that a client that does not listen fills no memory.

    Args:
      socket: of the client; it does not block.
      peer: its address, for the log.
      session: the conversation.
      timeout: seconds for each message, each answer, and the proof at the beginning.
      idle_timeout: seconds between two messages.

    Attributes:
      socket: that of the client.
      peer: its address.
      deadline: when the client is late, as `time.monotonic()` says it.
    """

    def __init__(self, socket: socket.socket, peer: str, session: Session, timeout: float, idle_timeout: float) -> None:
        self.socket, self.peer = socket, peer
        self._session = session
        self._timeout, self._idle_timeout = timeout, idle_timeout
        self._answer = memoryview(session.greeting)
        self._phase = "greeting"
        self.deadline = time.monotonic() + timeout

    @property
    def events(self) -> int:
        """What is waited for."""
        return selectors.EVENT_WRITE if self._answer else selectors.EVENT_READ

    def advance(self) -> bool:
        """Sends or receives what can be, once; returns whether the connection is still open.

        Raises:
          Refusal: the client has sent what is not taken.
          OSError: the connection broke.
        """
        try:
            if self._answer:
                self._answer = self._answer[self.socket.send(self._answer) :]
            elif data := self.socket.recv(_CHUNK):
                self._session.feed(data)
            elif self._session.pending:
                raise Refusal("malformed", f"the end in the middle of a message, after {self._session.pending} bytes")
            else:
                return False
        except BlockingIOError:
            return True
        if not self._answer:
            self._answer = memoryview(self._session.answer() or b"")
        self._wait_for(self._next_phase())
        return True

    def _next_phase(self) -> str:
        if not self._session.is_authenticated:
            return "greeting"
        if self._answer:
            return "answering"
        return "receiving" if self._session.pending else "idle"

    def _wait_for(self, phase: str) -> None:
        """Sets the deadline anew where another phase begins; some bytes more of the same message do not."""
        if phase != self._phase:
            self._phase = phase
            self.deadline = time.monotonic() + (self._idle_timeout if phase == "idle" else self._timeout)
