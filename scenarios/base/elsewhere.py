"""Calling a function in a fresh process, which begins without anything that this one has made or switched on."""

import contextlib
import multiprocessing
import os
import pickle
import signal
import traceback
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Connection
from typing import Any


class CallError(Exception):
    """A function in another process did not return.

    Attributes:
      error: what it raised; None where its process ended, or where that cannot be pickled.
    """

    def __init__(self, message: str, error: BaseException | None = None) -> None:
        super().__init__(message)
        self.error = error


def call_elsewhere(
    caller: str, function: Callable[..., Any], *args: Any, environment: Mapping[str, str] | None = None
) -> Any:
    """Returns what a function returns in a fresh process, which is gone afterwards; it is killed on a Ctrl-C.

    Args:
      caller: the method that the user has called, for messages.
      function: at the top of a module.
      *args: what can be pickled.
      environment: variables of the process, beside those of this one.

    Raises:
      CallError: the function raised, and the message is where; or its process ended before.
    """
    context = multiprocessing.get_context("spawn")
    called = pickle.dumps((function, args))
    ours, theirs = context.Pipe()
    process = context.Process(target=_answer, args=(theirs,))  # small: to start one that ends before it reads may hang
    with ours, theirs:
        with added_environment(environment or {}):
            process.start()
        theirs.close()  # here, so that the end of the process is the end of what it sends
        try:
            ours.send_bytes(called)
            returned, result, message = ours.recv()
        except (EOFError, ConnectionError):
            process.join()  # so that it has an exit code
            raise CallError(
                f"it ended with exit code {process.exitcode}. A script that calls {caller} must do so under "
                '`if __name__ == "__main__":`, since the other process imports it'
            ) from None
        except BaseException:
            process.kill()
            raise
        finally:
            process.join()
    if not returned:
        raise CallError(message, pickle.loads(result) if result else None)
    return result


def _answer(asking: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that waits hears it, and ends this one
    try:
        function, args = pickle.loads(asking.recv_bytes())
        answer = True, function(*args), ""
    except BaseException as error:
        answer = False, _pickled(error), traceback.format_exc()
    asking.send(answer)


def _pickled(error: BaseException) -> bytes:
    """Returns an error that arrives as it was; nothing for one that would not."""
    with contextlib.suppress(Exception):
        pickled = pickle.dumps(error)
        if str(pickle.loads(pickled)) == str(error):
            return pickled
    return b""


@contextlib.contextmanager
def added_environment(environment: Mapping[str, str]) -> Iterator[None]:
    """Context in which a process that starts finds more variables in its environment."""
    before = {name: os.environ.get(name) for name in environment}
    os.environ |= environment
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
