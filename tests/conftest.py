"""What holds for all tests: programs are compiled once, cycles are collected less often, and a Ctrl-C is heard.

One compilation of a program serves all the processes of a run: JAX keeps what it compiled in a folder for the run. A shell
lets what it runs in the background ignore Ctrl-C, and whatever that starts.
"""

import gc
import os
import shutil
import signal
import tempfile

import pytest

_FOLDER = "JAX_COMPILATION_CACHE_DIR"
_made: list[str] = []

gc.set_threshold(50_000, 20, 50)  # tracing makes many objects and few cycles; to look for them took a tenth of the time
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

if _FOLDER not in os.environ:  # the workers and the processes that tests start inherit it
    _made.append(tempfile.mkdtemp(prefix="modulekit-tests-"))
    os.environ |= {
        _FOLDER: _made[0],
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


def pytest_unconfigure(config: pytest.Config) -> None:
    """Removes the folder at the end of the run."""
    for folder in _made:
        shutil.rmtree(folder, ignore_errors=True)
