"""Patterns of paths: `encoder/**` for everything in the encoder, `**/w` for every weight.

A pattern is compared with a path part by part: `layers[0].w` has the parts `layers`, `0` and `w`, and a pattern may be
written either way. `*` stands for anything within one part, `**` for any number of parts. A pattern that stops at a
module means everything in it.
"""

import fnmatch
import re
from collections.abc import Iterable, Sequence

_SEPARATORS = re.compile(r"[./\[\]'\"]+")


def parts_of(path: str) -> list[str]:
    """Returns the parts of a path or pattern.

    >>> parts_of("table['a'].layers[0].w")
    ['table', 'a', 'layers', '0', 'w']
    """
    return [part for part in _SEPARATORS.split(path) if part]


def matches(pattern: str, path: str) -> bool:
    """Returns whether a path, or a module that it stands in, fits a pattern.

    >>> matches("encoder/**", "encoder.layers[0].w"), matches("*.w", "encoder.layers[0].w"), matches("**/w", "w")
    (True, False, True)
    """
    return _match(parts_of(pattern), parts_of(path))


def _match(pattern: Sequence[str], parts: Sequence[str]) -> bool:
    if not pattern:
        return True
    if pattern[0] == "**":
        return any(_match(pattern[1:], parts[skipped:]) for skipped in range(len(parts) + 1 if pattern[1:] else 1))
    return bool(parts) and fnmatch.fnmatchcase(parts[0], pattern[0]) and _match(pattern[1:], parts[1:])


def check_some(pattern: str, chosen: Iterable[object], paths: Iterable[str], owner: str) -> None:
    """Raises `ValueError`, listing the paths there are, if a pattern has chosen nothing."""
    if not list(chosen):
        known = sorted(paths)
        shown = ", ".join(known[:20]) + (f" and {len(known) - 20} more" if len(known) > 20 else "")
        raise ValueError(f"no path of {owner} fits the pattern {pattern!r}. There are: {shown or 'none'}")
