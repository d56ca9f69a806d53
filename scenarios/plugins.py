"""Plug-ins: scenarios, hooks and exporters of other packages, found by the entry points that these packages declare.

A package says in its `pyproject.toml` what it adds, each under a name:

    [project.entry-points."scenarios.plugins"]
    Quantiles = "its_module:Quantiles"

Which of the three an object is can be seen from it: a class that derives from `scenarios.Scenario` is a scenario; what is
called with one argument, an event, is a hook, or a class of hooks; what is called with more of them (a path, a module and
its inputs, as `mk.export.save` is) is an exporter. Nothing of a package is imported before it is asked for, and what goes
wrong then is said of its plug-in alone.
"""

import functools
import inspect
from collections import Counter
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal, TypeAlias

from scenarios.base.scenario import Scenario

__all__ = ["GROUP", "Plugin", "PluginError", "discover", "load"]

GROUP = "scenarios.plugins"
Kind: TypeAlias = Literal["scenario", "hook", "exporter"]


class PluginError(ImportError):
    """A plug-in that was asked for cannot be had: it is not there, cannot be imported, or is none.

    >>> raise PluginError("there is no plug-in 'Quantiles'; those that are installed: none")
    Traceback (most recent call last):
        ...
    scenarios.plugins.PluginError: there is no plug-in 'Quantiles'; those that are installed: none
    """


@dataclass(frozen=True)
class Plugin:
    """What a package adds under a name; it is imported when it is first looked at.

    Attributes:
      name: what it is called.
      target: where it is, such as `its_module:Quantiles`.
      package: which package declares it, with its version.
      clash: other packages that declare something under the same name.

    >>> plugin = Plugin("Fit", "scenarios:Supervised", "an_example 1.0")
    >>> plugin.load().__name__, plugin.kind, plugin.summary
    ('Supervised', 'scenario', 'Trains a model to predict targets from inputs: `min E[loss(model(x), y)]`.')
    >>> print(Plugin("Fit", "no_such_module:Fit", "an_example 1.0").error)
    ModuleNotFoundError: No module named 'no_such_module'
    """

    name: str
    target: str
    package: str
    clash: tuple[str, ...] = field(default=(), repr=False)

    def load(self) -> Any:
        """Imports it.

        Raises:
          PluginError: that failed, or it is no plug-in, or another package has one of this name.
        """
        if self.error is not None:
            raise PluginError(f"the plug-in {self.name!r} of {self.package} cannot be had: {self.error}")
        return self._loaded[0]

    @property
    def kind(self) -> Kind | None:
        """What it is; None if that is not known."""
        return self._loaded[1]

    @property
    def summary(self) -> str:
        """The first line of its documentation."""
        return summary_of(self._loaded[0])

    @property
    def error(self) -> str | None:
        """What is wrong with it, if something is."""
        if self.clash:
            return (
                f"{self.name!r} is the name of a plug-in of {' and of '.join(self.clash)} as well: remove one of them"
            )
        return self._loaded[2]

    @functools.cached_property
    def _loaded(self) -> tuple[Any, Kind | None, str | None]:
        """The object, its kind, and what went wrong."""
        try:
            found = EntryPoint(self.name, self.target, GROUP).load()
            kind = kind_of(found)
        except (Exception, SystemExit) as error:  # whatever the package does when it is imported
            return None, None, f"{type(error).__name__}: {error}"
        if kind is None:
            return None, None, f"it is a {type(found).__name__}, and neither a scenario nor a hook nor an exporter"
        return found, kind, None


def discover() -> list[Plugin]:
    """Returns the plug-ins of all packages that are installed, by name; none of them is imported.

    >>> [plugin.name for plugin in discover() if plugin.package.startswith("modulekit ")]
    []
    """
    declared = sorted(entry_points(group=GROUP), key=lambda point: (point.name, _package(point)))
    found = [Plugin(point.name, point.value, _package(point)) for point in declared]
    counts = Counter(plugin.name for plugin in found)
    return [plugin if counts[plugin.name] == 1 else _clashing(plugin, found) for plugin in found]


def load(name: str) -> Any:
    """Imports a plug-in by its name.

    Args:
      name: as its package declares it.

    Returns:
      The scenario's class, the hook, the class of hooks, or the exporter.

    Raises:
      PluginError: there is none of this name, or it cannot be imported.

    >>> load("Quantiles")
    Traceback (most recent call last):
        ...
    scenarios.plugins.PluginError: there is no plug-in 'Quantiles'; those that are installed: ...
    """
    plugins = discover()
    for plugin in plugins:
        if plugin.name == name:
            return plugin.load()
    names = ", ".join(dict.fromkeys(plugin.name for plugin in plugins)) or "none"
    raise PluginError(f"there is no plug-in {name!r}; those that are installed: {names}")


def kind_of(value: Any) -> Kind | None:
    """Returns what an object is, None if it is no plug-in.

    >>> kind_of(Scenario), kind_of(lambda event: None), kind_of(lambda path, module, *inputs: None), kind_of("text")
    ('scenario', 'hook', 'exporter', None)
    """
    if isinstance(value, type) and issubclass(value, Scenario):
        return "scenario"
    if isinstance(value, type):
        calls = (vars(kind)["__call__"] for kind in value.__mro__ if "__call__" in vars(kind))
        return "hook" if _arguments(next(calls, None)) == 2 else None  # the instance, and an event
    return {0: None, 1: "hook"}.get(_arguments(value), "exporter")


def _arguments(value: Any) -> int:
    """Returns how many positional arguments a call must have; 0 for what cannot be called, or does not say how."""
    try:
        parameters = inspect.signature(value).parameters.values()
    except (TypeError, ValueError):
        return 0
    return sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.default is p.empty for p in parameters)


def summary_of(value: Any) -> str:
    """Returns the first line of an object's documentation, empty if it has none."""
    return (inspect.getdoc(value) or "").partition("\n")[0] if value is not None else ""


def _package(point: EntryPoint) -> str:
    return "unknown" if point.dist is None else f"{point.dist.name} {point.dist.version}"


def _clashing(plugin: Plugin, found: list[Plugin]) -> Plugin:
    others = tuple(p.package for p in found if p.name == plugin.name and p is not plugin)
    return Plugin(plugin.name, plugin.target, plugin.package, others)
