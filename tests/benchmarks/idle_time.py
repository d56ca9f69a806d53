"""How long a device waits between the programs of a run: `python -m tests.benchmarks.idle_time [WORKLOAD ...]`.

Each network is trained by `scenarios.Supervised` with its default settings, and the second half of the run is traced by
JAX's profiler, whose own work on the host counts as waiting. On an accelerator it is the device that is looked at, and what
it runs; on a CPU, the programs.
"""

import argparse
import math
import tempfile
from collections.abc import Sequence

import jax

from scenarios.hooks import Profile
from tests.benchmarks.contender import EXAMPLES
from tests.benchmarks.contenders.modulekit_scenario import SteadyState, run
from tests.benchmarks.timing import Row, pretty, report
from tests.benchmarks.workloads import WORKLOADS
from tests.benchmarks.workloads.workload import Workload

GOAL = 0.05
_PROBE, _SECONDS = 20, 4.0  # steps of a first run; seconds of the traced one
_COMPUTES = 2e-3  # seconds of a step from which on the arithmetic is what a run should wait for


def idle(workload: Workload, seconds: float = _SECONDS) -> tuple[float, float | None]:
    """Returns the seconds of a step, and the share of the time in which the device waited for the next program."""
    data, clock = workload.make_data(EXAMPLES), SteadyState()
    run(workload, data, None, _PROBE, [clock])
    steps = 2 * max(_PROBE, math.ceil(seconds / 2 / clock.seconds_per_step))
    with tempfile.TemporaryDirectory() as folder:
        profile = Profile(steps // 2, steps, folder)
        run(workload, data, None, steps, [profile])
        return clock.seconds_per_step, profile.idle_share()


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and prints."""
    usual = [name for name, workload in WORKLOADS.items() if not workload.is_huge]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workloads", nargs="*", default=usual, metavar="WORKLOAD", help=f"of {', '.join(WORKLOADS)}")
    rows = []
    for name in parser.parse_args(arguments).workloads:
        step, share = idle(WORKLOADS[name])
        rows.append(Row(name, share, GOAL if step >= _COMPUTES else None, f"a step of {pretty(step)}"))
    device = jax.devices()[0].device_kind
    report(rows, f"share of the time in which the device ran no program ({device})", None)


if __name__ == "__main__":
    main()
