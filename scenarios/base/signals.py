"""Ctrl-C and SIGTERM end a run at the next step; a second Ctrl-C ends it at once."""

import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any


class Interruption:
    """Context that holds back SIGINT and SIGTERM, and tells which one has come. Outside the main thread it does nothing."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._take)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _take(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt("a second signal: the run ended at once, without saving")
        self.received = number

    def obey(self, message: str) -> None:
        """Does what the signal that has come would have done, and says `message`; nothing if none has come.

        Raises:
          KeyboardInterrupt: on SIGINT, with the message.
          SystemExit: on SIGTERM, with the exit status that a shell reports; the message goes to the standard error stream.
        """
        if self.received is None:
            return
        if self.received == signal.SIGTERM:
            print(f"SIGTERM: {message}", file=sys.stderr, flush=True)
            raise SystemExit(128 + signal.SIGTERM)
        raise KeyboardInterrupt(message)
