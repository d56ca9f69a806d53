"""The benchmark's tables, on a terminal and in Markdown."""

from collections.abc import Iterable, Iterator

from rich.table import Table

from tests.benchmarks.goals import shown
from tests.benchmarks.results import BASELINE, PARTS, Cell, Results
from tests.benchmarks.timing import pretty

_HEADINGS = {"step": "step", "first": "first step", "memory": "memory"}


def table_of(results: Results) -> Table:
    """Returns a table with a row for each contender in each workload, and its ratios to hand-written JAX."""
    kind = "quick measurements" if results.quick else "medians"
    table = Table(title=f"training steps, {kind}, beside them the ratio to hand-written JAX")
    for heading in ("workload", "contender"):
        table.add_column(heading, no_wrap=True)
    for part in PARTS:
        table.add_column(_HEADINGS[part], justify="right", no_wrap=True)
        table.add_column("ratio", justify="right", no_wrap=True)
    table.add_column("losses", no_wrap=True)
    for workload in results.workloads:
        for cell in (cell for cell in results.cells if cell.workload == workload):
            table.add_row(workload, cell.contender, *_numbers(results, cell), agreement(cell))
        table.add_section()
    return table


def agreement(cell: Cell) -> str:
    """Returns whether a cell's losses are those of hand-written JAX, in words."""
    return "equal" if cell.agrees else f"losses differ by {cell.difference:.1e}"


def imports_of(results: Results) -> str:
    """Returns how long imports take, in words."""
    return "imports: " + ", ".join(f"{name} {pretty(seconds)}" for name, seconds in results.imports.items())


def markdown_of(results: Results) -> str:
    """Returns the README's tables: of steps, of first steps, of memory, and of imports."""
    return "\n\n".join([_facts(results), *_part_tables(results), *_imports(results)]).replace(" us |", " µs |")


def _numbers(results: Results, cell: Cell) -> Iterator[str]:
    for part in PARTS:
        yield shown(part, getattr(cell, part))
        yield _ratio(results, part, cell.workload, cell.contender)


def _ratio(results: Results, part: str, workload: str, contender: str) -> str:
    ratio = results.ratio(part, workload, contender)
    return "" if ratio is None else f"{ratio:.3f}" if ratio < 0.1 else f"{ratio:.2f}"


def _facts(results: Results) -> str:
    facts = results.machine
    packages = dict.fromkeys(name.split()[0] for name in results.contenders)
    versions = ", ".join(f"{name} {facts[name]}" for name in packages if name in facts)
    few = " Few rounds: `--quick`." if results.quick else ""
    where = f"{facts['processor']}, {facts['cores']} cores with a load of {facts['load']:.1f}, {facts['platform']}"
    return f"{where}; Python {facts['python']}, {versions}.{few}"


def _part_tables(results: Results) -> Iterator[str]:
    titles = {
        "step": "Training step",
        "first": "First finished step, in a new process, imports excluded",
        "memory": "Memory of the step's program",
    }
    for part, title in titles.items():
        names = [name for name in results.contenders if any(_ratio(results, part, w, name) for w in results.workloads)]
        others = [name for name in names if name != BASELINE]
        if others:
            yield f"{title}: hand-written JAX, and ratios to it."
            yield _markdown(["workload", BASELINE, *others], _part_rows(results, part, others))


def _part_rows(results: Results, part: str, others: list[str]) -> Iterator[list[str]]:
    disagreeing = {(cell.workload, cell.contender) for cell in results.cells if not cell.agrees}
    for workload in results.workloads:
        theirs = shown(part, results.value(part, workload, BASELINE))
        if theirs:
            ratios = (
                _ratio(results, part, workload, name) + (" (losses differ)" if (workload, name) in disagreeing else "")
                for name in others
            )
            yield [f"`{workload}`", theirs, *ratios]


def _imports(results: Results) -> Iterator[str]:
    if results.imports:
        yield "Seconds of the imports, in a new process."
        yield _markdown(list(results.imports), [[f"{seconds:.2f}" for seconds in results.imports.values()]])


def _markdown(headings: list[str], rows: Iterable[list[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
