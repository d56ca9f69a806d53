"""How long the devices of a trace waited for their next program."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import jax
import numpy as np

_DEVICE = "/device:"  # planes of accelerators; each of their events is something that the device did
_HOST = "/host:CPU"
_PROGRAM = "ThunkExecutor::Execute"  # how XLA's programs on CPUs begin their names

Span = tuple[float, float]  # from when to when


def idle_share(trace: Path) -> float | None:
    """Returns the share of the newest trace in a folder in which a device did nothing; None if it ran no program.

    Raises:
      FileNotFoundError: there is no trace.
    """
    files = sorted(trace.rglob("*.xplane.pb"), key=lambda file: file.stat().st_mtime)
    if not files:
        raise FileNotFoundError(f"{trace} holds no trace: there is no *.xplane.pb in it or below")
    planes = list(jax.profiler.ProfileData.from_file(str(files[-1])).planes)
    devices = [plane for plane in planes if plane.name.startswith(_DEVICE)]
    busy = [list(_events(plane)) for plane in devices] or [
        list(_events(plane, _PROGRAM)) for plane in planes if plane.name == _HOST
    ]
    return max((idle_between(spans) for spans in busy if spans), default=None)


def idle_between(spans: Iterable[Span]) -> float:
    """Returns the share of the time between the first and the last moment of some spans that none of them covers.

    >>> idle_between([(0.0, 2.0), (1.0, 3.0), (3.5, 4.0)])
    0.125
    """
    begins, ends = np.asarray(sorted(spans), np.float64).T
    covered = np.maximum.accumulate(ends)
    whole = covered[-1] - begins[0]
    return float(np.maximum(begins[1:] - covered[:-1], 0).sum() / whole) if whole else 0.0


def _events(plane: jax.profiler.ProfilePlane, prefix: str = "") -> Iterator[Span]:
    lines: Sequence[Iterable[jax.profiler.ProfileEvent]] = [line.events for line in plane.lines]
    for event in itertools.chain.from_iterable(lines):
        if event.name.startswith(prefix):
            yield event.start_ns, event.end_ns
