"""Hooks: functions that hear the events of a run, and may ask it to stop. They set no flags on models or loops."""

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from scenarios.base.events import Event, Finished, Progressed, Started
from scenarios.base.strict_json import in_json


@dataclass(frozen=True)
class Stop:
    """What a hook returns to end the run after the current step.

    Attributes:
      reason: what ended the run, as its result says.

    >>> import jax.numpy as jnp, modulekit as mk, scenarios
    >>> x = jnp.ones([4, 1])
    >>> fit = scenarios.Supervised(10, batch_size=4, progress=False)
    >>> def hook(event):
    ...     return Stop("enough")
    >>> fit(mk.Linear(1), mk.optimizers.SGD(0.1), mk.losses.squared_error, data=(x, x), hooks=[hook]).reason
    'enough'
    """

    reason: str


Hook = Callable[[Event], Stop | None]


def checked_hooks(hooks: Any) -> list[Hook]:
    """Returns hooks as a list, or raises `TypeError` if that is not what they are."""
    if not isinstance(hooks, Iterable):
        raise TypeError(f"hooks must be a list of functions of an event, not {hooks!r:.100}: write hooks=[...]")
    listed = list(hooks)
    for hook in listed:
        if not callable(hook):
            raise TypeError(f"a hook must be a function of an event, or another callable, not {hook!r:.100}")
    return listed


def told(hook: Hook, event: Event) -> Stop | None:
    """Tells a hook an event, and returns its answer, or raises `TypeError` if that is none."""
    answer: Any = hook(event)
    if answer is None or isinstance(answer, Stop):
        return answer
    name = getattr(hook, "__qualname__", type(hook).__name__)
    raise TypeError(
        f"the hook {name} returned {answer!r:.100}; expected None, or scenarios.Stop(reason) to end the run"
    )


def hook_states(hooks: Sequence[Hook]) -> dict[str, Any]:
    """Returns the state of each hook that has a method `get_state()`, anything that JSON can hold, by its class's name."""
    return {name: hook.get_state() for name, hook in _with_memory(hooks).items()}


def set_hook_states(hooks: Sequence[Hook], states: Mapping[str, Any]) -> None:
    """Gives hooks back what `hook_states` returned, through their method `set_state(state)`; new hooks start anew."""
    for name, hook in _with_memory(hooks).items():
        if name in states:
            hook.set_state(states[name])


def _with_memory(hooks: Sequence[Hook]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for hook in hooks:
        if hasattr(hook, "get_state"):
            kind = type(hook).__name__
            count = sum(name.partition("#")[0] == kind for name in found)
            found[f"{kind}#{count + 1}" if count else kind] = hook
    return found


class JsonLines:
    """Appends each event but the progress to a file, one JSON object a line.

    Args:
      path: the file; a number that is not finite stands in it as null, since JSON has none. A run that resumes goes on
        below the lines up to its step; later ones are cut off, since they will be written again.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: TextIO | None = None

    def __call__(self, event: Event) -> None:
        """Writes the event."""
        if isinstance(event, Progressed):
            return
        if isinstance(event, Started):
            self._cut_after(event.step)
            self._file = self._path.open("a", encoding="utf-8")
        if self._file is None:
            return
        content = {"event": type(event).__name__.lower(), **asdict(event), "time": round(time.time(), 3)}
        self._file.write(json.dumps(in_json(content), default=str, allow_nan=False) + "\n")
        self._file.flush()
        if isinstance(event, Finished):
            self._file.close()
            self._file = None

    def _cut_after(self, step: int) -> None:
        if not self._path.exists():
            return
        kept = [line for line in self._path.read_text(encoding="utf-8").splitlines() if _step_of(line) <= step]
        temporary = self._path.with_name(f".{self._path.name}")
        temporary.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        temporary.replace(self._path)


def _step_of(line: str) -> float:
    """Returns the step of a line; infinity for one that a killed process left incomplete."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
