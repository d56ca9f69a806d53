"""Why a compiled function was traced again, in the model's terms.

A trace is a pair of what the arguments looked like and what the modules were like. A new trace is told by what differs
from the most similar one before: `step retraced: argument x f32[32,784] → f32[17,784]`.
"""

import inspect
import logging
from collections.abc import Callable, Sequence
from typing import Any

import jax

from modulekit.core.describe import spec_of
from modulekit.core.explain import summarize
from modulekit.errors import RetraceError
from modulekit.transforms.arguments import is_traced

_log = logging.getLogger("modulekit")
_SHOWN = 8
Form = tuple[tuple[str, str], ...]


def form_of(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Form:
    """Returns the form of each argument by name, such as `("x", "f32[32,784]")`."""
    leaves = jax.tree_util.tree_leaves_with_path(_named(function, args, kwargs))
    return tuple((_name(path), _text(leaf)) for path, leaf in leaves)


def _named(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    try:
        return dict(inspect.signature(function).bind(*args, **kwargs).arguments)
    except (TypeError, ValueError):
        return {**{f"args[{index}]": arg for index, arg in enumerate(args)}, **kwargs}


def _name(path: Sequence[Any]) -> str:
    return str(path[0].key) + jax.tree_util.keystr(tuple(path[1:]))


def _text(leaf: Any) -> str:
    if not is_traced(leaf) or not hasattr(leaf, "dtype"):
        return summarize(leaf)
    return spec_of(leaf) + (" from a Python number" if getattr(leaf, "weak_type", False) else "")


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

    def add(self, form: Form, changed: Sequence[str]) -> None:
        """Notes a trace, logs it, and raises if it is one too many.

        Args:
          form: of the arguments.
          changed: what has changed in the modules since the trace that would have served otherwise.

        Raises:
          RetraceError: there are more traces than allowed; the message says why this one happened.
        """
        if not self._forms:
            text = f"{self._name} traced: {_listed(form)}"
        else:
            nearest = min(reversed(self._forms), key=lambda known: len(_differences(known, form)))
            text = f"{self._name} retraced: {_joined([*changed, *_differences(nearest, form)])}"
        if self._most is not None and len(self._forms) >= self._most:
            raise RetraceError(f"{text}. This would be trace {len(self._forms) + 1}, and max_traces={self._most}")
        self._forms.append(form)
        self.texts.append(text)
        _log.info(text)


def _joined(reasons: list[str]) -> str:
    more = [f"and {len(reasons) - _SHOWN} more"] if len(reasons) > _SHOWN else []
    return "; ".join([*reasons[:_SHOWN], *more]) or "JAX's configuration or context changed"


def _listed(form: Form) -> str:
    return ", ".join(f"argument {name} {text}" for name, text in form) or "no arguments"


def _differences(before: Form, after: Form) -> list[str]:
    old, new = dict(before), dict(after)
    changed = [f"argument {name} {old[name]} → {new[name]}" for name in old if name in new and old[name] != new[name]]
    gone = [f"argument {name} {text} is gone" for name, text in before if name not in new]
    return changed + gone + [f"argument {name} {text} is new" for name, text in after if name not in old]
