"""The benchmark: modulekit and other libraries beside hand-written JAX, with equal arithmetic, weights and data.

    python -m tests.benchmarks [--quick] [--only WORKLOAD ...] [--contenders NAME ...] [--parts PART ...]
                               [--out FILE.json] [--plot FILE.png]

Prints the steady training step, the time to the first finished step, the memory of the step's program and the seconds of
the imports, then what goals are met. All contenders' losses are compared first; where one differs, the exit status is 1.
"""

import argparse
import importlib.util
import pathlib
import sys
from collections.abc import Sequence

from rich.console import Console

from tests.benchmarks import contenders, measuring, plot, tables, timing
from tests.benchmarks.goals import verdicts
from tests.benchmarks.results import BASELINE, PARTS, Results
from tests.benchmarks.workloads import WORKLOADS


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Returns the arguments of the command line."""
    installed = contenders.installed()
    parser = argparse.ArgumentParser(
        "python -m tests.benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer rounds, and no workload of thousands of variables")
    parser.add_argument("--only", nargs="+", choices=WORKLOADS, metavar="WORKLOAD", help=f"of {', '.join(WORKLOADS)}")
    parser.add_argument(
        "--contenders",
        nargs="+",
        choices=installed,
        default=installed,
        metavar="NAME",
        help=f"of {', '.join(installed)}",
    )
    every_part = [*PARTS, "import"]
    parser.add_argument("--parts", nargs="+", choices=every_part, default=every_part, help="what to measure")
    parser.add_argument("--out", type=pathlib.Path, help="a JSON file for the numbers")
    parser.add_argument("--plot", type=pathlib.Path, help="a picture of the steps; needs the extra `plot`")
    options = parser.parse_args(arguments)
    if options.plot is not None and importlib.util.find_spec("matplotlib") is None:
        parser.error("--plot needs matplotlib: pip install 'modulekit[plot]'")
    options.only = options.only or [
        name for name, workload in WORKLOADS.items() if not workload.is_huge or not options.quick
    ]
    options.contenders = list(dict.fromkeys([BASELINE, *options.contenders]))
    return options


def measured(options: argparse.Namespace) -> Results:
    """Measures what is asked for, and saves what there is after each workload."""
    entered = [contenders.load(name) for name in options.contenders]
    effort = measuring.QUICK if options.quick else measuring.THOROUGH
    imports = measuring.import_seconds(entered, effort) if "import" in options.parts else {}
    results = Results(measuring.machine(entered), options.quick, imports, [])
    for name in options.only:
        print(f"{name}:", file=sys.stderr)
        workload = WORKLOADS[name]
        results.cells.extend(measuring.cells(workload, measuring.entrants(workload, entered), options.parts, effort))
        if options.out is not None:
            results.save(options.out)
    return results


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures and prints; returns the exit status."""
    options = parsed(arguments)
    results = measured(options)
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(tables.table_of(results))
    if results.imports:
        console.print(tables.imports_of(results), soft_wrap=True)
    timing.report(list(verdicts(results)), "goals, ratios to hand-written JAX", None)
    if options.plot is not None:
        plot.draw(results, options.plot)
    return 0 if all(cell.agrees for cell in results.cells) else 1


if __name__ == "__main__":
    sys.exit(main())
