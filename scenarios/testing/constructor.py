"""The law of settings: what a constructor takes is kept under its name, so that a run can be told from another."""

import dataclasses
import inspect
import json
from collections.abc import Mapping
from typing import Any

from scenarios.base.identity import describe, own_settings
from scenarios.base.settings import Settings
from scenarios.testing.case import Case
from scenarios.testing.check import Check, Violation
from scenarios.testing.subject import Subject

_COMMON = {field.name for field in dataclasses.fields(Settings)}
_REFUSED: Mapping[str, Any] = {"no_such_setting": 1, "steps": "many", "batch_size": 0, "seed": -1}


def _settings(subject: Subject) -> str | None:
    case = subject.fresh()
    scenario = case.scenario(**case.settings)
    own = _own_parameters(case.scenario)
    for name, default in own.items():
        given = case.settings.get(name, default)
        if not hasattr(scenario, name):
            raise Violation(f"the setting {name}={given!r} is no attribute {name!r} of the scenario")
        if not _same(getattr(scenario, name), given):
            raise Violation(f"the setting {name}={given!r} has become {getattr(scenario, name)!r}")
        if name not in repr(scenario):
            raise Violation(f"the scenario's repr does not show {name}: {scenario!r}")
    for name, given in case.settings.items():
        if name in _COMMON and not _same(getattr(scenario.settings, name), given):
            raise Violation(f"the setting {name}={given!r} has become {getattr(scenario.settings, name)!r}")
    described = own_settings(scenario)
    json.dumps(described, allow_nan=False)
    again = case.scenario(**{**case.settings, **{name: getattr(scenario, name) for name in own}})
    if own_settings(again) != described or again.settings != scenario.settings:
        raise Violation(f"made again from its own settings, {scenario!r} is {again!r}")
    for name, value in _REFUSED.items():
        _demand_refused(case, name, value)
    return None


def _own_parameters(kind: type) -> dict[str, Any]:
    """Returns the constructor's own arguments, and their defaults."""
    parameters = list(inspect.signature(kind).parameters.values())
    named = (p for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL))
    return {p.name: p.default for p in named if p.name not in _COMMON}


def _same(found: Any, given: Any) -> bool:
    return found is given or describe(found) == describe(given)  # a list may be kept as a tuple


def _demand_refused(case: Case, name: str, value: Any) -> None:
    try:
        case.scenario(**{**case.settings, name: value})
    except (TypeError, ValueError):
        return
    raise Violation(f"{name}={value!r} is not refused")


SETTINGS = Check(
    "settings",
    "What the constructor takes is kept under its name, stands in the run's identity, and makes the same scenario again.",
    "Write `def __init__(self, steps, mine, **settings)`, pass steps and **settings on to super().__init__ as they are, and "
    "keep self.mine = mine.",
    _settings,
)
