"""What ends a run before its last step: signals, a time limit, a file.

All of them are only noted when they come, and the loop asks between two programs, so that the run ends after a finished
step with a saved state. A second Ctrl-C ends it at once.
"""

import signal
import sys
import threading
from pathlib import Path
from time import monotonic
from types import FrameType, TracebackType
from typing import Any

from modulekit.core.processes import largest

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
STOP_FILE = "STOP"


class LeftAtOnce(KeyboardInterrupt):
    """A second Ctrl-C: nothing more is waited for, not even a state that is being written."""


class Stopping:
    """Context that holds back signals, and tells whether the run is to end. Outside the main thread it hears no signal.

    Args:
      time_limit: seconds from now; None for no limit.
      directory: of the run; a file `STOP` in it ends the run and is removed, so that the next call goes on.
    """

    def __init__(self, time_limit: float | None = None, directory: Path | None = None) -> None:
        self.received: int | None = None
        self._file = None if directory is None else directory / STOP_FILE
        self._deadline = None if time_limit is None else monotonic() + time_limit
        self._limit = time_limit
        self._reason: str | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Stopping":
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self._before[number] = signal.signal(number, self._take)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _take(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received = number
        elif number == signal.SIGINT:
            raise LeftAtOnce("a second signal: the run ended at once, without saving")

    def reason(self) -> str | None:
        """Returns why the run is to end, None if it is not."""
        heard = largest(self.received or 0)  # what one of several processes hears ends all of them
        if heard:  # else one that has come meanwhile stays noted
            self.received = heard
        if self.received is not None:
            return signal.Signals(self.received).name
        if self._reason is None and self._deadline is not None and largest(monotonic() >= self._deadline):
            self._reason = f"the time limit of {self._limit:g} s"
        if self._reason is None and self._file is not None and largest(self._file.exists()):
            self._file.unlink(missing_ok=True)
            self._reason = f"the file {STOP_FILE}"
        return self._reason

    def obey(self, message: str) -> None:
        """Does what the signal that has come would have done, and says `message`; nothing if none has come.

        Raises:
          KeyboardInterrupt: on SIGINT, with the message.
          SystemExit: on the other signals, with the exit status that a shell reports; the message goes to the standard
            error stream.
        """
        if self.received is None:
            return
        if self.received == signal.SIGINT:
            raise KeyboardInterrupt(message)
        print(f"{signal.Signals(self.received).name}: {message}", file=sys.stderr, flush=True)
        raise SystemExit(128 + self.received)
