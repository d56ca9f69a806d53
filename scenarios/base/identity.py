"""What a run is made of, in words that JSON can hold, and what it means when a run that goes on is made of something else.

A difference is *safe* where it changes no weight, *schedule-changing* where the run goes on, and not as it would have, and
*incompatible* where what is saved means nothing any more.
"""

import inspect
import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Literal, NamedTuple

from modulekit.core.variable import Variable
from scenarios.base.settings import Settings

Kind = Literal["safe", "schedule-changing", "incompatible"]

# All settings stand here, so that a new one is not forgotten; what a scenario adds changes its schedule.
_KINDS: dict[str, Kind] = {
    "steps": "safe",
    "batch_size": "incompatible",
    "seed": "incompatible",
    "log_interval": "safe",
    "eval_interval": "safe",
    "eval_batch_size": "safe",
    "ema_decay": "schedule-changing",
    "save_interval": "safe",
    "keep": "safe",
    "keep_best": "safe",
    "best_metric": "safe",
    "best_mode": "safe",
    "steps_per_call": "safe",
    "data_on_device": "safe",
    "mesh": "safe",
    "placement": "safe",
    "non_finite": "schedule-changing",
    "time_limit": "safe",
    "progress": "safe",
    "scenario": "incompatible",
    "data": "incompatible",
    "eval_data": "safe",
}
_PLACES = ("save_dir", "cache_dir")  # say where, and not what
_SHOWN = 100  # characters of a value in a message
_NOWHERE = object()


class Difference(NamedTuple):
    """One thing that is not as it was when the run was saved.

    Attributes:
      name: of the setting or part.
      saved: what it was.
      now: what it is.
      kind: what that means for the run.

    >>> print(Difference("steps", 100, 200, "safe"))
    steps: saved 100, now 200 (safe)
    """

    name: str
    saved: Any
    now: Any
    kind: Kind

    def __str__(self) -> str:
        saved, now = (text if len(text := repr(v)) <= _SHOWN else f"{text[:_SHOWN]}…" for v in (self.saved, self.now))
        return f"{self.name}: saved {saved}, now {now} ({self.kind})"


def identity(
    scenario: Any, settings: Settings, parts: Mapping[str, Any], data: str, eval_data: str | None
) -> dict[str, Any]:
    """Returns what a run is made of.

    Args:
      scenario: the object; what its own constructor takes is read from attributes of the same names.
      settings: the settings that every scenario has.
      parts: what it was called with.
      data: the fingerprint of the data.
      eval_data: that of the evaluation data, if there is any.
    """
    common = {f.name: describe(getattr(settings, f.name)) for f in fields(settings) if f.name not in _PLACES}
    described = {name: describe(part) for name, part in parts.items()}
    return {
        "scenario": type(scenario).__name__,
        "data": data,
        "eval_data": eval_data,
        "settings": {**common, **own_settings(scenario)},
        "parts": described,
    }


def own_settings(scenario: Any) -> dict[str, Any]:
    """Returns the settings that a scenario's own constructor adds, by name.

    >>> class Warmed:
    ...     def __init__(self, steps, temperature, **settings):
    ...         self.temperature = temperature
    >>> own_settings(Warmed(10, temperature=2.0))
    {'temperature': 2.0}
    """
    common = {field.name for field in fields(Settings)}
    parameters = list(inspect.signature(type(scenario).__init__).parameters.values())[1:]
    names = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD and p.name not in common]
    found = {name: getattr(scenario, name, _NOWHERE) for name in names}
    return {name: describe(value) for name, value in found.items() if value is not _NOWHERE}


def in_words(scenario: Any, settings: Settings) -> str:
    """Returns the call that makes a scenario: the settings that it adds, and the common ones that are not the defaults.

    >>> class Warmed:
    ...     def __init__(self, steps, temperature, **settings):
    ...         self.temperature = temperature
    >>> in_words(Warmed(10, temperature=2.0), Settings(10, batch_size=8))
    'Warmed(steps=10, batch_size=8, temperature=2.0)'
    """
    common = {f.name: getattr(settings, f.name) for f in fields(settings)}
    defaults = {f.name: f.default for f in fields(settings)}
    told = {name: value for name, value in common.items() if value != defaults[name]}
    listed = ", ".join(f"{name}={value!r}" for name, value in {**told, **own_settings(scenario)}.items())
    return f"{type(scenario).__name__}({listed})"


def describe(value: Any) -> Any:
    """Returns a value as JSON can hold it: functions by name, modules by the call that made them.

    >>> describe(len), describe(2.5), describe({"rate": (1, None)})
    ('len', 2.5, {'rate': [1, None]})
    """
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): describe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [describe(item) for item in value]
    if isinstance(value, Variable):
        return f"Variable {value.name}"
    name = getattr(value, "__qualname__", None)
    if name is not None:
        return name
    text = repr(value)
    return type(value).__name__ if " at 0x" in text else text


def differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[Difference]:
    """Returns what differs between the identity of a saved run and that of the run that is to go on, the worst first.

    >>> run = {"scenario": "Fit", "data": "a", "settings": {"steps": 10, "seed": 0}, "parts": {"optimizer": "SGD(0.1)"}}
    >>> other = {**run, "data": "b", "settings": {"steps": 20, "seed": 0}, "parts": {"optimizer": "SGD(0.2)"}}
    >>> [(found.name, found.kind) for found in differences(run, other)]
    [('data', 'incompatible'), ('optimizer', 'schedule-changing'), ('steps', 'safe')]
    """
    before, after = _flat(saved), _flat(now)
    changed = [
        Difference(name, before.get(name), after.get(name), _KINDS.get(name, "schedule-changing"))
        for name in {**before, **after}
        if before.get(name) != after.get(name)
    ]
    order = ("incompatible", "schedule-changing", "safe")
    return sorted(changed, key=lambda difference: order.index(difference.kind))


def _flat(identity: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "scenario": identity["scenario"],
        "data": identity["data"],
        "eval_data": identity.get("eval_data"),
        **identity["settings"],
        **identity["parts"],
    }
