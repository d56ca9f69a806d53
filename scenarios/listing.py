"""What there is to train, to hear and to write with: scenarios, hooks and exporters, ours and those of other packages."""

from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version

from rich.console import Console
from rich.table import Table
from rich.text import Text

import modulekit as mk
import scenarios
from scenarios.plugins import Plugin, discover, kind_of, summary_of

EXPORTERS: dict[str, Callable[..., None]] = {"bundle": mk.export.save, "onnx": mk.export.onnx}
_COLUMNS = ("name", "kind", "package", "what it does")
_NARROWEST = 100  # characters, where there is no terminal to say it


def print_list() -> None:
    """Prints a table of all that there is, and below it what is wrong with plug-ins."""
    console = Console(width=None if Console().is_terminal else _NARROWEST)
    plugins, built_in = discover(), list(_built_in())
    table = Table(*_COLUMNS)
    for column in table.columns[:3]:
        column.no_wrap = True
    for row in built_in:
        table.add_row(*map(Text, row))
    for plugin in plugins:
        row = (plugin.name, plugin.kind or "?", plugin.package, plugin.summary)
        table.add_row(*map(Text, row))
    console.print(table)
    names = {row[0]: row[1] for row in built_in}
    for plugin in plugins:
        for problem in _problems(plugin, names):
            console.print(problem, markup=False, highlight=False, soft_wrap=True)


def _built_in() -> Iterator[tuple[str, str, str, str]]:
    """Yields the rows of what comes with this library."""
    found = [(name, "scenario", getattr(scenarios, name)) for name in scenarios.__all__]
    found = [row for row in found if kind_of(row[2]) == "scenario" and row[2] is not scenarios.Scenario]
    found += [(name, "hook", getattr(scenarios.hooks, name)) for name in scenarios.hooks.__all__]
    found += [(name, "exporter", value) for name, value in EXPORTERS.items()]
    for name, kind, value in found:
        yield name, kind, _package(), summary_of(value)


def _package() -> str:
    try:
        return f"modulekit {version('modulekit')}"
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "modulekit"


def _problems(plugin: Plugin, built_in: dict[str, str]) -> Iterator[str]:
    if plugin.error is not None:
        yield f"{plugin.name} of {plugin.package} ({plugin.target}) cannot be had: {plugin.error}"
    if plugin.name in built_in:
        yield f"{plugin.name} of {plugin.package} has the name of a built-in {built_in[plugin.name]}"
