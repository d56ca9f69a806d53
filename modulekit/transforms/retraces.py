"""Why a compiled function was traced again, in the model's terms.

A trace is a pair of what the arguments looked like and what the modules were like. A new trace is told by what differs
from the most similar one before: `step retraced: argument x f32[32,784] → f32[17,784]`.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax

from modulekit.core.chain import text_of
from modulekit.core.describe import spec_of
from modulekit.errors import RetraceError
from modulekit.transforms.arguments import Static, is_traced
from modulekit.transforms.visible import leaves_by_place, named_arguments

_log = logging.getLogger("modulekit")
_SHOWN = 8
_UNKNOWN = "JAX's configuration or context changed"


class Form(NamedTuple):
    """What the arguments of a trace looked like.

    Attributes:
      leaves: for each leaf its place, such as `x` or `batch['image']`; its text, such as `f32[32,784]`; and, where it is
        part of the program, what it is compared by.
      structures: for each argument the containers around its leaves, such as `[*, *]`.
      by_name: the arguments that were passed by name.
    """

    leaves: tuple[tuple[str, str, Static | None], ...]
    structures: tuple[tuple[str, str], ...]
    by_name: frozenset[str]


def form_of(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Form:
    """Returns the form of the arguments of a call."""
    named = named_arguments(function, args, kwargs)
    leaves = leaves_by_place(named, _is_none)
    structures = tuple((name, str(jax.tree.structure(arg, is_leaf=_is_none))) for name, arg in named.items())
    return Form(tuple((place, *_leaf(leaf)) for place, leaf in leaves), structures, frozenset(kwargs))


def _is_none(value: Any) -> bool:
    return value is None


def _leaf(leaf: Any) -> tuple[str, Static | None]:
    if not is_traced(leaf):
        return text_of(leaf), Static(leaf)
    if not hasattr(leaf, "dtype"):
        return text_of(leaf), None
    return spec_of(leaf) + (" from a Python number" if getattr(leaf, "weak_type", False) else ""), None


class History:
    """The traces of one compiled function.

    Args:
      name: the function's.
      most: how many traces there may be; any number if None.

    Attributes:
      texts: one sentence for each trace.
    """

    def __init__(self, name: str, most: int | None) -> None:
        self._name = name
        self._most = most
        self._forms: list[Form] = []
        self.texts: list[str] = []

    def of_a_program(self, changed: Sequence[str], changed_for_others: Sequence[str]) -> Callable[[Form], None]:
        """Returns what notes the traces of one program.

        Args:
          changed: what has changed in the modules since the trace that would have served otherwise.
          changed_for_others: why a form of arguments that an earlier program knew is traced again for this one.
        """
        is_first = True

        def note(form: Form) -> None:
            nonlocal is_first
            self._add(form, changed if is_first else changed_for_others if form in self._forms else [])
            is_first = False

        return note

    def _add(self, form: Form, changed: Sequence[str]) -> None:
        """Notes a trace, logs it, and raises `RetraceError` if it is one too many."""
        if not self._forms:
            arguments = [f"argument {place} {text}" for place, text, _ in form.leaves]
            text = f"{self._name} traced: {_joined(arguments, ', ') or 'no arguments'}"
        else:
            nearest = min(reversed(self._forms), key=lambda known: len(_differences(known, form)))
            reasons = _joined([*changed, *_differences(nearest, form)], "; ")
            text = f"{self._name} retraced: {reasons or _UNKNOWN}"
        if self._most is not None and len(self._forms) >= self._most:
            raise RetraceError(f"{text}. This would be trace {len(self._forms) + 1}, and max_traces={self._most}")
        self._forms.append(form)
        self.texts.append(text)
        _log.info(text)


def _joined(texts: list[str], separator: str) -> str:
    more = [f"and {len(texts) - _SHOWN} more"] if len(texts) > _SHOWN else []
    return separator.join([*texts[:_SHOWN], *more])


def changed_text(before: str, after: str) -> str:
    """Returns how one thing became another, which may have the same text."""
    return f"{before} → {after if after != before else f'another {after}'}"


def _differences(before: Form, after: Form) -> list[str]:
    old, new = ({place: (text, static) for place, text, static in form.leaves} for form in (before, after))
    both = [place for place in old if place in new]
    changed = [
        f"argument {place} {changed_text(old[place][0], new[place][0])}" for place in both if old[place] != new[place]
    ]
    gone = [f"argument {place} {text} is gone" for place, text, _ in before.leaves if place not in new]
    fresh = [f"argument {place} {text} is new" for place, text, _ in after.leaves if place not in old]
    return [*changed, *gone, *fresh, *_passed_differently(before, after, leaves_agree=not gone and not fresh)]


def _passed_differently(before: Form, after: Form, leaves_agree: bool) -> Iterator[str]:
    """Yields how arguments that are in both calls were passed in other containers, or by name and by position."""
    old = dict(before.structures)
    for name, text in after.structures:
        if leaves_agree and name in old and old[name] != text:
            yield f"argument {name} {_containers(old[name])} → {_containers(text)}"
        if name in old and (name in before.by_name) != (name in after.by_name):
            yield f"argument {name} is passed by {'name' if name in after.by_name else 'position'}"


def _containers(structure: str) -> str:
    return structure.removeprefix("PyTreeDef(").removesuffix(")")
