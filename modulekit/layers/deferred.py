"""`Deferred`: a module that is constructed when it is first called."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

from modulekit.core.explain import summarize
from modulekit.core.methods import no_name_scope
from modulekit.core.module import Module
from modulekit.core.once import once

_OWN = ("_call_methods", "_constructor", "_target")


class Deferred(Module):
    """Stands for a module that is constructed on the first call, when what its arguments depend on is known.

    `y = module(x)`, with `module = constructor()`.

    From then on the attributes of a `Deferred` are those of its module, to read, to set and to delete. The module is
    constructed in the name scope of the caller, as if it stood there itself.

    Args:
      constructor: a function without arguments that returns the module. A method of the module around goes with it into
        copies and pickles, which a lambda does not.
      call_methods: the methods that construct the module when they are called. `__call__` always does.
      name: the module's name, which is no part of its variables' names.

    Source: Sonnet 2, `snt.Deferred`.

    >>> import modulekit as mk, jax.numpy as jnp
    >>> encode = mk.Linear(64)
    >>> decode = mk.Deferred(lambda: mk.Linear(encode.input_size))
    >>> decode(encode(jnp.ones([8, 32]))).shape
    (8, 32)
    >>> decode.output_size
    32
    """

    def __init__(
        self,
        constructor: Callable[[], Any],
        call_methods: Sequence[str] = ("__call__",),
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        self._call_methods = tuple(call_methods)
        self._constructor: Callable[[], Any] | None = constructor
        self._target: Any = None

    @no_name_scope
    @once
    def _construct(self) -> None:
        if self._constructor is not None:
            target = self._constructor()
            self._constructor = None
            self._target = target

    @property
    @no_name_scope
    def target(self) -> Any:
        """The module, which is constructed if it has not been yet."""
        self._construct()
        return self._target

    @no_name_scope
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Returns what the module returns for these `args` and `kwargs`."""
        self._construct()
        return self._target(*args, **kwargs)

    @no_name_scope
    def _call_method(self, method: str, *args: Any, **kwargs: Any) -> Any:
        self._construct()
        return getattr(self._target, method)(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        target = vars(self).get("_target")
        if name == "target":  # the constructor has raised an AttributeError, which Python takes for a missing property
            self._construct()
        if target is not None and not name.startswith("__"):
            return getattr(target, name)
        if target is None and name in vars(self).get("_call_methods", ()):
            return functools.partial(self._call_method, name)
        hint = ": its module is constructed on the first call, or by asking for its target" if target is None else ""
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}{hint}")

    def __setattr__(self, name: str, value: Any) -> None:
        target = vars(self).get("_target")
        if target is None or name in _OWN:
            super().__setattr__(name, value)
        else:
            setattr(target, name, value)

    def __delattr__(self, name: str) -> None:
        target = vars(self).get("_target")
        if target is None or name in _OWN:
            super().__delattr__(name)
        else:
            delattr(target, name)

    def _summary(self) -> str:
        """Returns a text that, unlike `repr`, constructs nothing."""
        return f"Deferred({summarize(self._constructor if self._target is None else self._target)})"

    @no_name_scope
    def __repr__(self) -> str:
        """Returns `Deferred(<module>)`; constructs the module where it can be."""
        try:
            return f"Deferred({self.target!r})"
        except Exception:
            return self._summary()
