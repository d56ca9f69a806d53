"""`python -m scenarios launch`: a script in several processes that compute together.

Started here with `--processes`, on one host; or by SLURM, MPI or Kubernetes, each of whose processes runs
`python -m scenarios launch script.py`, and whose environment `jax.distributed` knows.
"""

import argparse
import contextlib
import runpy
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

import jax

_PATIENCE = 10.0  # seconds in which the others may end by themselves, when one has
_PAUSE = 0.05


def main(arguments: Sequence[str]) -> int:
    """Runs a script as the command line says, and returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m scenarios launch", description=__doc__)
    parser.add_argument("--processes", type=int, help="how many to start here; none: this is one of several")
    parser.add_argument("--devices", type=int, help="of each process on a CPU; 1 if not given")
    parser.add_argument("--member", nargs=2, metavar=("NUMBER", "ADDRESS"), help=argparse.SUPPRESS)
    parser.add_argument("script", type=Path)
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="those of the script")
    options = parser.parse_args(arguments)
    if options.processes is not None and options.processes < 1:
        parser.error(f"--processes {options.processes}: expected at least 1")
    if not options.script.is_file():
        parser.error(f"there is no script {options.script}")
    if options.processes is None or options.member is not None:
        run_script(options)
        return 0
    return supervise(options.processes, arguments)


def run_script(options: argparse.Namespace) -> None:
    """Joins the other processes, and runs the script in this one."""
    if options.devices is not None:
        jax.config.update("jax_num_cpu_devices", options.devices)
    if options.member is None:
        jax.distributed.initialize()
    else:
        number, address = options.member
        jax.distributed.initialize(address, options.processes, int(number))
    sys.argv = [str(options.script), *options.arguments]
    sys.path[0] = str(options.script.resolve().parent)
    runpy.run_path(str(options.script), run_name="__main__")


def supervise(count: int, arguments: Sequence[str]) -> int:
    """Starts processes that run a script together; ends all of them when one dies.

    Signals are passed on: each process ends its run after the same step, with a saved state.

    Returns:
      The exit status: 0, or that of the first process that failed.
    """
    address = f"127.0.0.1:{_free_port()}"
    command = [sys.executable, "-m", "scenarios", "launch"]
    members = []
    for number in range(count):
        output = None if number == 0 else subprocess.DEVNULL  # the others would say the same
        call = [*command, "--member", str(number), address, *arguments]
        members.append(subprocess.Popen(call, stdout=output, start_new_session=True))
    with _passing_on(members):
        failed = _first_failure(members)
    if failed is None:
        return 0
    status = members[failed].returncode
    print(
        f"process {failed} of {count} {_in_words(status)}: the others were ended. Run the same line again to go on from "
        "the newest saved state",
        file=sys.stderr,
        flush=True,
    )
    return status if status > 0 else 128 - status


def _first_failure(members: Sequence[subprocess.Popen[bytes]]) -> int | None:
    """Waits for all processes, ends those that wait for one that failed; returns the number of that one."""
    failed, deadline = None, float("inf")
    while any(member.poll() is None for member in members):
        if failed is None:
            failed = next((number for number, member in enumerate(members) if member.poll()), None)
            deadline = time.monotonic() + _PATIENCE if failed is not None else deadline
        if time.monotonic() > deadline:
            for member in members:
                if member.poll() is None:
                    member.kill()
        time.sleep(_PAUSE)
    return (
        next((number for number, member in enumerate(members) if member.returncode), None) if failed is None else failed
    )


@contextlib.contextmanager
def _passing_on(members: Sequence[subprocess.Popen[bytes]]) -> Iterator[None]:
    """Context in which signals go to the processes."""

    def pass_on(number: int, frame: FrameType | None) -> None:
        for member in members:
            with contextlib.suppress(ProcessLookupError):
                member.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _in_words(status: int) -> str:
    return f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with exit status {status}"


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port
