"""Interleaved timings, fresh processes, and the table of what was measured against what was wanted.

Contenders take turns within each round, so that a machine that grows slower or busier does so for all of them; the
medians over the rounds are compared. On a virtual machine whose host takes the processors away now and then, what was
measured meanwhile is measured again, and left out where enough was not disturbed.
"""

import argparse
import dataclasses
import importlib.metadata
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = pathlib.Path(__file__).resolve().parents[2]
_PACKAGES = ("jax", "jaxlib", "optax", "numpy")
_ATTEMPTS = 3
_ENOUGH = 3  # measurements
_LEAST_STOLEN = 0.015  # of the processors' time


@dataclasses.dataclass
class Row:
    """One line of the table.

    Attributes:
      label: what was measured.
      measured: the number; None if it could not be measured.
      goal: what it may be at most; None where it is only told.
      detail: the medians behind it, or why there is no number.
    """

    label: str
    measured: float | None
    goal: float | None
    detail: str

    @property
    def verdict(self) -> str:
        """Whether the goal is met."""
        if self.measured is None:
            return "failed"
        if self.goal is None:
            return ""
        return "met" if self.measured <= self.goal else "missed"


def alternate(contenders: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Lets each contender measure itself once per round, and returns what each measured.

    The order within a round turns by one each time, so that nobody always comes first.
    """
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    names = list(contenders)
    for index in range(rounds):
        shift = index % len(names)
        for name in names[shift:] + names[:shift]:
            share, value = _undisturbed(contenders[name])
            measured[name].append((share, value))
            print(
                f"round {index + 1} of {rounds}: {name} {pretty(value)} ({share:.1%} stolen)",
                file=sys.stderr,
                flush=True,
            )
    return {name: _least_disturbed(pairs) for name, pairs in measured.items()}


def over_makings(make: Callable[[], Mapping[str, Callable[[], float]]], makings: int, rounds: int) -> dict[str, float]:
    """Returns the median of what each contender measures, over several makings of all, with some rounds of each.

    Where arrays happen to lie in memory moves a step's time by some percent; so the contenders are built anew.

    Args:
      make: builds the contenders.
      makings: how often.
      rounds: in which they take turns, after each making.
    """
    pooled: dict[str, list[float]] = {}
    for _ in range(makings):
        for name, values in alternate(make(), rounds).items():
            pooled.setdefault(name, []).extend(values)
    return medians(pooled)


def _least_disturbed(pairs: Sequence[tuple[float, float]]) -> list[float]:
    """Returns the measurements that were not disturbed; with the least disturbed others where these are too few."""
    quiet = sum(share <= _LEAST_STOLEN for share, _ in pairs)
    return [value for _, value in sorted(pairs)[: max(quiet, _ENOUGH)]]


def _undisturbed(measure: Callable[[], float]) -> tuple[float, float]:
    """Measures until the host leaves the machine its processors; returns the share it took, and what was measured."""
    attempts: list[tuple[float, float]] = []
    for _ in range(_ATTEMPTS):
        stolen, start = _stolen(), time.perf_counter()
        value = measure()
        share = (_stolen() - stolen) / (time.perf_counter() - start) / (os.cpu_count() or 1)
        attempts.append((share, value))
        if share <= _LEAST_STOLEN:
            break
    return min(attempts)


def _stolen() -> float:
    """Returns the processor seconds that the host has kept from this machine, as Linux counts them; else 0."""
    try:
        fields = pathlib.Path("/proc/stat").read_text().split("\n", 1)[0].split()
        return int(fields[8]) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError, ValueError):
        return 0.0


def per_call(run: Callable[[], Any], block: Callable[[Any], Any], calls: int) -> Callable[[], float]:
    """Returns a measurement: the seconds that one of `calls` calls takes, with `block` waiting for the last one."""

    def measure() -> float:
        start = time.perf_counter()
        for _ in range(calls):
            result = run()
        block(result)
        return (time.perf_counter() - start) / calls

    return measure


def watches(
    runs: Mapping[str, Callable[[], Any]], block: Callable[[Any], Any], seconds: float
) -> dict[str, Callable[[], float]]:
    """Returns a measurement of the seconds per call of each contender, all with as many calls; compiles them.

    Args:
      runs: the contenders' calls; how many fill the time is judged by the first one's.
      block: waits for the result of a call.
      seconds: that a measurement may take.
    """
    for run in runs.values():
        block([run() for _ in range(3)])
    first = next(iter(runs.values()))
    calls = calls_for(lambda: block(first()), seconds)
    return {name: per_call(run, block, calls) for name, run in runs.items()}


def calls_for(measure_one: Callable[[], Any], seconds: float) -> int:
    """Returns how many calls fill about that many seconds, judged by a few of them."""
    start, calls = time.perf_counter(), 0
    while time.perf_counter() - start < seconds / 2:
        measure_one()
        calls += 1
    return max(2, 2 * calls)


def fresh_process(arguments: Sequence[str]) -> float:
    """Runs Python with these arguments in a new process, and returns the number on the last line that it prints.

    Raises:
      RuntimeError: the process failed; the message ends with what it wrote.
    """
    environment = {key: value for key, value in os.environ.items() if key != "JAX_COMPILATION_CACHE_DIR"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), environment.get("PYTHONPATH")]))
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment, cwd=ROOT)
    if done.returncode != 0:
        raise RuntimeError(done.stderr.strip()[-2000:])
    return float(done.stdout.split()[-1])


def medians(measured: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Returns the median of each contender's measurements."""
    return {name: statistics.median(values) for name, values in measured.items()}


def pretty(seconds: float) -> str:
    """Returns a duration with a fitting unit: `3.20 ms`."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3)):
        if abs(seconds) >= scale:
            return f"{seconds / scale:.2f} {unit}"
    return f"{seconds * 1e6:.1f} us"


def machine() -> dict[str, Any]:
    """Returns what the numbers depend on: processor, cores, load, versions."""
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "system": platform.platform(),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in _PACKAGES},
    }


def command(about: str | None, title: str, rows: Callable[[bool], Iterable[Row]]) -> None:
    """Runs a benchmark as its command line says, and prints its table.

    Args:
      about: its documentation.
      title: of the table.
      rows: measures; takes whether to be quick.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds and steps")
    parser.add_argument("--out", type=pathlib.Path, help="a JSON file for the numbers")
    options = parser.parse_args()
    found = list(rows(options.quick))
    print(file=sys.stderr)
    report(found, title, options.out)


def report(rows: Sequence[Row], title: str, out: pathlib.Path | None) -> None:
    """Prints the table, and writes it with the facts of the machine to a JSON file if there is a path."""
    facts = machine()
    versions = ", ".join(f"{name} {facts[name]}" for name in ("python", *_PACKAGES))
    table = Table(
        title=title, caption=f"{facts['processor']}, {facts['cores']} cores, load {facts['load']:.1f}; {versions}"
    )
    for heading, side in (("what", "left"), ("measured", "right"), ("goal", "right"), ("verdict", "left")):
        table.add_column(heading, justify=side, no_wrap=True)
    table.add_column("medians", overflow="fold")
    for row in rows:
        measured = "" if row.measured is None else f"{row.measured:.3f}"
        goal = "" if row.goal is None else f"<= {row.goal:.2f}"
        table.add_row(row.label, measured, goal, row.verdict, row.detail)
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    print(flush=True)
    if out is not None:
        lines = [dataclasses.asdict(row) | {"verdict": row.verdict} for row in rows]
        out.write_text(json.dumps({"title": title, "machine": facts, "rows": lines}, indent=2) + "\n")
