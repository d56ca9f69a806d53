"""The same run in another process, with another hash seed, which is killed on its way.

It runs beside the other checks. What it leaves must be a step of the run in this process, and go on to the same end.
"""

import multiprocessing
import os
import pickle
import signal
import traceback
from contextlib import AbstractContextManager
from pathlib import Path

from scenarios.base.elsewhere import added_environment
from scenarios.base.events import Event, Finished, Progressed, Saved
from scenarios.testing.attempt import Attempt
from scenarios.testing.case import Case
from scenarios.testing.check import Violation

_MARK = "SCENARIOS_CHECK_IN_PROGRESS"  # in the environment of the process
_SEED = "PYTHONHASHSEED"
_PATIENCE = 600  # seconds


class KilledProcess:
    """A process that runs a case, and is killed once a state is saved.

    Args:
      case: with all its variables.
      folder: of what it leaves.
      interval: updates between two saved states.
      allowed: False starts none.

    Attributes:
      directory: of its run.
    """

    def __init__(self, case: Case, folder: Path, interval: int, allowed: bool) -> None:
        self.directory = folder / "run"
        self._untried, self._error = folder / "untried", folder / "error"
        folder.mkdir()
        if not allowed or multiprocessing.current_process().daemon:
            self._untried.write_text("another process, since none is to be started")
            return
        try:
            (folder / "case").write_bytes(pickle.dumps(case))  # no argument: see `call_elsewhere`
        except Exception as error:
            self._untried.write_text(f"another process, since the case cannot be pickled: {error}")
            return
        arguments = (folder / "case", self.directory, interval, self._untried, self._error)
        self._process = multiprocessing.get_context("spawn").Process(target=_train, args=arguments, daemon=True)
        with _other_environment():
            self._process.start()

    def wait(self) -> str | None:
        """Waits until it is killed; returns why it could not be tried, None if it was.

        Raises:
          Violation: the run did not come to where it was to be killed.
        """
        if not self._untried.exists():
            self._process.join(_PATIENCE)
        if self._untried.exists():
            return self._untried.read_text()
        if self._error.exists():
            raise Violation(f"in another process the run did not come so far: {self._error.read_text().strip()}")
        if self._process.exitcode != -signal.SIGKILL:
            raise Violation(
                f"in another process the run did not come so far: it ended with exit code {self._process.exitcode}. A "
                'script that calls check_scenario must do so under `if __name__ == "__main__":`, since the other process '
                "imports it"
            )
        return None

    def stop(self) -> None:
        """Ends it, wherever it is."""
        process = getattr(self, "_process", None)
        if process is not None:
            process.kill()
            process.join()


def refuse_inside() -> None:
    """Raises `RuntimeError` in the other process itself, which has imported a script that calls the kit."""
    if _MARK in os.environ:
        raise RuntimeError('call check_scenario under `if __name__ == "__main__":`')


def _other_environment() -> AbstractContextManager[None]:
    """Returns a context in which a process that starts hashes strings in another way, and knows what it is."""
    return added_environment({_MARK: "1", _SEED: "2" if os.environ.get(_SEED) == "1" else "1"})


class _Killing:
    """Kills its own process at the first program after a state has been saved, or at the end."""

    def __init__(self) -> None:
        self._saved = False

    def __call__(self, event: Event) -> None:
        self._saved |= isinstance(event, Saved)
        if (self._saved and isinstance(event, Progressed)) or isinstance(event, Finished):
            os.kill(os.getpid(), signal.SIGKILL)


def _train(pickled: Path, directory: Path, interval: int, untried: Path, error: Path) -> None:
    try:
        case = pickle.loads(pickled.read_bytes())
    except Exception as caught:
        untried.write_text(f"another process, since the case cannot be unpickled there: {caught!r}")
        return
    try:
        Attempt(case, [_Killing()], save_dir=directory, save_interval=interval, steps_per_call=1).start()
    except BaseException:
        error.write_text(traceback.format_exc())
