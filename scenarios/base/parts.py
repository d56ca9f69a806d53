"""The parts of a run: the models, optimizers and losses that a scenario is called with."""

import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any

from modulekit.core import collect
from modulekit.core.module import Module
from modulekit.core.variable import Variable
from modulekit.optimizers import Optimizer


def named_parts(
    update: Callable[..., Any],
    scenario: str,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    made: Collection[str] = (),
) -> dict[str, Any]:
    """Returns the parts by name, as the keyword-only arguments of `update` name them.

    Args:
      update: the scenario's `update(batch, *, ...)`.
      scenario: its name, for messages.
      args: parts by position, in the order of `update`'s signature.
      kwargs: parts by name.
      made: the names of those that the scenario makes itself.

    Raises:
      TypeError: a part is missing, superfluous, given twice, a class, or not of the kind that `update` says.
    """
    signature = inspect.signature(update)
    parameters = [p for p in list(signature.parameters.values())[1:] if p.name not in made]
    names = [p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    form = f"{scenario}(...)({', '.join(names)}{', ...' if takes_any else ''}, data=...)"
    if len(args) > len(names):
        raise TypeError(f"{form} takes {len(names)} parts, got {len(args)}")
    parts = dict(zip(names, args, strict=False))
    for name, value in kwargs.items():
        if name in parts:
            raise TypeError(f"{form} got {name!r} twice")
        if name in made or (name not in names and not takes_any):
            raise TypeError(f"{form} has no part {name!r}")
        parts[name] = value
    missing = [p.name for p in parameters if p.name in names and p.name not in parts and p.default is p.empty]
    if missing:
        raise TypeError(f"{form} needs {', '.join(missing)}")
    for parameter in parameters:
        if parameter.name in parts:
            _check_kind(form, parameter, parts[parameter.name])
    return parts


def with_parts(method: Callable[..., Any], name: str, before: int, parts: Mapping[str, Any]) -> Callable[..., Any]:
    """Returns a method of a scenario with the parts that it names; with all, where it takes any.

    Args:
      method: such as `evaluate(batch, *, model)`.
      name: of the scenario and the method, for messages.
      before: how many arguments come before the parts.
      parts: by name.

    Raises:
      TypeError: it names one that there is not.

    >>> with_parts(lambda batch, *, model: (batch, model), "Fit.evaluate", 1, {"model": "m", "optimizer": "o"})("b")
    ('b', 'm')
    """
    parameters = list(inspect.signature(method).parameters.values())
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return functools.partial(method, **parts)
    by_position = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)][:before]
    named = [p for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD) and p not in by_position]
    missing = [p.name for p in named if p.name not in parts and p.default is p.empty]
    if missing:
        raise TypeError(f"{name} takes {', '.join(missing)}, and the parts of the call are {', '.join(parts)}")
    return functools.partial(method, **{p.name: parts[p.name] for p in named if p.name in parts})


def _check_kind(form: str, parameter: inspect.Parameter, part: Any) -> None:
    """Raises `TypeError` where a part is a class of modules, or no module of the class with which it is annotated."""
    name, kind = parameter.name, parameter.annotation
    if isinstance(part, type) and issubclass(part, Module):
        raise TypeError(
            f"{form}: {name} is the class {part.__name__}; give an object of it, as in {part.__name__}(...)"
        )
    if isinstance(kind, type) and issubclass(kind, Module) and not isinstance(part, kind):
        is_optax = issubclass(Optimizer, kind) and hasattr(part, "init") and hasattr(part, "update")
        hint = ": optax's transformations go into mk.optimizers.Optax(...)" if is_optax else ""
        raise TypeError(f"{form}: {name} must be {_article(kind.__name__)}, not {part!r:.100}{hint}")


def _article(noun: str) -> str:
    return f"an {noun}" if noun[0] in "AEIOU" else f"a {noun}"


def made_state(scenario: Any) -> dict[str, Module]:
    """Returns the modules that a scenario makes for one run, by name; none where it has no method `state`."""
    method = getattr(scenario, "state", None)
    return {} if method is None else dict(method())


def is_optimizer(part: Any) -> bool:
    """Returns whether a part is an optimizer, or a list of optimizers.

    >>> import modulekit as mk
    >>> is_optimizer([mk.optimizers.SGD(0.1)]), is_optimizer(mk.Linear(1)), is_optimizer([])
    (True, False, False)
    """
    if isinstance(part, list | tuple):
        return bool(part) and all(isinstance(item, Optimizer) for item in part)
    return isinstance(part, Optimizer)


def variables_by_path(parts: Mapping[str, Any]) -> dict[str, Variable]:
    """Returns all variables of the parts by path, such as `model.layers[0].w`; a shared one under its first path."""
    return {rendered(path): variable for path, variable in collect.walk(dict(parts), Variable, Module)}


def ties_by_path(parts: Mapping[str, Any]) -> dict[str, str]:
    """Returns, for each further path of a shared variable of the parts, its first path."""
    first = {variable: path for path, variable in variables_by_path(parts).items()}
    references = collect.references(dict(parts), Variable, Module)
    paths = ((rendered(path), variable) for path, variable in references)
    return {path: first[variable] for path, variable in paths if path != first[variable]}


def rendered(path: collect.Path) -> str:
    """Returns a path from the dict of parts as text, such as `model.layers[0].w`."""
    (_, part), *inner = path
    return collect.render((("attribute", part), *inner))
