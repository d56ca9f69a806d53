"""Renaming by patterns: how what a file calls its arrays becomes what a module calls its variables."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from modulekit.core.patterns import parts_of

_ANY = "**"


class _Rule(NamedTuple):
    """One pattern, and what a name that fits it becomes, each in parts."""

    old: str
    new: str
    old_parts: tuple[str, ...]
    new_parts: tuple[str, ...]


class Renaming:
    """Patterns of names, with what they become: `encoder/layer/*/weight` → `layers/*/w`.

    A pattern is compared part by part, as in `Module.freeze`: `encoder.layer.0.weight` has four parts, however they are
    separated. `*` stands for anything within a part and `**` for any number of parts; what they stood for is put in for
    the wildcards of the new name, in order. A pattern that stops early renames the beginning. The first that fits counts.

    Args:
      patterns: from the file's names to the module's.

    Raises:
      ValueError: the wildcards of a pattern are not those of its new name.
    """

    def __init__(self, patterns: Mapping[str, str]) -> None:
        self._rules = [_Rule(old, new, tuple(parts_of(old)), tuple(parts_of(new))) for old, new in patterns.items()]
        self._unused = {rule.old for rule in self._rules}
        for rule in self._rules:
            old, new = _wildcards(rule.old_parts), _wildcards(rule.new_parts)
            if old != new:
                raise ValueError(
                    f"rename {rule.old!r} to {rule.new!r}: what `*` and `**` stand for goes over in order, so that both "
                    f"need the same ones, and the one has {' '.join(old) or 'none'}, the other {' '.join(new) or 'none'}"
                )

    def apply(self, name: str) -> tuple[str, ...] | None:
        """Returns the parts of the new name, None if no pattern fits."""
        for rule in self._rules:
            found = _match(rule.old_parts, parts_of(name))
            if found is not None:
                self._unused.discard(rule.old)
                return tuple(_filled(rule.new_parts, found))
        return None

    def check_used(self, names: Iterable[str]) -> None:
        """Raises `ValueError` if a pattern has fitted no name first, which is a slip of the pen."""
        if self._unused:
            known = sorted(names)
            shown = ", ".join(known[:20]) + (f" and {len(known) - 20} more" if len(known) > 20 else "")
            raise ValueError(
                f"rename {sorted(self._unused)[0]!r} is of no use: no name fits it, or those before it take them. "
                f"There are: {shown}"
            )


def _wildcards(pattern: Sequence[str]) -> list[str]:
    return [wildcard for part in pattern for wildcard in ([_ANY] if part == _ANY else "*" * part.count("*"))]


def _match(pattern: Sequence[str], parts: Sequence[str]) -> list[Sequence[str]] | None:
    """Returns what each wildcard stands for, and behind them the parts that the pattern leaves; None if it does not fit.

    What stands for `**` is a list of parts; what stands for `*`, a text.
    """
    if not pattern:
        return [list(parts)]
    if pattern[0] == _ANY:
        lengths = range(len(parts) + 1) if pattern[1:] else [len(parts)]
        for length in lengths:
            rest = _match(pattern[1:], parts[length:])
            if rest is not None:
                return [list(parts[:length]), *rest]
        return None
    fitting = re.fullmatch(re.escape(pattern[0]).replace(r"\*", "(.*)"), parts[0], re.DOTALL) if parts else None
    rest = _match(pattern[1:], parts[1:]) if fitting else None
    return None if fitting is None or rest is None else [*fitting.groups(), *rest]


def _filled(pattern: Sequence[str], found: Sequence[Sequence[str]]) -> Iterable[str]:
    """Yields the parts of a new name, with what the wildcards stood for."""
    remaining = iter(found)
    for part in pattern:
        if part == _ANY:
            yield from next(remaining)
        else:
            yield re.sub(r"\*", lambda _: str(next(remaining)), part)
    yield from next(remaining)
