"""Where a hook writes: the place that it was given, or its own name in the run's directory."""

import os
from pathlib import Path

from scenarios.base.events import Started

Given = str | os.PathLike[str] | None


def place_of(hook: str, given: Given, event: Started, name: str) -> Path:
    """Returns a hook's place, with the folders above it made.

    Args:
      hook: its class, for the message.
      given: what the user gave.
      event: which has the run's directory.
      name: what the place is called there.

    Raises:
      ValueError: nothing was given, and the run has no directory.
    """
    if given is None and event.directory is None:
        raise ValueError(
            f"{hook}() has no place to write to, since the run has no save_dir: give it one, as in {hook}({name!r}), or the "
            "run a save_dir"
        )
    place = Path(given) if given is not None else Path(event.directory or "") / name
    place.parent.mkdir(parents=True, exist_ok=True)
    return place
